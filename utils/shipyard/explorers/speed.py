"""An explorer for the roofline: what bounds the speed of a layer on a measured machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from shipyard import plots
from shipyard.explorers.base import Explorer

BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of one number in memory, by the name of its type."""

COLOURS = {"float32": plots.BLUE, "bfloat16": plots.VERMILION}

_LABELS = {"description_width": "110px"}


@dataclass(frozen=True)
class Machine:
    """What was measured of a machine.

    Attributes:
        peaks: FLOP/s of a large matrix product, for each name in `BYTES`.
        bandwidth: bytes per second of a large copy, reading and writing counted.
    """

    peaks: Mapping[str, float]
    bandwidth: float

    def __post_init__(self) -> None:
        if set(self.peaks) != set(BYTES):
            raise ValueError(f"peaks has the names {list(self.peaks)}; expected {list(BYTES)}.")
        if not all(value > 0 for value in (*self.peaks.values(), self.bandwidth)):
            raise ValueError("peaks and bandwidth must be above 0; measure them first.")


@dataclass(frozen=True)
class Point:
    """A layer that was measured: FLOP per byte, FLOP per second, and the type of its numbers."""

    name: str
    intensity: float
    flop_per_second: float
    dtype: str = "float32"


def conv_cost(
    batch: int, side: int, channels: int, filters: int, kernel: int, dtype: str = "float32"
) -> tuple[int, int]:
    """FLOP and bytes of a convolution with stride 1 whose output is as large as its input.

    FLOP = 2 · batch · side² · filters · channels · kernel², one multiplication and one addition
    for each weight at each place. Bytes: input, weights and output, each moved once.

    Args:
        batch: images.
        side: height and width of the input and of the output.
        channels, filters: channels of the input and of the output.
        kernel: height and width of the kernel.
        dtype: a name in `BYTES`.

    Raises:
        ValueError: a size is below 1, or ``dtype`` is unknown.
    """
    if min(batch, side, channels, filters, kernel) < 1:
        raise ValueError("batch, side, channels, filters and kernel must all be at least 1.")
    if dtype not in BYTES:
        raise ValueError(f"dtype is {dtype!r}; choose one of: {', '.join(BYTES)}.")
    places = batch * side**2
    weights = filters * channels * kernel**2
    return 2 * places * weights, BYTES[dtype] * (places * (channels + filters) + weights)


def attainable(machine: Machine, intensity: float, dtype: str = "float32") -> float:
    """min(peak, intensity · bandwidth): the FLOP/s that no layer of this intensity exceeds.

    Source: S. Williams, A. Waterman and D. Patterson, "Roofline", CACM 2009.
    """
    return min(machine.peaks[dtype], intensity * machine.bandwidth)


def roofline_figure(machine: Machine, points: Sequence[Point] = ()) -> Figure:
    """The two roofs of a machine, and each point below (or, from a cache, above) them."""
    ridges = [peak / machine.bandwidth for peak in machine.peaks.values()]
    around = [*ridges, *(point.intensity for point in points)]
    intensity = np.geomspace(min(around) / 8, max(around) * 8, 200)
    with plots.style():
        figure = Figure(figsize=(7.5, 3.8), dpi=100)
        axis = figure.subplots()
        for dtype, peak in machine.peaks.items():
            roof = [attainable(machine, x, dtype) / 1e9 for x in intensity]
            label = f"roof, {dtype}: {peak / 1e9:,.0f} GFLOP/s"
            axis.loglog(intensity, roof, color=COLOURS[dtype], label=label)
        for marker, point in zip("osD^vP*Xhd" * (1 + len(points) // 10), points, strict=False):
            axis.loglog(
                point.intensity, point.flop_per_second / 1e9, marker, ms=8, ls="none", mec="white",
                color=COLOURS[point.dtype], label=f"{point.name}, {point.dtype}",
            )  # fmt: skip
        axis.set(
            xlabel="arithmetic intensity (FLOP per byte)", ylabel="GFLOP per second",
            title=f"Slope: {machine.bandwidth / 1e9:,.1f} GB per second from memory",
        )  # fmt: skip
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def conv_text(machine: Machine, dtype: str = "float32", **sizes: int) -> str:
    """What a convolution costs at least on ``machine``, and what bounds it."""
    flop, moved = conv_cost(**sizes, dtype=dtype)
    intensity = flop / moved
    bound = attainable(machine, intensity, dtype)
    reason = "arithmetic" if bound == machine.peaks[dtype] else "memory"
    return (
        f"{flop / 1e6:,.1f} million FLOP, {moved / 1e6:,.2f} million bytes: "
        f"{intensity:,.1f} FLOP per byte\n"
        f"bound by {reason}: at most {bound / 1e9:,.1f} GFLOP/s, "
        f"so at least {1e3 * flop / bound:.3f} ms"
    )


def roofline_explorer(machine: Machine) -> Explorer:
    """Choose the sizes of a convolution; see where it stands under the roofs of ``machine``."""
    powers = {"batch": (6, 0, 10), "side": (4, 0, 6), "channels": (5, 0, 10), "filters": (5, 0, 10)}
    controls = {
        name: ipywidgets.SelectionSlider(
            options=[2**power for power in range(low, high + 1)], value=2**start,
            description=name, style=_LABELS,
        )
        for name, (start, low, high) in powers.items()
    }  # fmt: skip
    controls["kernel"] = ipywidgets.SelectionSlider(
        options=[1, 3, 5, 7], value=3, description="kernel", style=_LABELS
    )
    controls["dtype"] = ipywidgets.Dropdown(
        options=list(BYTES), value="float32", description="numbers", style=_LABELS
    )

    def redraw() -> tuple[Figure, str]:
        options = {name: control.value for name, control in controls.items()}
        flop, moved = conv_cost(**options)
        dtype, intensity = options["dtype"], flop / moved
        best = Point("this layer at best", intensity, attainable(machine, intensity, dtype), dtype)
        return roofline_figure(machine, [best]), conv_text(machine, **options)

    return Explorer("shipyard-roofline-explorer", controls, redraw)
