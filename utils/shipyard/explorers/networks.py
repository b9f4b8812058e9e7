"""The explorer of hidden layers: how the border between two classes bends as units are added."""

from __future__ import annotations

from functools import lru_cache

import ipywidgets
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from shipyard import networks, plots
from shipyard.explorers.base import Explorer

ACTIVATIONS = {"ReLU": torch.relu, "tanh": torch.tanh, "none": lambda z: z}
POINTS, EDGE, GRID = 200, 2.4, 120  # of the spirals; half a side of the plane; its pixels a side
REGIONS = ListedColormap(["#CFE3F2", "#F9E0CC"])


def points() -> tuple[Tensor, Tensor]:
    """The two spirals: x (POINTS, 2), labels (POINTS)."""
    return networks.spirals(POINTS, torch.Generator().manual_seed(0))


@lru_cache(maxsize=64)  # a slider that goes back finds its network again
def fitted(units: int, activation: str = "ReLU", seed: int = 0) -> list[networks.Layer]:
    """A network with one hidden layer of ``units``, fitted to the spirals; 0: no hidden layer.

    Raises:
        ValueError: ``activation`` is not one of `ACTIVATIONS`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of: {', '.join(ACTIVATIONS)}.")
    hidden = (units,) if units else ()
    layers = networks.fit_plane(*points(), hidden, seed, activation=ACTIVATIONS[activation])
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def accuracy(units: int, activation: str = "ReLU", seed: int = 0) -> float:
    """The share of the points on the right side of the border."""
    x, labels = points()
    z = networks.mlp(x, fitted(units, activation, seed), ACTIVATIONS[activation])[:, 0]
    return ((z > 0) == labels).double().mean().item()


def draw_border(axis, units: int, activation: str = "ReLU", seed: int = 0) -> None:
    """The two sides of the border as colours, and the points on them."""
    side = torch.linspace(-EDGE, EDGE, GRID)
    plane = torch.cartesian_prod(side, side)  # (GRID², 2)
    z = networks.mlp(plane, fitted(units, activation, seed), ACTIVATIONS[activation])
    corners = (-EDGE, EDGE, -EDGE, EDGE)
    grid = (z > 0).view(GRID, GRID).T.numpy()
    axis.imshow(grid, cmap=REGIONS, vmin=0, vmax=1, origin="lower", extent=corners)
    x, labels = points()
    for label, colour in enumerate((plots.BLUE, plots.VERMILION)):
        axis.scatter(*x[labels == label].T, s=9, color=colour, label=f"class {label}")
    axis.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2], xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))
    axis.grid(False)


def borders_figure(choices: list[int], activation: str = "ReLU", seed: int = 0) -> Figure:
    """The border for several numbers of hidden units, side by side."""
    with plots.style():
        figure = Figure(figsize=(2.05 * len(choices), 2.7), dpi=100)
        for axis, units in zip(figure.subplots(1, len(choices), sharey=True), choices, strict=True):
            draw_border(axis, units, activation, seed)
            name = f"{units} hidden units" if units else "no hidden layer"
            axis.set_title(f"{name}\n{accuracy(units, activation, seed):.0%} right", fontsize=9)
            axis.set_xlabel("first number")
        figure.axes[0].set_ylabel("second number")
    return figure


def border_figure(units: int, activation: str = "ReLU", seed: int = 0) -> Figure:
    """The border, and beside it the line at which each hidden unit has its bend or middle."""
    with plots.style():
        figure = Figure(figsize=(8, 3.9), dpi=100)
        border, bends = figure.subplots(1, 2)
        for axis in (border, bends):
            draw_border(axis, units, activation, seed)
            axis.set(xlabel="first number", ylabel="second number")
        border.set_title(f"the border of {units} hidden units" if units else "no hidden layer")
        border.legend(loc="upper left", markerscale=2, frameon=True, framealpha=0.9)
        bends.set_title("where each unit is zero")
        if units:
            (weight, bias), *_ = fitted(units, activation, seed)
            for w, b in zip(weight, bias, strict=True):
                foot = -b * w / w.square().sum()  # the point of the line nearest to the middle
                other = foot + torch.stack([-w[1], w[0]])
                bends.axline(foot.tolist(), other.tolist(), color=plots.INK, lw=0.8, alpha=0.6)
    return figure


def border_text(units: int, activation: str = "ReLU", seed: int = 0) -> str:
    """How many numbers were learned, and how many points are on the right side."""
    numbers = sum(p.numel() for layer in fitted(units, activation, seed) for p in layer)
    share = accuracy(units, activation, seed)
    return (
        f"{numbers} numbers learned in 1000 steps\n"
        f"{share:.1%} of {POINTS} points on the right side (half of them by guessing)"
    )


def border_explorer() -> Explorer:
    """Choose the number of hidden units and their function, and see the border bend."""
    label = {"style": {"description_width": "100px"}}
    slow = {"continuous_update": False, **label}  # each new value trains a network
    controls = {
        "units": ipywidgets.IntSlider(value=4, min=0, max=32, description="hidden units", **slow),
        "activation": ipywidgets.Dropdown(
            options=list(ACTIVATIONS), value="ReLU", description="activation", **label
        ),
        "seed": ipywidgets.IntSlider(value=0, min=0, max=9, description="first weights", **slow),
    }

    def redraw() -> tuple[Figure, str]:
        values = {name: control.value for name, control in controls.items()}
        return border_figure(**values), border_text(**values)

    return Explorer("shipyard-border-explorer", controls, redraw)
