"""Convolution and pooling from their formulas, forward and backward, in plain tensor operations.

Every function here has a twin in ``torch.nn.functional`` with the same arguments and the same
values. Nothing here calls that twin: each function is built from `windows`, a view of the input
that slides a window over it.

Sizes (``kernel_size``, ``stride``, ``padding``, ``dilation``) are an int, or a pair
(height, width). Inputs have the shape (batch, channels, height, width).

Source: V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Size = int | tuple[int, int]


def output_size(
    size: Size, kernel_size: Size, stride: Size = 1, padding: Size = 0, dilation: Size = 1
) -> Size:
    """floor((size + 2·padding − dilation·(kernel_size − 1) − 1) / stride) + 1.

    An int ``size`` gives an int, a pair (height, width) gives a pair.

    Raises:
        ValueError: the window is larger than the padded input, or a size is out of range.
    """
    pairs = (
        _pair("size", size, least=0),
        _pair("kernel_size", kernel_size),
        _pair("stride", stride),
        _pair("padding", padding, least=0),
        _pair("dilation", dilation),
    )
    # strict: five pairs, taken apart into (all the heights) and (all the widths)
    height, width = (_output_length(*lengths) for lengths in zip(*pairs, strict=True))
    if isinstance(size, int):
        if height != width:
            raise ValueError(
                f"size is the int {size}, but the other sizes differ by axis: "
                f"give size as a pair ({size}, {size})."
            )
        return height
    return height, width


def _output_length(size: int, kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    span = dilation * (kernel_size - 1) + 1  # from the window's first element to its last
    if span > size + 2 * padding:
        raise ValueError(
            f"The window does not fit: a kernel of {kernel_size} with dilation {dilation} spans "
            f"{span}, but the input of {size} with padding {padding} is {size + 2 * padding} long."
        )
    return (size + 2 * padding - span) // stride + 1


def pad(x: Tensor, padding: Size, value: float = 0.0) -> Tensor:
    """``x`` with ``padding`` rows and columns of ``value`` on each of its four sides."""
    p_h, p_w = _pair("padding", padding, least=0)
    batch, channels, height, width = _shape("x", x)
    padded = x.new_full((batch, channels, height + 2 * p_h, width + 2 * p_w), value)
    padded[:, :, p_h : p_h + height, p_w : p_w + width] = x
    return padded


def windows(x: Tensor, kernel_size: Size, stride: Size = 1, dilation: Size = 1) -> Tensor:
    """windows[n, c, h, w, i, j] = x[n, c, h·stride + i·dilation, w·stride + j·dilation].

    A view, so it costs no memory. Shape: (batch, channels, output height, output width,
    kernel height, kernel width).
    """
    (k_h, k_w), (s_h, s_w) = _pair("kernel_size", kernel_size), _pair("stride", stride)
    d_h, d_w = _pair("dilation", dilation)
    output_size(_shape("x", x)[2:], kernel_size, stride, 0, dilation)  # raises if it cannot fit
    view = x.unfold(2, d_h * (k_h - 1) + 1, s_h).unfold(3, d_w * (k_w - 1) + 1, s_w)
    return view[..., ::d_h, ::d_w]


def col2im(
    columns: Tensor,
    output_size: Size,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> Tensor:
    """Add each column back to the window that it stands for, as ``F.fold``.

    It is the transpose of ``F.unfold``, not its inverse: where windows overlap, values add up.
    ``output_size`` is the (height, width) of the result, (batch, channels, height, width).
    """
    height, width = _pair("output_size", output_size)
    (k_h, k_w), (s_h, s_w) = _pair("kernel_size", kernel_size), _pair("stride", stride)
    (p_h, p_w), (d_h, d_w) = _pair("padding", padding, least=0), _pair("dilation", dilation)
    out_h = _output_length(height, k_h, s_h, p_h, d_h)
    out_w = _output_length(width, k_w, s_w, p_w, d_w)
    batch, rows, count = columns.shape if columns.dim() == 3 else (0, 0, -1)
    if count != out_h * out_w or rows % (k_h * k_w):
        raise ValueError(
            f"columns has shape {tuple(columns.shape)}; expected (batch, channels · {k_h * k_w}, "
            f"{out_h * out_w}) for an image of {height} × {width}."
        )
    columns = columns.reshape(batch, rows // (k_h * k_w), k_h, k_w, out_h, out_w)
    x = columns.new_zeros(batch, rows // (k_h * k_w), height + 2 * p_h, width + 2 * p_w)
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i * d_h, i * d_h + s_h * out_h, s_h)
            cols = slice(j * d_w, j * d_w + s_w * out_w, s_w)
            x[:, :, rows, cols] += columns[:, :, i, j]
    return x[:, :, p_h : p_h + height, p_w : p_w + width]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, o, h, w] = bias[o] + Σ_{c, i, j} weight[o, c, i, j] · window[n, c, h, w, i, j].

    Args:
        x: (batch, in_channels, height, width)
        weight: (out_channels, in_channels / groups, kernel height, kernel width)
        bias: (out_channels), or None
        groups: output channel o sees only the input channels of its own group.

    Returns:
        (batch, out_channels, output height, output width)

    Raises:
        ValueError: the shapes or types do not fit each other; the message names them.
    """
    view, grouped_weight = _grouped(x, weight, stride, padding, dilation, groups)
    y = torch.einsum("ngchwij,gocij->ngohw", view, grouped_weight).flatten(1, 2)
    if bias is None:
        return y
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},), one number for "
            f"each output channel of weight {tuple(weight.shape)}."
        )
    return y + bias.reshape(-1, 1, 1)


def conv2d_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a loss for x, weight and bias, from its gradient for ``conv2d``'s output.

    With G = grad_output and the windows of `conv2d`:

    - grad_bias[o] = Σ_{n, h, w} G[n, o, h, w]
    - grad_weight[o, c, i, j] = Σ_{n, h, w} G[n, o, h, w] · window[n, c, h, w, i, j]
    - grad_window[n, c, h, w, i, j] = Σ_o weight[o, c, i, j] · G[n, o, h, w], and `col2im` adds
      each window's gradient back to the elements of x that the window was taken from.

    Returns:
        (grad_x, grad_weight, grad_bias), with the shapes of x, weight and (out_channels).

    Raises:
        ValueError: the shapes or types do not fit each other; the message names them.
    """
    view, grouped_weight = _grouped(x, weight, stride, padding, dilation, groups)
    expected = (x.shape[0], weight.shape[0], *view.shape[3:5])
    if tuple(grad_output.shape) != expected:
        raise ValueError(
            f"grad_output has shape {tuple(grad_output.shape)}; expected {expected}, the shape of "
            f"conv2d's output for x {tuple(x.shape)} and weight {tuple(weight.shape)}."
        )
    grad = grad_output.unflatten(1, (groups, -1))  # (batch, groups, out / groups, height, width)

    grad_bias = grad_output.sum((0, 2, 3))
    grad_weight = torch.einsum("ngohw,ngchwij->gocij", grad, view).flatten(0, 1)
    grad_windows = torch.einsum("gocij,ngohw->ngcijhw", grouped_weight, grad)
    columns = grad_windows.flatten(5).flatten(1, 4)  # (batch, channels · kernel, windows)
    grad_x = col2im(columns, tuple(x.shape[2:]), weight.shape[2:], stride, padding, dilation)
    return grad_x, grad_weight, grad_bias


def max_pool2d(
    x: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """The largest element of each window; padding counts as −∞, so that it never wins.

    ``stride`` None means ``kernel_size``. Returns (batch, channels, output height, output width).

    Raises:
        ValueError: padding is more than half the kernel, or the window does not fit.
    """
    view = _pooling_windows(x, kernel_size, stride, padding, -math.inf)
    return view.flatten(-2).max(dim=-1).values


def avg_pool2d(
    x: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """The mean of each window; padding counts as zeros, and is counted in the mean.

    ``stride`` None means ``kernel_size``. Returns (batch, channels, output height, output width).

    Raises:
        ValueError: padding is more than half the kernel, or the window does not fit.
    """
    return _pooling_windows(x, kernel_size, stride, padding, 0.0).mean((-2, -1))


def conv2d_parameters(
    in_channels: int, out_channels: int, kernel_size: Size, groups: int = 1, bias: bool = True
) -> int:
    """out_channels · (in_channels / groups) · kernel height · kernel width, + out_channels."""
    k_h, k_w = _pair("kernel_size", kernel_size)
    _check_groups(in_channels, out_channels, groups)
    return out_channels * (in_channels // groups) * k_h * k_w + (out_channels if bias else 0)


def _pair(name: str, value: Size, least: int = 1) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(
            f"{name} is {value!r}; expected an int, or a pair (height, width) of ints, "
            f"of at least {least}."
        )
    return pair


def _shape(name: str, x: Tensor) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected (batch, channels, height, width)."
        )
    return tuple(x.shape)


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups is {groups}; it must divide both in_channels ({in_channels}) and "
            f"out_channels ({out_channels})."
        )


def _grouped(
    x: Tensor, weight: Tensor, stride: Size, padding: Size, dilation: Size, groups: int
) -> tuple[Tensor, Tensor]:
    """Windows as (batch, groups, in / groups, height, width, k_h, k_w), and the weight as
    (groups, out / groups, in / groups, k_h, k_w), after checking that they fit each other."""
    in_channels, out_channels = _shape("x", x)[1], _shape("weight", weight)[0]
    _check_groups(in_channels, out_channels, groups)
    if weight.shape[1] != in_channels // groups:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, so a filter sees {weight.shape[1]} channels; "
            f"x has shape {tuple(x.shape)}, so each of {groups} group(s) has "
            f"{in_channels // groups}."
        )
    if weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} and x is {x.dtype}; they must be the same.")
    view = windows(pad(x, padding), tuple(weight.shape[2:]), stride, dilation)
    return view.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))


def _pooling_windows(
    x: Tensor, kernel_size: Size, stride: Size | None, padding: Size, value: float
) -> Tensor:
    kernel, border = _pair("kernel_size", kernel_size), _pair("padding", padding, least=0)
    if any(2 * p > k for p, k in zip(border, kernel, strict=True)):
        raise ValueError(
            f"padding is {padding} and kernel_size is {kernel_size}; padding may be half of "
            "kernel_size at most, or a window would hold nothing but padding."
        )
    return windows(pad(x, padding, value), kernel_size, kernel_size if stride is None else stride)
