"""Checks of convolution and pooling: references in PyTorch's form, and the cases to try them on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shipyard.checks import Case, check

TIGHT = 1e-11  # float64 throughout stays far below this, one step in float32 does not

FORBIDDEN = dict.fromkeys(
    (
        "conv1d", "conv2d", "conv3d", "conv_transpose2d", "convolution", "conv2d_input", "im2col",
        "conv2d_weight", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d",
    ),
    """Here you build that yourself. You may use F.pad and every operation on tensors, but no
    convolution, no unfold and no pooling of torch's.""",
)  # fmt: skip
FORBIDDEN["run_backward"] = "That is autograd: here you apply the chain rule yourself."
_check = functools.partial(check, tolerance=TIGHT, forbidden=FORBIDDEN)


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def output_size(size, kernel_size, stride=1, padding=0, dilation=1):
    reach = dilation * (kernel_size - 1) + 1
    return (size + 2 * padding - reach) // stride + 1


def im2col(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = pair(kernel_size), pair(stride), pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    windows = x.unfold(2, k_h, s_h).unfold(3, k_w, s_w)  # (batch, channels, h, w, i, j)
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def im2col_by_loops(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = pair(kernel_size), pair(stride), pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    columns = []
    for top in range(0, x.shape[2] - k_h + 1, s_h):
        for left in range(0, x.shape[3] - k_w + 1, s_w):
            columns.append(x[:, :, top : top + k_h, left : left + k_w].flatten(1))
    return torch.stack(columns, dim=2)


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = weight.shape[2:], pair(stride), pair(padding)
    d_h, d_w = pair(dilation)
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    windows = x.unfold(2, d_h * (k_h - 1) + 1, s_h).unfold(3, d_w * (k_w - 1) + 1, s_w)
    windows = windows[..., ::d_h, ::d_w]  # (batch, channels, h, w, i, j)
    windows = windows.unflatten(1, (groups, -1))  # (batch, groups, in / groups, h, w, i, j)
    weight = weight.unflatten(0, (groups, -1))  # (groups, out / groups, in / groups, i, j)
    y = torch.einsum("ngchwij,gocij->ngohw", windows, weight).flatten(1, 2)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def conv2d_by_loops(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = weight.shape[2:], pair(stride), pair(padding)
    d_h, d_w = pair(dilation)
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    out_h = output_size(x.shape[2], k_h, s_h, dilation=d_h)
    out_w = output_size(x.shape[3], k_w, s_w, dilation=d_w)
    x, weight = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    y = 0
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i * d_h, i * d_h + s_h * (out_h - 1) + 1, s_h)
            columns = slice(j * d_w, j * d_w + s_w * (out_w - 1) + 1, s_w)
            met = x[..., rows, columns]
            y = y + torch.einsum("ngchw,goc->ngohw", met, weight[..., i, j])
    y = y.flatten(1, 2)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def conv2d_backward(grad_output, x, weight, stride=1, padding=0):
    (s_h, s_w), (p_h, p_w) = pair(stride), pair(padding)
    (height, width), (k_h, k_w) = x.shape[2:], weight.shape[2:]
    out_h, out_w = grad_output.shape[2:]
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    windows = x.unfold(2, k_h, s_h).unfold(3, k_w, s_w)  # (batch, channels, h, w, i, j)
    grad_weight = torch.einsum("nohw,nchwij->ocij", grad_output, windows)
    grad_windows = torch.einsum("nohw,ocij->nchwij", grad_output, weight)
    grad_x = torch.zeros_like(x)
    for i in range(k_h):
        for j in range(k_w):
            rows, columns = slice(i, i + s_h * out_h, s_h), slice(j, j + s_w * out_w, s_w)
            grad_x[:, :, rows, columns] += grad_windows[..., i, j]
    grad_x = grad_x[:, :, p_h : p_h + height, p_w : p_w + width]
    grad_bias = grad_output.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias


def max_pool2d(x, kernel_size, stride=None, padding=0):
    stride = kernel_size if stride is None else stride
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = pair(kernel_size), pair(stride), pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h), value=-math.inf)
    windows = x.unfold(2, k_h, s_h).unfold(3, k_w, s_w)  # (batch, channels, h, w, i, j)
    return windows.amax((4, 5))


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    stride = kernel_size if stride is None else stride
    (k_h, k_w), (s_h, s_w), (p_h, p_w) = pair(kernel_size), pair(stride), pair(padding)
    x = F.pad(x, (p_w, p_w, p_h, p_h))
    windows = x.unfold(2, k_h, s_h).unfold(3, k_w, s_w)  # (batch, channels, h, w, i, j)
    return windows.mean((4, 5))


def same(size, reach, stride):
    """(before, after): what Keras and TensorFlow add to an axis for padding="same"."""
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def overhang(size, reach, stride):
    """How far a last window that is not dropped hangs over the end of an axis."""
    return -(size - reach) % stride


def _grid(*shape: int) -> Tensor:
    """0, 1, 2, … in ``shape``: numbers that a learner can follow by hand."""
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@_check(output_size)
def check_output_size():
    return [
        Case(5, 3),
        Case(7, 1),
        Case(6, 6),
        Case(7, 3, stride=2),
        Case(8, 3, stride=2),
        Case(9, 2, stride=4),
        Case(5, 3, padding=1),
        Case(4, 5, padding=2),
        Case(8, 3, dilation=2),
        Case(11, 4, dilation=3),
        Case(32, 3, stride=2, padding=1),
        Case(7, 4, stride=4, padding=3),
        Case(31, 5, stride=3, padding=2, dilation=2),
        Case(227, 11, stride=4),
        Case(1, 1),
    ]


@_check(im2col, seed=2, forms=(im2col_by_loops,))
def check_im2col(draw):
    """Windows as columns, as F.unfold."""
    return [
        Case(_grid(1, 1, 3, 3), kernel_size=2),
        Case(_grid(1, 2, 2, 3), kernel_size=2),
        Case(draw(2, 3, 5, 4), kernel_size=(3, 2)),
        Case(draw(1, 2, 7, 6), kernel_size=3, stride=2),
        Case(draw(1, 1, 3, 5), kernel_size=3, padding=1),
        Case(draw(3, 2, 7, 8), kernel_size=2, stride=(2, 3)),
        Case(draw(1, 2, 4, 3), kernel_size=3, padding=(0, 2)),
        Case(draw(2, 3, 9, 11), kernel_size=(2, 4), stride=(3, 2), padding=(2, 1)),
        Case(draw(1, 4, 5, 5), kernel_size=1),
        Case(draw(5, 7, 3, 2).permute(3, 2, 1, 0), kernel_size=2),
        Case(_grid(2, 1, 3, 2).float(), kernel_size=2),
    ]


@_check(conv2d, seed=3, forms=(conv2d_by_loops,))
def check_conv2d(draw):
    everything = {"stride": (2, 3), "padding": (1, 2), "dilation": (3, 2), "groups": 2}
    return [
        Case(_grid(1, 1, 3, 3), _grid(1, 1, 2, 2) + 1),
        Case(draw(1, 1, 5, 5), draw(1, 1, 3, 3)),
        Case(draw(1, 3, 4, 4), draw(3, 3, 3, 3)),
        Case(draw(2, 3, 5, 4), draw(2, 3, 3, 2), draw(2)),
        Case(draw(1, 1, 7, 6), draw(1, 1, 3, 3), stride=2),
        Case((3 * draw(1, 1, 3, 3)).round(), (3 * draw(1, 1, 3, 3)).round(), padding=1),
        Case(draw(1, 2, 7, 8), draw(3, 2, 3, 2), dilation=2),
        Case(draw(1, 4, 3, 3), draw(4, 2, 2, 2), draw(4), groups=2),
        Case(draw(2, 3, 7, 5), draw(6, 1, 3, 3), groups=3),
        Case(draw(1, 2, 8, 9), draw(3, 2, 1, 3), stride=(3, 2)),
        Case(draw(1, 2, 4, 5), draw(3, 2, 3, 3), padding=(2, 0)),
        Case(draw(1, 2, 9, 9), draw(3, 2, 3, 3), dilation=(1, 3)),
        Case(draw(3, 4, 5, 3), draw(5, 4, 1, 1), draw(5)),
        Case(draw(5, 6, 4, 2).permute(3, 2, 1, 0), draw(3, 4, 2, 3)),
        Case(draw(2, 4, 11, 13), draw(6, 2, 3, 2), draw(6), **everything),
        Case(_grid(2, 1, 3, 2).float(), _grid(1, 1, 2, 2).float(), _grid(1).float() + 1),
    ]


@_check(conv2d_backward, seed=4, outputs=("grad_x", "grad_weight", "grad_bias"))
def check_conv2d_backward(draw):

    def case(x_shape, weight_shape, **options):
        x, weight = draw(*x_shape), draw(*weight_shape)
        return Case(draw(*conv2d(x, weight, **options).shape), x, weight, **options)

    return [
        Case(_grid(1, 1, 2, 2) + 1, _grid(1, 1, 3, 3), _grid(1, 1, 2, 2) + 1),
        case((1, 2, 4, 5), (3, 2, 3, 2)),
        case((2, 2, 4, 4), (3, 2, 2, 2)),
        case((1, 1, 3, 4), (1, 1, 2, 2), padding=2),
        case((1, 1, 5, 5), (1, 1, 3, 3), stride=2),
        case((1, 2, 6, 8), (2, 2, 3, 3), stride=2),
        case((2, 1, 7, 8), (2, 1, 3, 3), stride=(2, 3), padding=(0, 2)),
        case((3, 4, 9, 7), (5, 4, 2, 3), stride=(3, 2), padding=(1, 0)),
        case((3, 2, 4, 4), (2, 2, 1, 1)),
        Case(*(_grid(1, 1, *size).float() for size in [(2, 1), (3, 2), (2, 2)])),
    ]


def _pooling_cases(draw: Callable) -> list[Case]:
    return [
        Case(_grid(1, 1, 4, 4) * 5 % 16 - 4, kernel_size=2),
        Case(_grid(1, 1, 3, 3) % 5 - 6, kernel_size=2, stride=1),
        Case(_grid(1, 1, 2, 3) - 7, kernel_size=2, padding=1),
        Case(draw(2, 3, 6, 4), kernel_size=(3, 2)),
        Case(draw(1, 2, 5, 7), kernel_size=2),
        Case(draw(1, 2, 7, 6), kernel_size=3, stride=2),
        Case(draw(2, 1, 9, 9), kernel_size=3, stride=(2, 3)),
        Case(draw(1, 3, 4, 5) - 200, kernel_size=(3, 4), stride=1, padding=(1, 2)),
        Case(draw(3, 2, 8, 5), kernel_size=(4, 2), stride=(3, 2), padding=(2, 1)),
        Case(draw(5, 7, 3, 2).permute(3, 2, 1, 0), kernel_size=3),
        Case((draw(1, 1, 3, 3) - 9) * 1e99, kernel_size=2, padding=1),  # below any finite border
        Case(_grid(2, 1, 4, 2).float(), kernel_size=2),
    ]


@_check(max_pool2d, seed=5)
def check_max_pool2d(draw):
    return _pooling_cases(draw)


@_check(avg_pool2d, seed=5)
def check_avg_pool2d(draw):
    """Padding is counted."""
    return _pooling_cases(draw)
