"""What a network costs: bytes of its file, multiplications of one example, time of one call."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from shipyard.errors import CompressionError
from shipyard.metrics import evaluation_mode
from shipyard.runtime import synchronize

BATCH_SIZES = (1, 64)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median, and the quarter of the calls below and above it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Cost:
    """What `measure` found; None stands for what was neither measured nor handed in.

    Attributes:
        size: bytes of the file.
        macs: multiplications, each with an addition, for one example.
        latency: by batch size.
    """

    size: int | None
    macs: int | None
    latency: dict[int, Latency]

    def record(self) -> dict[str, Any]:
        """The same as a dict that JSON can hold."""
        times = {str(batch): asdict(latency) for batch, latency in self.latency.items()}
        return {"size": self.size, "macs": self.macs, "latency": times}


def file_size(model: nn.Module) -> int:
    """Bytes of the file that ``torch.save(model.state_dict(), …)`` writes."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    return len(buffer.getvalue())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply–accumulate operations of convolutions and matrix products for ``example``.

    One MAC is a multiplication and an addition: half of what torch's FlopCounterMode counts.
    Batch norm, activations and pooling are left out, as they are a small part, and a product with
    a stored zero counts like any other, because a dense kernel computes it.

    Args:
        example: one batch; the count is for all of it.
    """
    with evaluation_mode(model), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // 2


def latencies(
    runs: Mapping[str, Callable[[Any], Any]],
    batch: Any,
    *,
    seconds: float = 0.3,
    least: int = 5,
) -> dict[str, Latency]:
    """How long each of ``runs`` takes for ``batch``.

    The calls go in turns, one of each, so that whatever else the machine does in the meantime
    hits all of them alike. One call of each goes before, and does not count.

    Args:
        runs: modules (called in eval mode, without gradients), or any function of a batch, such as
            ``lambda x: session.run(None, {"images": x})``.
        batch: handed to each of them as it is.
        seconds: at least as long is spent on each.
        least: at least so many calls of each.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for call in runs.values():
        _seconds_of(call, batch)
    while any(sum(t) < seconds or len(t) < least for t in times.values()):
        for name, call in runs.items():
            times[name].append(_seconds_of(call, batch))
    return {name: _summary(values) for name, values in times.items()}


def measure_all(
    runs: Mapping[str, Callable[[Any], Any]],
    batch: Any,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    sizes: Mapping[str, int] | None = None,
    macs: Mapping[str, int] | None = None,
    seconds: float = 0.3,
) -> dict[str, Cost]:
    """The `Cost` of each of ``runs``, with their calls in turns.

    Args:
        runs: modules, or functions of a batch.
        batch: tensor or array; its first n examples are the batch of size n.
        batch_sizes: the latency is measured for each.
        sizes, macs: of functions; those of a module are found from the module.
        seconds: spent on each of ``runs`` at each batch size, at least.

    Raises:
        CompressionError: ``batch`` holds too few examples.
    """
    if len(batch) < max(batch_sizes):
        raise CompressionError(
            f"The batch holds {len(batch)} examples; to measure a batch of {max(batch_sizes)}, "
            "hand in as many."
        )
    found = {n: latencies(runs, batch[:n], seconds=seconds) for n in batch_sizes}
    costs = {}
    for name, run in runs.items():
        size, work = (sizes or {}).get(name), (macs or {}).get(name)
        if isinstance(run, nn.Module):
            size = file_size(run) if size is None else size
            work = count_macs(run, batch[:1]) if work is None else work
        costs[name] = Cost(size, work, {n: found[n][name] for n in batch_sizes})
    return costs


def measure(
    run: Callable[[Any], Any],
    batch: Any,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    size: int | None = None,
    macs: int | None = None,
    seconds: float = 0.3,
) -> Cost:
    """The `Cost` of one network: a module, or a function of a batch with its ``size`` and ``macs``.

    To compare networks use `measure_all`, which measures them in turns.

    Raises:
        CompressionError: as `measure_all`.
    """
    given = {"sizes": size, "macs": macs}
    options = {name: {"run": value} for name, value in given.items() if value is not None}
    return measure_all(
        {"run": run}, batch, batch_sizes=batch_sizes, seconds=seconds, **options
    )["run"]  # fmt: skip


def _seconds_of(run: Callable[[Any], Any], batch: Any) -> float:
    device = batch.device if isinstance(batch, Tensor) else "cpu"
    with evaluation_mode(run) if isinstance(run, nn.Module) else nullcontext():
        synchronize(device)
        begin = time.perf_counter()
        run(batch)
        synchronize(device)
        return time.perf_counter() - begin


def _summary(seconds: Sequence[float]) -> Latency:
    low, median, high = (1e3 * t for t in statistics.quantiles(seconds, n=4))
    return Latency(median, low, high)
