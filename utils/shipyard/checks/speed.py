"""Checks of training faster: references, and the cases to try them on.

Whitening filters are free in order and sign, so they are brought into one order before they are
compared. A layout is judged by what torch says of the tensors that go through the model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shipyard.checks import Case, check, draws


def time_to_accuracy(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clock, reached = preparation, math.inf
        for train_seconds, _, accuracy in run:
            clock += train_seconds
            if accuracy >= target:
                reached = clock
                break
        times.append(reached)
    return statistics.median(times)


def roofline(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    n, c_in, h, w = images_shape
    c_out, _, k, _ = weight_shape
    outputs = n * c_out * (h - k + 1) * (w - k + 1)
    flops = 2 * c_in * k * k * outputs
    values = n * c_in * h * w + c_out * c_in * k * k + outputs
    bytes_moved = bytes_per_value * values
    return flops, bytes_moved, min(peak, bandwidth * flops / bytes_moved)


def strides(shape, channels_last=False):
    _, c, h, w = shape
    if channels_last:
        return h * w * c, 1, w * c, c
    return c * h * w, h * w, w, 1


def channels_last(model, images):
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    return model, images


def whitening(images, kernel_size, eps):
    c, k = images.shape[1], kernel_size
    patches = F.unfold(images, k).transpose(1, 2).reshape(-1, c * k * k)
    centred = patches - patches.mean(0)
    Σ = centred.T @ centred / len(patches)
    λ, V = torch.linalg.eigh(Σ)
    filters = (V / torch.sqrt(λ + eps)).T
    return filters.reshape(-1, c, k, k)


def one_cycle(
    step,
    total_steps,
    max_lr,
    pct_start=0.3,
    div_factor=25.0,
    final_div_factor=1e4,
    anneal_strategy="cos",
):
    first_lr = max_lr / div_factor
    final_lr = first_lr / final_div_factor
    peak, last = pct_start * total_steps - 1, total_steps - 1
    if step <= peak:
        start, end, p = first_lr, max_lr, step / peak
    else:
        start, end, p = max_lr, final_lr, (step - peak) / (last - peak)
    if anneal_strategy == "cos":
        p = (1 - math.cos(math.pi * p)) / 2
    return start + (end - start) * p


def flip_average(model, images):
    return (model(images) + model(images.flip(3))) / 2


def flip_average_in_one_call(model, images):
    return model(torch.cat([images, images.flip(3)])).reshape(2, len(images), -1).mean(0)


@check(time_to_accuracy, tolerance=1e-12)
def check_time_to_accuracy():
    """The median over the runs of the training seconds at the first evaluation that reaches the
    target."""
    even = [(10.25, 3.5, 0.3), (12.5, 3.0, 0.5), (11.75, 3.25, 0.7)]
    quick = [
        (9.125, 2.0, 0.45), (8.25, 2.0, 0.66), (9.5, 2.5, 0.6), (8.625, 2.0, 0.72), (8.0, 2.0, 0.7),
    ]  # fmt: skip
    slow = [(20.75, 4.5, 0.2), (22.0, 4.0, 0.41), (21.375, 4.0, 0.58), (19.0, 4.5, 0.64)]
    failing = [(10.0, 3.0, 0.1), (10.625, 3.0, 0.12), (10.0, 3.5, 0.1)]
    weak = [(6.75, 1.0, 0.35), (7.875, 1.0, 0.55)]
    nearly = [(7.625, 1.5, 0.592), (7.5, 1.5, 0.5999999999), (7.5625, 1.5, 0.6000000001)]
    return [
        Case([even], 0.6),
        Case([even], 0.5),
        Case([slow, quick, even], 0.55),
        Case([even], 0.9),
        Case([quick, slow, weak, even], 0.5),
        Case([failing, weak, even], 0.6),
        Case([nearly, failing, quick], 0.6),
        Case([even, failing], 0.5),
        Case([quick, even, slow], 0.4, 5.625),
        Case([quick], 0.65, preparation=2.5),
        Case([quick, even, quick], 0.71),
        Case([failing, slow, quick, even, weak], 0.41, preparation=1.375),
    ]


@check(
    roofline,
    tolerance=1e-12,
    outputs=("flops", "bytes_moved", "attainable"),
    forbidden=dict.fromkeys(
        ("FlopCounterMode.__init__", "conv_flop_count"),
        "Count the operations yourself: 2 for each product, c_in · k² products for each output.",
    ),
)
def check_roofline():
    """(FLOPs, bytes moved, attainable FLOP/s) of a convolution."""
    return [
        Case((2, 3, 5, 5), (4, 3, 3, 3), 4, 1e9, 1e8),  # under the slope
        Case((7, 16, 12, 10), (32, 16, 3, 3), 4, 1e9, 1e9),  # under the flat roof
        Case((3, 5, 6, 8), (2, 5, 2, 2), 8, 1e12, 2e10),
        Case((16, 32, 9, 9), (8, 32, 5, 5), 2, 2e11, 1e9),
        Case((1, 64, 7, 9), (64, 64, 1, 1), 2, 4e12, 5e10),
        Case((3, 1, 6, 8), (1, 1, 4, 4), 1, 7.5e8, 3e8),
    ]


@check(
    strides,
    forbidden=dict.fromkeys(
        ("stride", "empty", "zeros", "ones", "rand", "randn"),
        "It tells you the strides. Compute them from the sizes, without making a tensor.",
    ),
)
def check_strides():
    """How far apart neighbours lie on each axis."""
    shapes = [(2, 3, 4, 5), (6, 2, 9, 4), (1, 3, 32, 32), (7, 1, 3, 2), (3, 8, 1, 6), (5, 4, 1, 1)]
    return [*(Case(shape, last) for last in (False, True) for shape in shapes), Case((4, 6, 2, 3))]


class _Network(nn.Sequential):
    """A small network that a failure message shows in one short word."""

    def __init__(self, seed: int, *layers: nn.Module):
        super().__init__(*layers)
        draw = draws(seed)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(draw(*parameter.shape))

    def __repr__(self) -> str:
        return f"<network of {len(self)} layers>"


class _Positions(nn.Module):
    """Adds a learned number to each place: a weight of four axes that is not a layer's."""

    def __init__(self, *shape: int):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, *shape))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.positions


def _layout(tensor: Tensor) -> str:
    """How a tensor of four axes lies in memory."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    if tensor.is_contiguous():
        return "contiguous"
    return f"strides {tuple(tensor.stride())}"


_FACTS = (
    "what came back", "images", "layout of images", "model", "layout of weight", "model.training",
    "model(images)", "layout of the output of layer",
)  # fmt: skip


def _facts(function: Callable, model: nn.Module, images: Tensor) -> list | None:
    """What can be seen from outside of the (model, images) that come back, as `_FACTS` says."""
    match answer := function(model, images):
        case None:
            return None
        case [nn.Module() as model, Tensor() as images]:
            pass
        case _:
            parts = answer if isinstance(answer, tuple | list) else [answer]
            came = ", ".join(type(part).__name__ for part in parts)
            return [came, *[None] * (len(_FACTS) - 1)]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: _layout(w) for name, w in model.named_parameters() if w.dim() == 4}
    training, flowing = model.training, {}

    def note(name):
        return lambda layer, inputs, output: flowing.update({name: _layout(output)})

    for name, layer in model.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(note(name))
    try:
        with torch.no_grad():
            output = model(images)
    except Exception as error:  # the facts before this one tell why
        output = f"{type(error).__name__}: {error}"
    seen = [images, _layout(images), values, weights, training, output, flowing]
    return ["a model and a tensor", *seen]


@check(channels_last, seed=5, outputs=_FACTS, use=_facts)
def check_channels_last(draw):
    """Both come back in the layout channels_last."""
    block = nn.Sequential
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.MaxPool2d(2), block(nn.Conv2d(8, 4, 2), nn.ReLU()), nn.Flatten(), nn.Linear(8, 5)]
    upwards = [nn.Conv2d(3, 5, 3), block(nn.ConvTranspose2d(5, 4, 2)), nn.BatchNorm2d(4)]
    places = [nn.Conv2d(2, 3, 2), _Positions(3, 4, 5), nn.Conv2d(3, 2, 1)]
    return [
        Case(_Network(1, nn.Conv2d(3, 4, 3), nn.ReLU()), draw(2, 3, 5, 6)),
        Case(_Network(2, *layers), draw(2, 3, 7, 5)),
        Case(_Network(3, *upwards).eval(), draw(3, 3, 5, 6).transpose(2, 3)),
        Case(_Network(4, *places).float(), draw(1, 2, 5, 6).float()),
    ]


def _aligned(function: Callable, images: Tensor, kernel_size: int, eps: float) -> Tensor:
    """The function's filters in the order, and with the signs, of the reference's."""
    like = whitening(images, kernel_size, eps)
    filters = function(images, kernel_size, eps)
    comparable = isinstance(filters, Tensor) and filters.is_floating_point()
    if not comparable or filters.shape != like.shape:
        return filters
    like, flat = like.flatten(1), filters.detach().flatten(1).double().nan_to_num(0.0)
    cosines = F.normalize(like, dim=1) @ F.normalize(flat, dim=1).T  # (reference's, candidate's)
    order, free = [], cosines.abs()
    for row in range(len(like)):
        order.append(free[row].argmax().item())
        free[:, order[-1]] = -1
    signs = torch.where(cosines[range(len(like)), order] < 0, -1, 1).to(filters)
    return filters[order] * signs[:, None, None, None]


@check(whitening, use=_aligned, tolerance=1e-9)
def check_whitening():
    """The filters (c·k·k, c, k, k) of a whitening convolution, in any order and with any signs."""

    def case(seed, shape, kernel_size, eps):
        """Images whose neighbours are alike, in space and across channels, and not centred."""
        noise = draws(seed)(*shape)
        images = 0.6 * noise + 0.5 * noise.roll(1, 3) + 0.4 * noise.roll(1, 2)
        images = images + 0.5 * noise.mean(1, keepdim=True)
        brightness = torch.arange(1, shape[1] + 1, dtype=noise.dtype)[:, None, None]
        slope = torch.linspace(0, 1, shape[3], dtype=noise.dtype)
        return Case(images + 0.7 * brightness + slope, kernel_size, eps)

    return [
        case(1, (3, 1, 4, 5), 2, 0.1),
        case(2, (4, 3, 6, 5), 2, 0.01),
        case(3, (1, 2, 7, 9), 3, 1e-3),
        case(4, (2, 3, 5, 4), 1, 0.05),
        case(5, (2, 1, 2, 3), 2, 0.01),  # 4 patches of 4 values: one eigenvalue is 0
    ]


@check(
    one_cycle,
    tolerance=1e-12,
    forbidden={
        "OneCycleLR.__init__": """The schedule is what you build here. Compute the rate of the step
        from the formulas."""
    },
)
def check_one_cycle():
    """The learning rate of one step."""
    settings = [
        (10, 1.0, 0.3, 10.0, 10.0, "linear"),
        (10, 1.0, 0.3, 10.0, 10.0, "cos"),
        (11, 0.05),  # the peak lies at 2.3
        (12, 0.4, 0.3, 2.5, 12.5, "linear"),  # at 2.6
        (7, 3.0, 0.5, 4.0, 100.0),
        (20, 0.2, 0.8, 2.4, 50.0, "linear"),
        (9, 1.0, 0.7, 1.0, 1000.0, "cos"),
        (8, 0.65, 0.45, 7.5),
        (2, 0.3, 0.75),
    ]
    # first in order, then from the last step to the first: a rate depends on its step alone
    return [
        Case(step, *rest)
        for place, rest in enumerate(settings)
        for step in range(rest[0])[:: 1 if place < 3 else -1]
    ]


@check(flip_average, seed=7, forms=(flip_average_in_one_call,), tolerance=1e-12)
def check_flip_average(draw):
    """The mean of two predictions, (n, classes)."""

    def case(seed, images, channels, height, width, classes):
        hidden = 4 * (height - 1) * (width - 1)
        layers = [nn.Conv2d(channels, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(hidden, classes)]
        return Case(_Network(seed, *layers), draw(images, channels, height, width))

    sizes = [(2, 1, 3, 3, 3), (5, 3, 4, 6, 10), (6, 3, 5, 5, 7), (1, 2, 5, 4, 4)]
    return [case(seed, *size) for seed, size in enumerate(sizes, 1)]
