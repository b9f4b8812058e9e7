"""Wrong answers on convolution and pooling, and other correct ones."""

import torch
import torch.nn.functional as F

from shipyard import convolution
from shipyard.checks.convolution import conv2d_by_loops
from wrong_answers import Task, but

TASKS = {
    "output_size": (OUTPUT_SIZE := Task()),
    "im2col": (IM2COL := Task()),
    "conv2d": (CONV2D := Task()),
    "conv2d_backward": (BACKWARD := Task()),
    "max_pool2d": (MAX_POOL := Task()),
    "avg_pool2d": (AVG_POOL := Task()),
}

# The package's own functions pass: other tests compare each of them with torch's.
for name in TASKS.keys() - {"im2col"}:
    TASKS[name].passes(getattr(convolution, name))


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zero_pad(x, padding):
    p_h, p_w = pair(padding)
    return F.pad(x, (p_w, p_w, p_h, p_h))


# The size of the output.


@OUTPUT_SIZE.passes
def counts_the_starts(size, kernel_size, stride=1, padding=0, dilation=1):
    last_start = size + 2 * padding - dilation * (kernel_size - 1) - 1
    return sum(1 for start in range(last_start + 1) if start % stride == 0)


OUTPUT_SIZE.fails_with("padding-ignored", but(counts_the_starts, "2 * padding", "0"))
OUTPUT_SIZE.fails_with("stride-ignored", but(counts_the_starts, "if start % stride == 0", ""))


@OUTPUT_SIZE.forbids
def asks_torch(size, kernel_size, stride=1, padding=0, dilation=1):
    x, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel_size)
    return F.conv1d(x, weight, None, stride, padding, dilation).shape[2]


# Windows as columns.


@IM2COL.passes
def gathers_by_index(x, kernel_size, stride=1, padding=0):
    (k_h, k_w), (s_h, s_w), x = pair(kernel_size), pair(stride), zero_pad(x, padding)
    rows = torch.arange(k_h)[:, None] + torch.arange(0, x.shape[2] - k_h + 1, s_h)
    columns = torch.arange(k_w)[:, None] + torch.arange(0, x.shape[3] - k_w + 1, s_w)
    found = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    return found.flatten(4).flatten(1, 3)


IM2COL.fails_with("windows-as-rows", but(gathers_by_index, "(1, 3)", "(1, 3).mT"))
IM2COL.fails_with(
    "reshape-without-permute",
    but(
        gathers_by_index,
        "return found",
        "return found.permute(0, 1, 4, 5, 2, 3).reshape(found.shape)",
    ),
)
IM2COL.fails_with("wrong-dtype", but(gathers_by_index, "(1, 3)", "(1, 3).double()"))
IM2COL.forbids(F.unfold)


# Convolution, forward.


CONV2D.fails_with(
    "flipped-kernel", but(conv2d_by_loops, "weight[..., i, j]", "weight.flip(3, 4)[..., i, j]")
)
CONV2D.fails_with("bias-along-width", but(conv2d_by_loops, "bias.reshape(-1, 1, 1)", "bias"))
CONV2D.forbids(F.conv2d)


# Convolution, backward.


@BACKWARD.passes
def window_by_window(grad_output, x, weight, stride=1, padding=0):
    (s_h, s_w), (p_h, p_w), (k_h, k_w) = pair(stride), pair(padding), weight.shape[2:]
    padded = zero_pad(x, padding)
    grad_x, grad_weight = torch.zeros_like(padded), torch.zeros_like(weight)
    for h in range(grad_output.shape[2]):
        for w in range(grad_output.shape[3]):
            rows, cols = slice(h * s_h, h * s_h + k_h), slice(w * s_w, w * s_w + k_w)
            g = grad_output[:, :, h, w]
            grad_x[:, :, rows, cols] += torch.einsum("no,ocij->ncij", g, weight)
            grad_weight += torch.einsum("no,ncij->ocij", g, padded[:, :, rows, cols])
    grad_x = grad_x[:, :, p_h : p_h + x.shape[2], p_w : p_w + x.shape[3]]
    return grad_x, grad_weight, grad_output.sum((0, 2, 3))


BACKWARD.fails_with(
    "overlaps-overwritten", but(window_by_window, "cols] += torch", "cols] = torch")
)
BACKWARD.fails_with(
    "padding-not-removed",
    but(window_by_window, "p_h : p_h + x.shape[2], p_w : p_w + x.shape[3]", "p_h:-p_h, p_w:-p_w"),
)


@BACKWARD.forbids
def asks_autograd(grad_output, x, weight, stride=1, padding=0):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = conv2d_by_loops(x, weight, None, stride, padding)
    return *torch.autograd.grad(y, (x, weight), grad_output), grad_output.sum((0, 2, 3))


# Pooling.


@MAX_POOL.passes
def pads_with_the_smallest_element(x, kernel_size, stride=None, padding=0):
    (k_h, k_w), (p_h, p_w) = pair(kernel_size), pair(padding)
    s_h, s_w = (k_h, k_w) if stride is None else pair(stride)
    x = F.pad(x, (p_w, p_w, p_h, p_h), value=x.min().item())
    tops, lefts = range(0, x.shape[2] - k_h + 1, s_h), range(0, x.shape[3] - k_w + 1, s_w)
    windows = [x[:, :, t : t + k_h, left : left + k_w].flatten(2) for t in tops for left in lefts]
    values = torch.stack([window.amax(dim=2) for window in windows], dim=2)
    return values.unflatten(2, (len(tops), len(lefts)))


MAX_POOL.fails_with(
    "padding-can-win", but(pads_with_the_smallest_element, "x.min().item()", "-100")
)
MAX_POOL.fails_with("not-the-maximum", but(pads_with_the_smallest_element, "amax", "amin"))


@AVG_POOL.passes
def convolves_with_a_constant(x, kernel_size, stride=None, padding=0):
    (k_h, k_w), channels = pair(kernel_size), x.shape[1]
    stride = kernel_size if stride is None else stride
    weight = torch.full((channels, 1, k_h, k_w), 1 / (k_h * k_w), dtype=x.dtype)
    return conv2d_by_loops(x, weight, None, stride, padding, groups=channels)


AVG_POOL.fails_with("default-stride", but(convolves_with_a_constant, "= kernel_size if", "= 1 if"))
AVG_POOL.fails_with("wrong-divisor", but(convolves_with_a_constant, "1 / (k_h * k_w)", "1.0"))
MAX_POOL.forbids(F.max_pool2d)
AVG_POOL.forbids(F.avg_pool2d)
