"""Drawn diagrams of concepts: what flows where, with the symbols of the formulas.

`Drawing` is the paper with its pens, in `shipyard.drawings.paper`. The functions here return
finished drawings; a lesson shows one with ``drawings.lstm_cell().show()``.
"""

from shipyard.drawings.attention import attention_head
from shipyard.drawings.convolution import convolution_volume
from shipyard.drawings.monitoring import hot_swap, monitoring_loop
from shipyard.drawings.paper import Drawing, Shape
from shipyard.drawings.recurrent import gru_cell, lstm_cell

__all__ = [
    "Drawing",
    "Shape",
    "attention_head",
    "convolution_volume",
    "gru_cell",
    "hot_swap",
    "lstm_cell",
    "monitoring_loop",
]
