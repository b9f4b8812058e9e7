"""The explorer of distributed training: what a cost model says of a cluster, up to 1,024 workers.

All figures show a model, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets
from matplotlib.figure import Figure

from shipyard import plots
from shipyard.explorers.base import Explorer

WORKERS = tuple(2**k for k in range(11))
"""1, 2, 4, … 1,024"""

AllReduceCost = Callable[[float, int, float, float], float]
"""(bytes, workers, α in seconds, β in bytes per second) → seconds of one all-reduce"""

_LABELS = {"description_width": "150px"}


@dataclass(frozen=True)
class Cluster:
    """What the model needs to know of a training and of the machines.

    ``parameters`` of the network, ``bytes_each`` of one gradient number, ``compute`` seconds of
    one step on one worker, ``latency`` α in seconds, ``bandwidth`` β in bytes per second.
    """

    parameters: float
    bytes_each: float
    compute: float
    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        for name in ("parameters", "bytes_each", "compute", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0.")
        if self.latency < 0:
            raise ValueError(f"latency is {self.latency!r}; it must not be below 0.")


def communication(cluster: Cluster, cost: AllReduceCost, workers: int) -> float:
    """Seconds of the one all-reduce of a step; 0 for one worker."""
    if workers == 1:
        return 0.0
    size = cluster.parameters * cluster.bytes_each
    return cost(size, workers, cluster.latency, cluster.bandwidth)


def speedups(
    cluster: Cluster, cost: AllReduceCost, workers: Sequence[int] = WORKERS
) -> dict[str, list[float]]:
    """Examples per second with N workers, over those of one worker.

    With C seconds of computing on one worker and T(N) seconds of communication, which do not
    overlap: strong scaling (one batch, shared) gives C / (C/N + T), weak scaling (each worker its
    own batch) N · C / (C + T).

    Returns:
        "strong" and "weak", one number for each of ``workers``.
    """
    C, T = cluster.compute, [communication(cluster, cost, n) for n in workers]
    return {
        "strong": [C / (C / n + t) for n, t in zip(workers, T, strict=True)],
        "weak": [n * C / (C + t) for n, t in zip(workers, T, strict=True)],
    }


def scaling_figure(
    cluster: Cluster, cost: AllReduceCost, workers: Sequence[int] = WORKERS
) -> Figure:
    """Speed-up against the number of workers on the left, seconds of a weak step on the right."""
    found = speedups(cluster, cost, workers)
    with plots.style():
        figure = Figure(figsize=(8.4, 3.3), dpi=100)
        left, right = figure.subplots(1, 2)
        left.loglog(workers, workers, color=plots.GREY, lw=1, ls=":", label="ideal")
        left.loglog(workers, found["weak"], "o-", color=plots.GREEN, label="weak (model)")
        left.loglog(workers, found["strong"], "o-", color=plots.BLUE, label="strong (model)")
        # One point below 1 is a loss; the axis follows it, and stops where nothing can be read.
        lowest = max(1e-3, min(0.8, min(found["strong"]) * 0.8))
        left.set(xlabel="workers N", ylabel="speed-up", ylim=(lowest, 1.5 * max(workers)))
        left.set_title("examples per second, over one worker")
        left.legend(loc="upper left")
        T = [communication(cluster, cost, n) for n in workers]
        places = range(len(workers))
        right.bar(places, [cluster.compute] * len(workers), color=plots.SKY, label="compute")
        right.bar(places, T, bottom=cluster.compute, color=plots.ORANGE, label="all-reduce")
        right.set_xticks(places, [str(n) for n in workers], fontsize=7)
        right.set(xlabel="workers N", ylabel="seconds", title="one step, weak scaling")
        right.legend(loc="lower left", frameon=True)
        for axis in (left, right):
            axis.set_title(axis.get_title(), fontsize=10)
        figure.suptitle("α–β model, not measured")
    return figure


def scaling_text(cluster: Cluster, cost: AllReduceCost, workers: Sequence[int] = WORKERS) -> str:
    """The last point of both curves, and the largest world that is still used to half."""
    found = speedups(cluster, cost, workers)
    last = workers[-1]
    share = {kind: values[-1] / last for kind, values in found.items()}
    useful = [n for n, s in zip(workers, found["strong"], strict=True) if s >= n / 2]
    size = cluster.parameters * cluster.bytes_each
    return (
        f"Model: {amount(size)}B of gradients; one all-reduce of {last:,} workers takes "
        f"{seconds(communication(cluster, cost, last))}\n"
        f"weak scaling: {found['weak'][-1]:,.1f} times one worker, efficiency {share['weak']:.0%}\n"
        f"strong scaling: {found['strong'][-1]:,.1f} times one worker, "
        f"efficiency {share['strong']:.0%}; at least 50% up to {max(useful):,} workers"
    )


def amount(value: float) -> str:
    """``value`` with three digits and k, M, G or T: 2500000 is "2.5 M"."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}"
    return f"{value:.3g} "


def seconds(value: float) -> str:
    """``value`` with three digits in s, ms or µs."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


def scaling_explorer(cost: AllReduceCost, cluster: Cluster) -> Explorer:
    """Choose network, precision and machines; see the speed-up that the model predicts.

    Args:
        cost: seconds of one all-reduce, as in `AllReduceCost`.
        cluster: where the controls start. Numbers outside the ranges of the controls start at
            the nearest end.
    """

    def slider(value: float, low: float, high: float, name: str) -> ipywidgets.FloatLogSlider:
        return ipywidgets.FloatLogSlider(
            value=min(max(value, 10**low), 10**high), base=10, min=low, max=high, step=0.1,
            description=name, readout_format=".2g", style=_LABELS,
        )  # fmt: skip

    controls = {
        "parameters": slider(cluster.parameters / 1e6, -2, 5, "parameters (millions)"),
        "precision": ipywidgets.Dropdown(
            options={"float32": 4.0, "bfloat16": 2.0}, value=cluster.bytes_each,
            description="gradients sent in", style=_LABELS,
        ),
        "compute": slider(cluster.compute * 1e3, 0, 4, "compute per step (ms)"),
        "latency": slider(cluster.latency * 1e6, 0, 4, "latency α (µs)"),
        "bandwidth": slider(cluster.bandwidth / 1e9, -2, 3, "bandwidth β (GB/s)"),
    }  # fmt: skip

    def redraw() -> tuple[Figure, str]:
        chosen = Cluster(
            parameters=controls["parameters"].value * 1e6,
            bytes_each=controls["precision"].value,
            compute=controls["compute"].value / 1e3,
            latency=controls["latency"].value / 1e6,
            bandwidth=controls["bandwidth"].value * 1e9,
        )
        return scaling_figure(chosen, cost), scaling_text(chosen, cost)

    return Explorer("shipyard-scaling-explorer", controls, redraw)
