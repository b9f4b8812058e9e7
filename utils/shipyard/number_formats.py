"""How numbers are stored while a network trains, and which way is the fastest here.

bfloat16 is fast where the processor has instructions for it (AMX, AVX-512 with bf16, a GPU), and
ten times slower than float32 where it has not. So formats are tried on a few images first, and a
format that cannot win is given up there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shipyard.runtime import synchronize


@dataclass(frozen=True)
class NumberFormat:
    """The type that convolutions compute in, and the order of the values in memory."""

    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        order = "channels_last" if self.memory_format is torch.channels_last else "channels_first"
        return f"{str(self.dtype).removeprefix('torch.')}, {order}"

    @property
    def autocast(self) -> torch.dtype | None:
        """The argument of `training.fit`: None for float32."""
        return None if self.dtype is torch.float32 else self.dtype

    def computing(self, device: torch.device | str) -> torch.autocast:
        """``with number_format.computing(device):`` computes in this type."""
        kind = torch.device(device).type
        return torch.autocast(kind, self.autocast, enabled=self.autocast is not None)


# In the order in which they are tried: what is likely to be fast everywhere comes first.
NUMBER_FORMATS = tuple(
    NumberFormat(dtype, order)
    for dtype in (torch.float32, torch.bfloat16)
    for order in (torch.channels_last, torch.contiguous_format)
)
FEW = (2, 16)  # images in the passes that decide; batch norm wants two at least
_found: dict[tuple, NumberFormat] = {}  # what `fastest_format` learned in this process


def seconds_of_a_pass(model: nn.Module, images: Tensor, number_format: NumberFormat) -> float:
    """Seconds of one forward and backward pass; ``images`` lie in memory as the format says."""
    synchronize(images.device)
    begin = time.perf_counter()
    with number_format.computing(images.device):
        loss = model(images).float().square().mean()
    loss.backward()
    synchronize(images.device)
    return time.perf_counter() - begin


def time_formats(
    model: nn.Module,
    images: Tensor,
    formats: Sequence[NumberFormat] = NUMBER_FORMATS,
    repeats: int = 3,
) -> dict[NumberFormat, float]:
    """Seconds of one forward and backward pass of ``model`` on ``images``, for each format.

    The first pass of each format is not counted: it sets kernels up. Of ``repeats`` more, the
    fastest counts, because whatever else runs on the machine can only make a pass slower. The
    model, its gradients and its mode are as before afterwards.

    Args:
        model: on the device of ``images``.
        images: (batch, channels, height, width), a batch as in the training.
    """
    with _untouched(model):
        return {f: min(_passes(model, images, f, repeats + 1)[1:]) for f in formats}


def fastest_format(
    model: nn.Module,
    images: Tensor,
    formats: Sequence[NumberFormat] = NUMBER_FORMATS,
    allowance: float = math.inf,
) -> NumberFormat:
    """The format with the shortest pass on this machine: measured, not guessed, and soon.

    All formats run on 2 images, those that are left on 16, twice each time. A format
    is given up when both passes took more than twice as long as the best with as many images. What
    was found is kept for the process: the same network on images of the same size, with the
    same formats, device and number of threads, is not timed again.

    Args:
        model: on the device of ``images``; left as it was.
        images: (batch, channels, height, width), as in the training; only the first are used.
        allowance: seconds. A round that is likely to go beyond it is left out, and no pass
            begins after it.
    """
    shapes = tuple(tuple(p.shape) for p in model.parameters())
    key = (type(model), shapes, tuple(images.shape[1:]), images.device, tuple(formats),
           torch.get_num_threads())  # fmt: skip
    if key not in _found:
        _found[key] = _tournament(model, images, list(formats), allowance)
    return _found[key]


def _tournament(
    model: nn.Module, images: Tensor, left: list[NumberFormat], allowance: float
) -> NumberFormat:
    """Rounds with more and more images, until one format is left or the time is used up."""
    end = time.perf_counter() + allowance
    best: dict[NumberFormat, float] = {}
    before = 0
    with _untouched(model):
        for few in sorted({min(few, len(images)) for few in FEW}):
            likely = 3 * sum(best.values()) * few / max(before, 1)  # two passes and the set-up
            if len(left) == 1 or time.perf_counter() + likely > end:
                break
            best = {}
            for number_format in left:
                if passes := _passes(model, images[:few], number_format, 2, end):
                    best[number_format] = min(passes)
            limit, before = 2 * min(best.values(), default=math.inf), few
            left = [f for f in sorted(best, key=best.get) if best[f] <= limit] or left
    return left[0]


def _passes(
    model: nn.Module, images: Tensor, number_format: NumberFormat, n: int, end: float = math.inf
) -> list[float]:
    """Seconds of ``n`` passes; of fewer, where another one would not be over at ``end``."""
    model.to(memory_format=number_format.memory_format)
    images = images.to(memory_format=number_format.memory_format)
    seconds = []
    while len(seconds) < n and time.perf_counter() + sum(seconds[-1:]) < end:
        seconds.append(seconds_of_a_pass(model, images, number_format))
    return seconds


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Train mode inside; afterwards weights, statistics, gradients and mode are as before."""
    states = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    was_training = model.training
    try:
        model.train()
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
        model.load_state_dict(states)
        model.train(was_training)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
