"""The optimizer explorer: walk down a loss of two parameters, and see the path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import ipywidgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shipyard import optimizers, plots
from shipyard.explorers.base import Explorer


@dataclass(frozen=True)
class Surface:
    """A loss J(x, y) to walk on.

    Attributes:
        loss: J; takes two tensors of one shape and returns a tensor of that shape.
        start: the point (x, y) where a walk begins.
        window: (x from, x to, y from, y to), the part that is drawn.
        minima: the lowest points (x, y). J is 0 there.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    window: tuple[float, float, float, float]
    minima: tuple[tuple[float, float], ...]


SURFACES = {
    "ravine": Surface(
        lambda x, y: (x**2 + 25 * y**2) / 2,
        start=(-4.0, 1.0),
        window=(-4.6, 4.6, -1.9, 1.9),
        minima=((0.0, 0.0),),
    ),
    "Rosenbrock": Surface(
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        start=(-1.2, 1.0),
        window=(-2.0, 2.0, -1.0, 3.0),
        minima=((1.0, 1.0),),
    ),
    "Beale": Surface(
        lambda x, y: (
            (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2
        ),
        start=(1.0, 1.6),
        window=(-1.0, 4.5, -2.0, 2.0),
        minima=((3.0, 0.5),),
    ),
    "saddle": Surface(
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4,
        start=(-1.8, 0.001),
        window=(-2.1, 2.1, -1.6, 1.6),
        minima=((0.0, 1.0), (0.0, -1.0)),
    ),
}
"""Four losses by name. Sources: H. Rosenbrock, 1960; E. Beale, 1958."""


@dataclass(frozen=True)
class Optimizer:
    """A step function of `optimizers`, and how the explorer calls it.

    Attributes:
        step: the function.
        rates: a learning rate that works on each surface.
        first: the argument that the slider "momentum, β₁" sets, if any.
        second: the argument that the slider "α, β₂" sets, if any.
        colour: the colour of its path, the same in every figure.
    """

    step: Callable
    colour: str
    rates: dict[str, float] = field(default_factory=dict)
    first: str = ""
    second: str = ""


def _rates(ravine: float, rosenbrock: float, beale: float, saddle: float) -> dict[str, float]:
    return dict(zip(SURFACES, (ravine, rosenbrock, beale, saddle), strict=True))


OPTIMIZERS = {
    "gradient descent": Optimizer(
        optimizers.gradient_descent, plots.GREY, _rates(0.07, 0.002, 0.02, 0.3)
    ),
    "momentum": Optimizer(
        optimizers.sgd_momentum, plots.BLUE, _rates(0.02, 0.001, 0.003, 0.1), "momentum"
    ),
    "Nesterov": Optimizer(
        optimizers.nesterov, plots.SKY, _rates(0.02, 0.001, 0.003, 0.1), "momentum"
    ),
    "AdaGrad": Optimizer(optimizers.adagrad, plots.PINK, _rates(1.0, 1.0, 1.0, 0.5)),
    "RMSprop": Optimizer(
        optimizers.rmsprop, plots.ORANGE, _rates(0.1, 0.02, 0.1, 0.05), "", "alpha"
    ),
    "Adam": Optimizer(optimizers.adam, plots.VERMILION, _rates(0.2, 0.2, 0.2, 0.1), "β₁", "β₂"),
}
"""The optimizers by name. AdamW without decay is Adam, so it has no path of its own."""

LOST = 1e6  # a point further out than this has left for good


def walk(
    step: Callable, surface: Surface, lr: float | Tensor, steps: int, start=None,
    noise: float = 0.0, seed: int = 0, **options,
) -> Tensor:  # fmt: skip
    """The points of a walk down ``surface``, the start included: (steps + 1, 2).

    A walk that runs away ends early, at its first point that is infinite or further out
    than `LOST`.

    Args:
        step: a step function as in `optimizers`.
        lr: the learning rate, or n of them (n): then n walks go side by side, none of them ends
            early, and the result is (steps + 1, 2, n).
        start: (x, y); that of the surface by default.
        noise: standard deviation of what is added to both parts of each gradient.
        seed: of the noise.
        options: further arguments of ``step``.
    """
    generator = torch.Generator().manual_seed(seed)
    point = torch.tensor(start or surface.start, dtype=torch.float64)  # (2)
    if isinstance(lr, Tensor):
        point = point[:, None].repeat(1, len(lr))  # (2, n)
    points, state = [point], None
    for _ in range(steps):
        point.requires_grad_()
        (grad,) = torch.autograd.grad(surface.loss(*point).sum(), point)
        if noise:
            grad = grad + noise * torch.randn(grad.shape, generator=generator, dtype=grad.dtype)
        (point,), state = step([point.detach()], [grad], state, lr, **options)
        points.append(point)
        if point.dim() == 1 and not point.abs().max() < LOST:
            break
    return torch.stack([point.detach() for point in points])


def losses(surface: Surface, points: Tensor) -> Tensor:
    """J at each of the points (steps, 2) or (steps, 2, n): (steps) or (steps, n)."""
    return surface.loss(points[:, 0], points[:, 1])


@cache
def _levels(name: str) -> Tensor:
    """Which of 12 height levels each point of the window is on, y upwards: (300, 400)."""
    x_from, x_to, y_from, y_to = SURFACES[name].window
    x, y = torch.linspace(x_from, x_to, 400), torch.linspace(y_from, y_to, 300)
    root = SURFACES[name].loss(x, y[:, None]).clamp(min=0) ** 0.25  # else the walls take all levels
    return (12 * root / root.max()).floor()


def draw_surface(axis: Axes, name: str) -> None:
    """A surface from above, darker where it is higher, with stars at its minima."""
    window = SURFACES[name].window
    # A ready picture: contourf would take longer than all the rest of an explorer's figure.
    axis.imshow(
        _levels(name).numpy(), cmap="Greys", vmax=26, extent=window, origin="lower", aspect="auto"
    )
    axis.plot(*zip(*SURFACES[name].minima, strict=True), "*", color=plots.GREEN, ms=13, zorder=5)
    x_from, x_to, y_from, y_to = window
    axis.set_xticks(range(math.ceil(x_from), math.floor(x_to) + 1))
    axis.set_yticks(range(math.ceil(y_from), math.floor(y_to) + 1))
    axis.set(xlim=(x_from, x_to), ylim=(y_from, y_to), xlabel="x", ylabel="y")
    axis.grid(False)


def draw_path(axis: Axes, points: Tensor, colour: str, label: str = "") -> None:
    """A walk (steps, 2) as a line with a dot at each step, from a white dot to a large one."""
    points = points.nan_to_num(LOST).clamp(-LOST, LOST)
    size = 5 if len(points) < 120 else 2.5
    axis.plot(*points.T, ".-", color=colour, ms=size, lw=1.2, label=label or None)
    axis.plot(*points[0], "o", color="white", mec=plots.INK, ms=8, zorder=4)
    axis.plot(*points[-1], "o", color=colour, mec=plots.INK, ms=7, zorder=6)


def draw_losses(axis: Axes, name: str, walks: dict[str, Tensor], colours: dict[str, str]) -> None:
    """The loss after each step of each walk, on a logarithmic axis from 1e-8 to 1e4 at most."""
    low, high = 0, 0
    for label, points in walks.items():
        values = losses(SURFACES[name], points).nan_to_num(1e4).clamp(1e-8, 1e4).log10()
        axis.plot(values, color=colours[label], label=label, lw=1.6)
        low, high = min(low, values.min().item()), max(high, values.max().item())
    ticks = range(math.floor(low), math.ceil(high) + 1, 1 if high - low < 6 else 2)
    axis.set_yticks(ticks, [f"1e{tick:+d}" for tick in ticks])  # quicker than a log scale
    axis.set(xlabel="step", ylabel="loss J")


def paths_figure(name: str, walks: dict[str, Tensor], colours: dict[str, str]) -> Figure:
    """Walks on one surface: the paths on its contour lines, and the loss after each step.

    Args:
        name: of the surface.
        walks: label → points (steps, 2).
        colours: label → colour.
    """
    with plots.style():
        figure = Figure(figsize=(8.2, 3.5), dpi=100, layout="none")
        left = figure.add_axes((0.06, 0.14, 0.46, 0.76))
        right = figure.add_axes((0.62, 0.14, 0.36, 0.76))
        draw_surface(left, name)
        for label, points in walks.items():
            draw_path(left, points, colours[label])
        draw_losses(right, name, walks, colours)
        left.set_title(name, y=1.02)
        right.set_title("loss after each step", y=1.02)
        right.legend(loc="best" if len(walks) > 1 else "upper right")
    return figure


def explorer_walk(
    surface: str, optimizer: str, lr: float, steps: int, first: float = 0.9, second: float = 0.99
) -> Tensor:
    """The walk that the explorer shows: see `walk`.

    Args:
        surface: a name in `SURFACES`.
        optimizer: a name in `OPTIMIZERS`.
        first: momentum, or β₁; ignored where the optimizer has neither.
        second: α, or β₂; ignored where the optimizer has neither.

    Raises:
        ValueError: there is no surface or optimizer of that name, or a number is out of range.
    """
    for value, known in ((surface, SURFACES), (optimizer, OPTIMIZERS)):
        if value not in known:
            raise ValueError(f"{value!r} is unknown; choose one of: {', '.join(known)}.")
    if lr <= 0 or steps < 1 or not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(
            f"lr is {lr}, steps {steps}, momentum or β₁ {first}, α or β₂ {second}; expected "
            "lr > 0, steps >= 1, and the others from 0 to below 1."
        )
    chosen = OPTIMIZERS[optimizer]
    if chosen.first == "β₁":
        options = {"betas": (first, second)}
    else:
        pairs = ((chosen.first, first), (chosen.second, second))
        options = {name: value for name, value in pairs if name}
    return walk(chosen.step, SURFACES[surface], lr, steps, **options)


def walk_text(surface: str, points: Tensor) -> str:
    """Where a walk ended, and how far that is from the nearest minimum."""
    x, y = points[-1].tolist()
    if not math.isfinite(x + y) or max(abs(x), abs(y)) >= LOST:
        return f"It ran away: after {len(points) - 1} steps it was out of sight. Try a smaller lr."
    loss = losses(SURFACES[surface], points)[-1].item()
    gap = min(math.dist((x, y), minimum) for minimum in SURFACES[surface].minima)
    return (
        f"after {len(points) - 1} steps: x = {x:.3f}, y = {y:.3f}, loss {loss:.2e}\n"
        f"distance from the nearest minimum: {gap:.3f}"
    )


def optimizer_explorer() -> Explorer:
    """Choose a surface, an optimizer and its hyperparameters, and see where it walks."""
    label = {"style": {"description_width": "100px"}}
    surface = ipywidgets.Dropdown(options=list(SURFACES), description="surface", **label)
    optimizer = ipywidgets.Dropdown(options=list(OPTIMIZERS), description="optimizer", **label)
    lr = ipywidgets.FloatLogSlider(
        value=0.07, base=10, min=-4, max=0.5, step=0.05, description="learning rate",
        readout_format=".4f", **label,
    )  # fmt: skip
    first = ipywidgets.FloatSlider(
        value=0.9, min=0, max=0.99, step=0.01, description="momentum, β₁", **label
    )
    second = ipywidgets.FloatSlider(
        value=0.99, min=0.5, max=0.999, step=0.001, description="α, β₂",
        readout_format=".3f", **label,
    )  # fmt: skip
    steps = ipywidgets.IntSlider(value=60, min=1, max=200, description="steps", **label)
    sliders = {"lr": lr, "first": first, "second": second, "steps": steps}

    def redraw() -> tuple[Figure, str]:
        chosen = OPTIMIZERS[optimizer.value]
        first.disabled, second.disabled = not chosen.first, not chosen.second
        numbers = {name: slider.value for name, slider in sliders.items()}
        points = explorer_walk(surface.value, optimizer.value, **numbers)
        figure = paths_figure(
            surface.value, {optimizer.value: points}, {optimizer.value: chosen.colour}
        )
        return figure, walk_text(surface.value, points)

    panel = [surface, optimizer, *sliders.values()]
    explorer = Explorer("shipyard-optimizer-explorer", dict(sliders), redraw, panel)

    def choose(change) -> None:
        """A rate that is good for one optimizer on one surface is seldom good for another."""
        with explorer.hold():
            lr.value = OPTIMIZERS[optimizer.value].rates[surface.value]

    for name, choice in {"surface": surface, "optimizer": optimizer}.items():
        choice.observe(choose, names="value")
        explorer.controls[name] = choice
    return explorer
