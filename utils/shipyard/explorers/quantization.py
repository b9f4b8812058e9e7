"""The explorer of quantization: bits, scheme and range against the histogram of some weights."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from shipyard import plots
from shipyard.compression import quantization
from shipyard.explorers.base import Explorer

SHARES = [round(0.05 * step, 2) for step in range(2, 21)]  # of the largest weight


def clipped_grid(weights: Tensor, bits: int, scheme: str, share: float) -> quantization.Grid:
    """The grid that covers ``share`` of the range of ``weights``; what lies outside is clipped.

    Raises:
        ValueError: ``share`` is not above 0 and at most 1, or there is no such grid.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share:g}; it must be above 0 and at most 1.")
    if not 2 <= bits <= 8 or scheme not in quantization.SCHEMES:
        raise ValueError(
            f"There is no grid of {bits} bits with the scheme {scheme!r}: choose 2 to 8 bits, and "
            f"one of: {', '.join(quantization.SCHEMES)}."
        )
    return quantization.grid_for(share * weights.min(), share * weights.max(), bits, scheme)


def quantization_figure(
    weights: Tensor, bits: int = 4, scheme: str = "symmetric", share: float = 1.0
) -> Figure:
    """The histogram of ``weights`` over the numbers of the grid, and the error of every range.

    Raises:
        ValueError: as `clipped_grid`.
    """
    weights = weights.detach().flatten().float().cpu()
    grid = clipped_grid(weights, bits, scheme, share)
    stored = grid.dequantize(torch.arange(grid.lowest, grid.highest + 1)).tolist()
    errors = [
        quantization.sqnr(weights, clipped_grid(weights, bits, scheme, s).round(weights))
        for s in SHARES
    ]
    with plots.style():
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        left.hist(weights.numpy(), bins=120, color=plots.SKY)
        for value in stored:
            left.axvline(value, color=plots.VERMILION, linewidth=1.2 if bits < 6 else 0.5)
        left.set(xlabel="weight", ylabel="how many", yscale="log",
                 title=f"{len(stored)} numbers can be stored")  # fmt: skip
        right.plot(100 * np.array(SHARES), errors, color=plots.BLUE)
        now = quantization.sqnr(weights, grid.round(weights))
        right.plot(100 * share, now, "o", color=plots.VERMILION, markersize=8)
        right.set(xlabel="range covered (% of the full one)", ylabel="signal to noise (dB)",
                  title=f"{bits} bits, {scheme}")  # fmt: skip
    return figure


def quantization_text(
    weights: Tensor, bits: int = 4, scheme: str = "symmetric", share: float = 1.0,
    accuracy: Callable[[int, str, float], float] | None = None,
) -> str:  # fmt: skip
    """The same in words, with the accuracy of the network where a function for it is given.

    Raises:
        ValueError: as `clipped_grid`.
    """
    weights = weights.detach().flatten().float().cpu()
    grid = clipped_grid(weights, bits, scheme, share)
    rounded = grid.round(weights)
    low, high = (grid.dequantize(torch.tensor(k)).item() for k in (grid.lowest, grid.highest))
    outside = ((weights < low) | (weights > high)).double().mean().item()
    text = (
        f"step {grid.scale.item():.4f}, from {low:.3f} to {high:.3f}: {outside:.2%} are clipped\n"
        f"signal to noise: {quantization.sqnr(weights, rounded):.1f} dB"
    )
    if accuracy is None:
        return text
    return f"{text}\naccuracy with all layers like this: {accuracy(bits, scheme, share):.1%}"


def quantization_explorer(
    weights: Tensor, accuracy: Callable[[int, str, float], float] | None = None
) -> Explorer:
    """Choose bits, scheme and range; see what is stored of ``weights`` and what it costs.

    Args:
        accuracy: of the network whose weights are all treated so, as ``accuracy(bits, scheme,
            share)``.
    """
    label = {"style": {"description_width": "70px"}}
    controls = {
        "bits": ipywidgets.IntSlider(value=4, min=2, max=8, description="bits", **label),
        "scheme": ipywidgets.Dropdown(
            options=["symmetric", "affine"], value="symmetric", description="scheme", **label
        ),
        "share": ipywidgets.SelectionSlider(
            options=[(f"{s:.0%}", s) for s in SHARES], value=1.0, description="range",
            continuous_update=False, **label,
        ),
    }  # fmt: skip

    def redraw() -> tuple[Figure, str]:
        values = {name: control.value for name, control in controls.items()}
        return (
            quantization_figure(weights, **values),
            quantization_text(weights, **values, accuracy=accuracy),
        )

    return Explorer("shipyard-quantization-explorer", controls, redraw)
