"""Makes the device known to torch under the name "second". Torch calls `register` on its import.

The folder that `build.build` returns holds this module, the built library and the entry point of
the group ``torch.backends`` that names `register`.
"""

from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

NAME = "second"
# What autocast does on a GPU, for the operators that networks are made of.
LOWER_PRECISION = """conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input addmm addmv
    baddbmm bmm einsum linear matmul mm mv prelu scaled_dot_product_attention
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"""
FLOAT32 = """binary_cross_entropy_with_logits cosine_similarity cumsum exp group_norm kl_div l1_loss
    layer_norm log log10 log1p log2 log_softmax.int logsumexp mse_loss nll_loss norm.Scalar
    norm.ScalarOpt_dim pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod reciprocal rms_norm
    rsqrt smooth_l1_loss softmax.int softplus sum sum.dim_IntList"""


def plus(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


# c = f c' + i g,  h = o tanh(c)
def lstm_cell(from_input, from_state, c_before, input_bias=None, state_bias=None):
    gates = plus(from_input, input_bias) + plus(from_state, state_bias)  # (batch, 4 hidden)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c_before + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(grad_h, grad_c, c_before, c, gates, has_bias):
    i, f, g, o = gates.chunk(4, 1)
    dh = torch.zeros_like(c) if grad_h is None else grad_h
    dc = torch.zeros_like(c) if grad_c is None else grad_c
    dc = dc + dh * o * (1 - c.tanh() ** 2)
    di, df, dg, do = dc * g, dc * c_before, dc * i, dh * c.tanh()
    parts = [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)]
    grad = torch.cat(parts, 1)
    return grad, dc * f, grad.sum(0) if has_bias else None


# n = tanh(a + r b),  h = n + z (h' - n)
def gru_cell(from_input, from_state, h_before, input_bias=None, state_bias=None):
    to_r, to_z, a = plus(from_input, input_bias).chunk(3, 1)  # (batch, hidden) each
    and_r, and_z, b = plus(from_state, state_bias).chunk(3, 1)
    r, z = (to_r + and_r).sigmoid(), (to_z + and_z).sigmoid()
    n = (a + r * b).tanh()
    return n + z * (h_before - n), torch.cat([r, z, n, h_before, b], 1)


def gru_cell_backward(grad_h, kept, has_bias):
    r, z, n, h_before, b = kept.chunk(5, 1)
    dn = grad_h * (1 - z) * (1 - n**2)
    dz = grad_h * (h_before - n) * z * (1 - z)
    dr = dn * b * r * (1 - r)
    of_input, of_state = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    biases = (of_input.sum(0), of_state.sum(0)) if has_bias else (None, None)
    return of_input, of_state, grad_h * z, *biases


# torch asks every device but the CPU for fused cells.
CELLS = {
    "_thnn_fused_lstm_cell": lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": lstm_cell_backward,
    "_thnn_fused_gru_cell": gru_cell,
    "_thnn_fused_gru_cell_backward": gru_cell_backward,
}
aten = torch.library.Library("aten", "IMPL")


def register() -> None:
    """Load the library and give torch the functions that it asks every device for."""
    torch.ops.load_library(Path(__file__).with_name("device.so"))
    ours = torch.ops.second_device
    ours.register_autocast(LOWER_PRECISION.split(), FLOAT32.split())
    module = ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.device = nullcontext  # `with torch.second.device(0)`: there is one device alone
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed_all = ours.manual_seed
    module.get_rng_state = lambda device=NAME: ours.get_rng_state()
    module.set_rng_state = lambda state, device=NAME: ours.set_rng_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module)
    for name, cell in CELLS.items():
        aten.impl(name, cell, "PrivateUse1")
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
