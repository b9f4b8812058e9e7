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
from wrong_answers import Task

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
def with_numpy(runs, target, preparation=0.0, never=np.inf):
    times = []
    for run in runs:
        train, _, accuracy = np.array(run).T
        reached = accuracy >= target
        times.append(np.cumsum(train)[reached.argmax()] if reached.any() else never)
    return preparation + np.median(times)


@TIME_TO_ACCURACY.fails_with("never-is-not-infinite")
def counts_failures_as_zero(runs, target, preparation=0.0):
    return with_numpy(runs, target, preparation, never=-preparation)


@TIME_TO_ACCURACY.fails_with("target-met-otherwise")
def takes_what_is_close(runs, target, preparation=0.0):
    return with_accumulate(runs, target - 1e-6, preparation)


@TIME_TO_ACCURACY.passes
def with_accumulate(runs, target, preparation=0.0):
    times = []
    for run in runs:
        clocks = itertools.accumulate((t for t, _, _ in run), initial=preparation)
        reached = [a >= target for _, _, a in run]
        times.append([*clocks][reached.index(True) + 1] if any(reached) else math.inf)
    return statistics.median(times)


# The roofline.


@ROOFLINE.passes
def from_tensors(images_shape, weight_shape, bytes_per_value, peak, bandwidth, products=2):
    images, weight = torch.zeros(images_shape), torch.zeros(weight_shape)
    output = F.conv2d(images, weight)
    moved = sum(t.numel() for t in (images, weight, output)) * bytes_per_value
    flops = products * output.numel() * weight[0].numel()
    attainable = bandwidth * (flops / moved)
    return [flops, moved, attainable if attainable < peak else peak]


@ROOFLINE.passes
def by_times(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    """The longer of the two times decides."""
    (n, _, h, w), (c_out, _, k, _) = images_shape, weight_shape
    outputs = n * c_out * (h - k + 1) * (w - k + 1)
    flops = 2 * outputs * math.prod(weight_shape[1:])
    moved = bytes_per_value * (math.prod(images_shape) + math.prod(weight_shape) + outputs)
    return flops, moved, flops / max(flops / peak, moved / bandwidth)


@ROOFLINE.fails_with("multiply-add-counted-once")
def counts_macs(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    return from_tensors(images_shape, weight_shape, bytes_per_value, peak, bandwidth, products=1)


@ROOFLINE.fails_with("not-a-speed")
def waits_before_it_computes(images_shape, weight_shape, bytes_per_value, peak, bandwidth):
    flops, moved, _ = by_times(images_shape, weight_shape, bytes_per_value, 1, 1)
    return flops, moved, 1 / (1 / peak + moved / flops / bandwidth)


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


@STRIDES.passes
def multiplies_the_faster_axes(shape, channels_last=False):
    slow_to_fast = [0, 2, 3, 1] if channels_last else [0, 1, 2, 3]
    faster = [slow_to_fast[slow_to_fast.index(axis) + 1 :] for axis in range(4)]
    return tuple(math.prod(shape[axis] for axis in axes) for axes in faster)


@STRIDES.fails_with("order-of-memory")
def gives_them_in_memory_order(shape, channels_last=False):
    n, c, h, w = shape
    return walks_from_the_fastest_axis((n, h, w, c) if channels_last else shape)


@STRIDES.fails_with("counted-in-bytes")
def asks_numpy(shape, channels_last=False):
    x = torch.zeros(shape)
    return (x.to(memory_format=LAST) if channels_last else x).numpy().strides


@STRIDES.forbids
def asks_torch_for_them(shape, channels_last=False):
    layout = LAST if channels_last else torch.contiguous_format
    return torch.empty(shape, memory_format=layout, device="meta").stride()


# channels_last.


@CHANNELS_LAST.passes
def converts_with_contiguous(model, images):
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=LAST)
    return [model, images.contiguous(memory_format=LAST)]


@CHANNELS_LAST.passes
def copies_both(model, images):
    copied = copy.deepcopy(model).to(memory_format=LAST)
    return copied, images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


@CHANNELS_LAST.fails_with("layers-missed")
def looks_for_convolutions(model, images):
    def convert(layer):
        if type(layer) is torch.nn.Conv2d:
            layer.weight.data = layer.weight.data.to(memory_format=LAST)

    return model.apply(convert), images.to(memory_format=LAST)


@CHANNELS_LAST.fails_with("model-not-converted")
def converts_names_not_weights(model, images):
    for parameter in model.parameters():
        parameter = parameter.to(memory_format=torch.preserve_format)
    return model, images.to(memory_format=LAST)


@CHANNELS_LAST.fails_with("wrong-values")
def looks_at_the_output_first(model, images):
    model(images)  # a batch norm takes note of these images
    return copies_both(model, images)


# Whitening.


@WHITENING.passes
def with_numpy_eigenvectors(images, kernel_size, eps, correction=0):
    """eps added to the diagonal, which adds it to every eigenvalue; another order and sign."""
    patches = F.unfold(images, kernel_size).permute(1, 0, 2).flatten(1)  # (c·k·k, patches)
    Σ = np.atleast_2d(np.cov(patches, ddof=correction))
    λ, V = np.linalg.eigh(Σ + eps * np.eye(len(Σ)))
    filters = torch.from_numpy(V @ np.diag(λ**-0.5)).T.flip(0)
    return filters.reshape(-1, images.shape[1], kernel_size, kernel_size)


WHITENING.passes(models.whitening_filters)


@WHITENING.fails_with("divided-by-n-minus-1")
def takes_the_default_of_cov(images, kernel_size, eps):
    return with_numpy_eigenvectors(images, kernel_size, eps, correction=1)


@WHITENING.fails_with("part-of-the-covariance")
def whitens_each_channel(images, kernel_size, eps):
    c, k = images.shape[1], kernel_size
    own = [models.whitening_filters(images[:, [i]], k, eps).flatten(1) for i in range(c)]
    return torch.block_diag(*own).reshape(-1, c, k, k)


# The one-cycle schedule.


def settings(pct_start=0.3, div_factor=25.0, final_div_factor=1e4, anneal_strategy="cos"):
    return pct_start, div_factor, final_div_factor, anneal_strategy


@ONE_CYCLE.passes
def interpolates_with_numpy(step, total_steps, max_lr, *rest, first=-1, peak=None):
    share, divide, divide_again, strategy = settings(*rest)
    peak, last = peak or share * total_steps + first, total_steps + first
    low, final = max_lr / divide, max_lr / (divide * divide_again)
    if strategy == "linear":
        return np.interp(step, [0, peak, last], [low, max_lr, final])
    phase = np.interp(step, [0, peak, last], [-math.pi, 0, math.pi])
    floor = low if step <= peak else final
    return floor + (max_lr - floor) * (1 + np.cos(phase)) / 2


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


@ONE_CYCLE.fails_with("peak-rounded")
def peaks_at_a_whole_step(step, total_steps, *rest):
    peak = round(settings(*rest[1:])[0] * total_steps) - 1
    return interpolates_with_numpy(step, total_steps, *rest, peak=peak)


@ONE_CYCLE.fails_with("one-step-late")
def counts_both_from_one(*settings):
    return interpolates_with_numpy(*settings, first=0)


@ONE_CYCLE.fails_with("wrong-values")
def counts_its_own_calls(step, total_steps, *rest, calls=itertools.count()):  # noqa: B008
    return share_of_the_high_rate(next(calls) % total_steps, total_steps, *rest)


@ONE_CYCLE.forbids
def asks_torch(step, total_steps, max_lr, *rest):
    names = ("pct_start", "div_factor", "final_div_factor", "anneal_strategy")
    options = dict(zip(names, settings(*rest), strict=True))
    optimizer = torch.optim.Adam([torch.zeros(1)])
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


@FLIP_AVERAGE.fails_with("wrong-pairs")
def pairs_neighbours(model, images):
    logits = model(torch.cat([images, images.flip(3)]))
    return (logits[::2] + logits[1::2]) / 2


FLIP_AVERAGE.fails_with(
    "no-mirror-image", lambda model, images: (model(images) + model(torch.fliplr(images))) / 2
)
