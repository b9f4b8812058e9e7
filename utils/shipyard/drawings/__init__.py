"""Drawn diagrams of concepts: what flows where, with the symbols of the formulas.

`Drawing` is the paper with its pens, in `shipyard.drawings.paper`. The functions here return
finished drawings; a lesson shows one with ``drawings.lstm_cell().show()``.
"""

from shipyard.drawings.attention import attention_head, kv_cache, transformer_block
from shipyard.drawings.compression import channel_groups, distillation, ways_to_shrink
from shipyard.drawings.convolution import convolution_volume
from shipyard.drawings.graphs import export_steps, onnx_graph
from shipyard.drawings.monitoring import hot_swap, monitoring_loop
from shipyard.drawings.networks import computation_graph, layer, mlp, neuron
from shipyard.drawings.paper import Drawing, Shape
from shipyard.drawings.quantization import int8_layer, rounding_grid, straight_through
from shipyard.drawings.recurrent import gru_cell, lstm_cell, rnn_unrolled
from shipyard.drawings.serving import batch_schedules, batches_in_time, paged_cache, request_path

__all__ = [
    "Drawing",
    "Shape",
    "attention_head",
    "batch_schedules",
    "batches_in_time",
    "channel_groups",
    "computation_graph",
    "convolution_volume",
    "distillation",
    "export_steps",
    "gru_cell",
    "hot_swap",
    "int8_layer",
    "kv_cache",
    "layer",
    "lstm_cell",
    "mlp",
    "monitoring_loop",
    "neuron",
    "onnx_graph",
    "paged_cache",
    "request_path",
    "rnn_unrolled",
    "rounding_grid",
    "straight_through",
    "transformer_block",
    "ways_to_shrink",
]
