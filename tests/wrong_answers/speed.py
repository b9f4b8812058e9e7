"""Wrong answers on training faster, and other correct ones."""

import copy
import itertools
import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from shipyard import models
from wrong_answers import Task, but

TASKS = {
    "time_to_accuracy": (TIME_TO_ACCURACY := Task()),
    "roofline": (ROOFLINE := Task()),
    "strides": (STRIDES := Task()),
    "channels_last": (CHANNELS_LAST := Task()),
    "whitening": (WHITENING := Task()),
    "one_cycle": (ONE_CYCLE := Task()),
    "flip_average": (FLIP_AVERAGE := Task()),
}
LAST = torch.channels_last


# Time to accuracy.


@TIME_TO_ACCURACY.passes
def with_numpy(runs, target, preparation=0.0):
    times = []
    for run in runs:
        train, _, accuracy = np.array(run).T
        reached = accuracy >= target
        times.append(np.cumsum(train)[reached.argmax()] if reached.any() else np.inf)
    return preparation + np.median(times)


@TIME_TO_ACCURACY.passes
def with_accumulate(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clocks = itertools.accumulate((t for t, _, _ in run), initial=preparation)
        reached = [a >= target for _, _, a in run]
        times.append([*clocks][reached.index(True) + 1] if any(reached) else math.inf)
    return statistics.median(times)


TIME_TO_ACCURACY.fails_with("never-is-not-infinite", but(with_accumulate, "math.inf", "0.0"))
TIME_TO_ACCURACY.fails_with(
    "target-met-otherwise", but(with_accumulate, "a >= target", "a >= target - 1e-6")
)


# The roofline.


@ROOFLINE.passes
def from_tensors(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    images, weight = torch.zeros(images_shape), torch.zeros(weight_shape)
    output = F.conv2d(images, weight)
    moved = sum(t.numel() for t in (images, weight, output)) * bytes_per_value
    flops = 2 * output.numel() * weight[0].numel()
    attainable = bandwidth * (flops / moved)
    return [flops, moved, attainable if attainable < peak else peak]


ROOFLINE.fails_with("multiply-add-counted-once", but(from_tensors, "flops = 2 *", "flops ="))
ROOFLINE.fails_with("intensity-upside-down", but(from_tensors, "flops / moved", "moved / flops"))


@ROOFLINE.passes
def by_times(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    """The longer of the two times decides."""
    (n, _, h, w), (c_out, _, k, _) = images_shape, weight_shape
    outputs = n * c_out * (h - k + 1) * (w - k + 1)
    flops = 2 * outputs * math.prod(weight_shape[1:])
    moved = bytes_per_value * (math.prod(images_shape) + math.prod(weight_shape) + outputs)
    return flops, moved, flops / max(flops / peak, moved / bandwidth)


@ROOFLINE.forbids
def asks_the_counter(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    with FlopCounterMode(display=False) as counter:
        F.conv2d(torch.zeros(images_shape), torch.zeros(weight_shape))
    answer = from_tensors(images_shape, weight_shape, bytes_per_value, peak, bandwidth)
    return counter.get_total_flops(), *answer[1:]


# Strides.


@STRIDES.passes
def walks_from_the_fastest_axis(shape, channels_last=False):
    strides, step = [0] * 4, 1
    for axis in (1, 3, 2, 0) if channels_last else (3, 2, 1, 0):
        strides[axis] = step
        step *= shape[axis]
    return strides


STRIDES.fails_with(
    "counted-in-bytes", but(walks_from_the_fastest_axis, "step = [0] * 4, 1", "step = [0] * 4, 4")
)
STRIDES.fails_with(
    "layouts-mixed-up", but(walks_from_the_fastest_axis, "if channels_last", "if not channels_last")
)


@STRIDES.passes
def multiplies_the_faster_axes(shape, channels_last=False):
    slow_to_fast = [0, 2, 3, 1] if channels_last else [0, 1, 2, 3]
    faster = [slow_to_fast[slow_to_fast.index(axis) + 1 :] for axis in range(4)]
    return tuple(math.prod(shape[axis] for axis in axes) for axes in faster)


@STRIDES.forbids
def asks_torch_for_them(shape, channels_last=False):
    layout = LAST if channels_last else torch.contiguous_format
    return torch.empty(shape, memory_format=layout, device="meta").stride()


# channels_last.


@CHANNELS_LAST.passes
def copies_both(model, images):
    copied = copy.deepcopy(model).to(memory_format=LAST)
    return copied, images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@CHANNELS_LAST.passes
def converts_with_contiguous(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=LAST)
    return [model, images.contiguous(memory_format=LAST)]


CHANNELS_LAST.fails_with("axes-permuted", but(copies_both, ".permute(0, 3, 1, 2)", ""))
CHANNELS_LAST.fails_with(
    "half-converted",
    but(converts_with_contiguous, "parameter.data = parameter", "parameter = parameter"),
)


@CHANNELS_LAST.fails_with("wrong-values")
def looks_at_the_output_first(model, images):
    model(images)  # a batch norm takes note of these images
    return copies_both(model, images)


# Whitening.


@WHITENING.passes
def with_numpy_eigenvectors(images, kernel_size, eps):
    """eps added to the diagonal, which adds it to every eigenvalue; another order and sign."""
    patches = F.unfold(images, kernel_size).permute(1, 0, 2).flatten(1)  # (c·k·k, patches)
    Σ = np.atleast_2d(np.cov(patches, ddof=0))
    λ, V = np.linalg.eigh(Σ + eps * np.eye(len(Σ)))
    filters = torch.from_numpy(V @ np.diag(λ**-0.5)).T.flip(0)
    return filters.reshape(-1, images.shape[1], kernel_size, kernel_size)


WHITENING.fails_with("divided-by-n-minus-1", but(with_numpy_eigenvectors, "ddof=0", "ddof=1"))
WHITENING.fails_with("zca", but(with_numpy_eigenvectors, "λ**-0.5)).T.flip(0)", "λ**-0.5) @ V.T)"))


WHITENING.passes(models.whitening_filters)


# The one-cycle schedule.


@ONE_CYCLE.passes
def interpolates_with_numpy(
    step, total, max_lr, share=0.3, div=25.0, div_again=1e4, strategy="cos"
):
    peak, last = share * total - 1, total - 1
    low, final = max_lr / div, max_lr / (div * div_again)
    if strategy == "linear":
        return np.interp(step, [0, peak, last], [low, max_lr, final])
    phase = np.interp(step, [0, peak, last], [-math.pi, 0, math.pi])
    floor = low if step <= peak else final
    return floor + (max_lr - floor) * (1 + np.cos(phase)) / 2


ONE_CYCLE.fails_with(
    "peak-rounded",
    but(interpolates_with_numpy, "= share * total - 1,", "= round(share * total) - 1,"),
)
ONE_CYCLE.fails_with(
    "one-step-off",
    but(interpolates_with_numpy, "share * total - 1, total - 1", "share * total, total"),
)


@ONE_CYCLE.passes
def share_of_the_high_rate(
    step, total_steps, max_lr, pct_start=0.3, div_factor=25.0, final_div_factor=1e4, strategy="cos"
):
    peak, last = pct_start * total_steps - 1, total_steps - 1
    rising = step < peak
    share = step / peak if rising else (last - step) / (last - peak)
    share = math.sin(math.pi / 2 * share) ** 2 if strategy == "cos" else share
    low = max_lr / div_factor / (1 if rising else final_div_factor)
    return torch.lerp(*torch.tensor([low, max_lr], dtype=torch.float64), share)


@ONE_CYCLE.fails_with("wrong-values")
def counts_its_own_calls(step, total_steps, *rest, calls=itertools.count()):  # noqa: B008
    return share_of_the_high_rate(next(calls) % total_steps, total_steps, *rest)


@ONE_CYCLE.forbids
def asks_torch(step, total_steps, max_lr, *rest):
    names = ("pct_start", "div_factor", "final_div_factor", "anneal_strategy")
    options = dict(zip(names, rest, strict=False)) | {"cycle_momentum": False}
    optimizer = torch.optim.SGD([torch.zeros(1)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps, **options)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    return schedule.get_last_lr()[0]


# Test-time flip.


@FLIP_AVERAGE.passes
def mirrors_with_indices(model, images):
    columns = range(images.shape[3] - 1, -1, -1)
    with torch.no_grad():
        return torch.lerp(model(images), model(images[..., list(columns)]), 0.5)


FLIP_AVERAGE.fails_with(
    "wrong-pairs", but(mirrors_with_indices, "list(columns)])", "list(columns)].flip(0))")
)
FLIP_AVERAGE.fails_with(
    "no-mirror-image",
    but(mirrors_with_indices, "images[..., list(columns)]", "torch.fliplr(images)"),
)
