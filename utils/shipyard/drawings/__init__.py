"""Drawn diagrams of concepts: what flows where, with the symbols of the formulas.

`Drawing` is the paper with its pens, in `shipyard.drawings.paper`. The functions here return
finished drawings; a lesson shows one with ``drawings.lstm_cell().show()``.
"""

from shipyard.drawings.attention import attention_head
from shipyard.drawings.convolution import convolution_volume
from shipyard.drawings.graphs import export_steps, onnx_graph
from shipyard.drawings.paper import Drawing, Shape
from shipyard.drawings.recurrent import gru_cell, lstm_cell

__all__ = [
    "Drawing",
    "Shape",
    "attention_head",
    "convolution_volume",
    "export_steps",
    "gru_cell",
    "lstm_cell",
    "onnx_graph",
]
