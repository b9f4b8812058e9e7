"""Explorers of convolution: a kernel, the size of the output, and pooling."""

from __future__ import annotations

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from shipyard import convolution, plots
from shipyard.explorers.base import Explorer

KERNELS = {
    "identity": torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "blur": torch.ones(3, 3) / 9,
    "Gaussian": torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
    "sharpen": torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "edges": torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "emboss": torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]]),
    "Sobel x": torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "Sobel y": torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]]),
}
"""3×3 kernels from image processing, by name, for cross-correlation (no flip)."""

DIVISORS = {"blur": 9, "Gaussian": 16}
"""What to divide by so that the explorer can write a kernel in whole numbers."""

POOLING = {
    "max": (convolution.max_pool2d, float("-inf")),
    "average": (convolution.avg_pool2d, 0.0),
}
"""Pooling by name: the function, and what its padding counts as."""

_LABELS = {"description_width": "80px"}


def _slider(name: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value=value, min=low, max=high, description=name, style=_LABELS)


# --- the kernel explorer ------------------------------------------------------------------------


def apply_kernel(
    image: Tensor, kernel: Tensor, stride: int = 1, padding: int = 1, dilation: int = 1
) -> Tensor:
    """The cross-correlation of one grey picture (height, width) with one kernel.

    Raises:
        ValueError: a shape is not (height, width), or the kernel does not fit into the picture.
    """
    for name, value in (("image", image), ("kernel", kernel)):
        if value.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected (height, width).")
    kernel = kernel.to(image.dtype)
    return convolution.conv2d(
        image[None, None], kernel[None, None], None, stride, padding, dilation
    )[0, 0]


def kernel_figure(
    image: Tensor, kernel: Tensor, stride: int = 1, padding: int = 1, dilation: int = 1
) -> Figure:
    """The picture, the kernel with its numbers, and the picture after it.

    A kernel whose weights sum to zero answers with a sign: blue is negative, white is zero, orange
    is positive. Any other result is shown as brightness, cut to 0…1.

    Args:
        image: (height, width), grey values from 0 to 1.
        kernel: (kernel height, kernel width).
    """
    result = apply_kernel(image, kernel, stride, padding, dilation)
    with plots.style():
        figure = Figure(figsize=(8.0, 3.1), dpi=100, layout="none")
        before = figure.add_axes((0.01, 0.02, 0.37, 0.86))
        before.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        before.set_title(f"before, {image.shape[0]} × {image.shape[1]}")
        middle = figure.add_axes((0.41, 0.2, 0.18, 0.5))
        limit = 1.6 * (float(kernel.abs().max()) or 1.0)
        middle.imshow(kernel.numpy(), cmap=plots.DIVERGING, vmin=-limit, vmax=limit)
        for (i, j), weight in np.ndenumerate(kernel.numpy()):
            middle.text(j, i, plots.number(weight), ha="center", va="center", fontsize=10)
        middle.set_title("kernel")
        after = figure.add_axes((0.62, 0.02, 0.37, 0.86))
        shown = f"after, {result.shape[0]} × {result.shape[1]}"
        if abs(float(kernel.sum())) < 1e-6:
            limit = plots.signed_limit(result)
            after.imshow(result.numpy(), cmap=plots.DIVERGING, vmin=-limit, vmax=limit)
            shown += " (signed)"
        else:
            after.imshow(result.numpy(), cmap="gray", vmin=0, vmax=1)
        after.set_title(shown)
        for axis in (before, middle, after):
            axis.axis("off")
    return figure


def kernel_text(
    image: Tensor, kernel: Tensor, stride: int = 1, padding: int = 1, dilation: int = 1
) -> str:
    """The output size, how it was computed, the sum of the kernel and the range of the result."""
    result = apply_kernel(image, kernel, stride, padding, dilation)
    height, width = image.shape
    rows = size_formula(height, kernel.shape[0], stride, padding, dilation)
    columns = size_formula(width, kernel.shape[1], stride, padding, dilation)
    return (
        f"height: {rows}\nwidth: {columns}\n"
        f"output: {result.shape[0]} × {result.shape[1]}, values from "
        f"{plots.number(result.min())} to {plots.number(result.max())}; "
        f"the kernel's weights sum to {plots.number(kernel.sum())}"
    )


def kernel_explorer(image: Tensor) -> Explorer:
    """Choose or edit a 3×3 kernel, stride, padding and dilation, and see the picture after it.

    Args:
        image: (height, width), grey values from 0 to 1.
    """
    own = "your own"
    name = ipywidgets.Dropdown(
        options=[*KERNELS, own], value="Sobel x", description="kernel", style=_LABELS
    )
    cells = [
        ipywidgets.FloatText(
            step=0.5,
            layout=ipywidgets.Layout(width="72px"),
            tooltip=f"weight in row {i // 3 + 1}, column {i % 3 + 1}",
        )
        for i in range(9)
    ]
    divisor = ipywidgets.FloatText(
        value=1, description="divided by", style=_LABELS, layout=ipywidgets.Layout(width="170px")
    )
    stride, padding, dilation = (
        _slider("stride", 1, 1, 8),
        _slider("padding", 1, 0, 8),
        _slider("dilation", 1, 1, 8),
    )

    def fill_in(chosen: str) -> None:
        divisor.value = DIVISORS.get(chosen, 1)
        for cell, weight in zip(cells, KERNELS[chosen].flatten().tolist(), strict=True):
            cell.value = round(weight * divisor.value, 6)

    def redraw() -> tuple[Figure, str]:
        if divisor.value == 0:
            raise ValueError("The kernel cannot be divided by 0; use 1 to leave it as it is.")
        kernel = torch.tensor([cell.value for cell in cells]).reshape(3, 3) / divisor.value
        same = [known for known, weight in KERNELS.items() if torch.allclose(weight, kernel)]
        name.value = same[0] if same else own
        options = (image, kernel, stride.value, padding.value, dilation.value)
        return kernel_figure(*options), kernel_text(*options)

    fill_in(name.value)
    grid = ipywidgets.GridBox(
        cells,
        layout=ipywidgets.Layout(grid_template_columns="repeat(3, 80px)", margin="0 0 0 40px"),
    )
    weights = {f"weight {i}": cell for i, cell in enumerate(cells)}
    sliders = {"stride": stride, "padding": padding, "dilation": dilation}
    explorer = Explorer(
        "shipyard-kernel-explorer",
        {**weights, "divisor": divisor, **sliders},
        redraw,
        panel=[name, grid, divisor, *sliders.values()],
    )

    def choose(change) -> None:
        if change.new != own and not explorer.held:
            with explorer.hold():
                fill_in(change.new)

    name.observe(choose, names="value")
    explorer.controls["kernel"] = name
    return explorer


# --- the pooling explorer -----------------------------------------------------------------------


def small_grid(image: Tensor, size: int = 8) -> Tensor:
    """A picture (height, width) as ``size`` × ``size`` whole numbers, darkest 0, brightest 9."""
    if image.ndim != 2:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (height, width).")
    grid = F.adaptive_avg_pool2d(image[None, None].float(), size)[0, 0]
    return ((grid - grid.min()) / (grid.max() - grid.min()).clamp(min=1e-6) * 9).round()


def pool(
    grid: Tensor, mode: str, kernel_size: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """(the padded grid, the pooled grid) for one channel (height, width).

    Raises:
        ValueError: ``mode`` is neither "max" nor "average", or the window does not fit.
    """
    if mode not in POOLING:
        raise ValueError(f"mode is {mode!r}; choose one of: {', '.join(POOLING)}.")
    function, filling = POOLING[mode]
    pooled = function(grid[None, None], kernel_size, stride, padding)[0, 0]
    return convolution.pad(grid[None, None], padding, filling)[0, 0], pooled


def pooling_figure(
    grid: Tensor, mode: str = "max", kernel_size: int = 2, stride: int = 2, padding: int = 0,
    position: int = 0,
) -> Figure:  # fmt: skip
    """The numbers before and after pooling, with frames round window ``position`` and its result.

    Windows are counted row by row from 0. A grey frame separates the input from the padding.
    """
    padded, pooled = pool(grid, mode, kernel_size, stride, padding)
    row, column = _window(pooled, position)
    window = (row * stride, column * stride, kernel_size, kernel_size, plots.VERMILION)
    border = [(padding, padding, *grid.shape, plots.GREY)] if padding else []
    return plots.number_grids(
        [padded, pooled],
        [
            f"input, {grid.shape[0]} × {grid.shape[1]}",
            f"{mode}, {' × '.join(map(str, pooled.shape))}",
        ],
        symbols=["→"],
        marks={0: [*border, window], 1: [(row, column, 1, 1, plots.VERMILION)]},
    )


def pooling_text(
    grid: Tensor, mode: str = "max", kernel_size: int = 2, stride: int = 2, padding: int = 0,
    position: int = 0,
) -> str:  # fmt: skip
    """The window's place, its numbers and its result; and how the output size comes about."""
    padded, pooled = pool(grid, mode, kernel_size, stride, padding)
    row, column = _window(pooled, position)
    top, left = row * stride, column * stride
    inside = padded[top : top + kernel_size, left : left + kernel_size].flatten()
    values = ", ".join(plots.number(value) for value in inside)
    return (
        f"position {position} (of 0 to {pooled.numel() - 1}): {mode} of ({values}) = "
        f"{plots.number(pooled[row, column])}\n"
        f"output height: {size_formula(grid.shape[0], kernel_size, stride, padding)}"
    )


def _window(pooled: Tensor, position: int) -> tuple[int, int]:
    if not 0 <= position < pooled.numel():
        raise ValueError(
            f"position is {position}, but there are {pooled.numel()} windows, counted from 0."
        )
    return divmod(position, pooled.shape[1])


def pooling_explorer(image: Tensor) -> Explorer:
    """Move a pooling window over a small grid of numbers made from a picture.

    Args:
        image: (height, width), grey values from 0 to 1.
    """
    grid = small_grid(image)
    mode = ipywidgets.Dropdown(options=list(POOLING), description="pooling", style=_LABELS)
    sizes = {
        "kernel_size": _slider("kernel", 2, 1, 5),
        "stride": _slider("stride", 2, 1, 5),
        "padding": _slider("padding", 0, 0, 2),
    }
    position = _slider("position", 0, 0, 15)

    def redraw() -> tuple[Figure, str]:
        options = {"mode": mode.value, **{name: slider.value for name, slider in sizes.items()}}
        position.max = pool(grid, **options)[1].numel() - 1
        options["position"] = position.value
        return pooling_figure(grid, **options), pooling_text(grid, **options)

    return Explorer(
        "shipyard-pooling-explorer", {"mode": mode, **sizes, "position": position}, redraw
    )


# --- the output size explorer -------------------------------------------------------------------


def size_formula(
    size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> str:
    """The output size with the numbers put into the formula, step by step."""
    result = convolution.output_size(size, kernel_size, stride, padding, dilation)
    room = size + 2 * padding - dilation * (kernel_size - 1) - 1
    return (
        f"⌊({size} + 2·{padding} − {dilation}·({kernel_size} − 1) − 1) / {stride}⌋ + 1 "
        f"= ⌊{room} / {stride}⌋ + 1 = {result}"
    )


def unread_cells(
    size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> list[int]:
    """The places of the input cells, counted from 0, that no window reads."""
    steps = convolution.output_size(size, kernel_size, stride, padding, dilation)
    read = {
        step * stride + tap * dilation - padding
        for step in range(steps)
        for tap in range(kernel_size)
    }
    return [cell for cell in range(size) if cell not in read]


def output_size_figure(
    size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Figure:
    """One row of input cells, and below it the cells that the kernel reads at each step.

    Padding is dashed. Input cells that no window reads are hatched.
    """
    steps = convolution.output_size(size, kernel_size, stride, padding, dilation)
    unread = unread_cells(size, kernel_size, stride, padding, dilation)
    length = size + 2 * padding
    cell = min(0.42, 7.4 / (length + 3))
    rows = 0.8 * steps + 2.4
    with plots.style():
        figure = Figure(figsize=(cell * (length + 3), cell * rows + 0.1), dpi=100, layout="none")
        axis = figure.add_axes((0, 0, 1, 1))
        axis.axis("off")
        axis.set(xlim=(-padding - 2.9, size + padding + 0.1), ylim=(rows - 0.6, -0.7))
        small = 10 * min(1, cell / 0.36)
        for i in range(-padding, size + padding):
            inside = 0 <= i < size
            axis.add_patch(
                Rectangle(
                    (i, 0), 1, 1, fc=plots.SKY if inside else "white", ec=plots.GREY,
                    ls="-" if inside else "--", hatch="///" if i in unread else None,
                )
            )  # fmt: skip
            text, scale = (str(i), 1) if inside else ("pad", 0.75)
            axis.text(i + 0.5, 0.52, text, ha="center", va="center", fontsize=small * scale)
        axis.text(-padding - 0.3, 0.52, "input", ha="right", va="center", fontsize=small)
        for step in range(steps):
            y, start = 1.5 + 0.8 * step, step * stride - padding
            span = dilation * (kernel_size - 1) + 1
            axis.plot([start, start + span], [y + 0.3] * 2, color=plots.PALE, lw=4, zorder=0)
            for tap in range(kernel_size):
                left = start + tap * dilation
                axis.add_patch(Rectangle((left + 0.08, y), 0.84, 0.6, fc=plots.VERMILION))
            label = f"y({step})"
            axis.text(-padding - 0.3, y + 0.32, label, ha="right", va="center", fontsize=small)
    return figure


def output_size_text(
    size: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> str:
    """The formula with its numbers, and whether some input cells are never read."""
    formula = size_formula(size, kernel_size, stride, padding, dilation)
    unread = unread_cells(size, kernel_size, stride, padding, dilation)
    room = size + 2 * padding - dilation * (kernel_size - 1) - 1
    lines = [f"output size = {formula}"]
    if room % stride:
        lines.append(
            f"The floor drops a remainder: the last window ends {room % stride} cell(s) before "
            "the end of the padded row."
        )
    if unread:
        lines.append(f"Input cells that no window reads: {', '.join(map(str, unread))}.")
    else:
        lines.append("Every input cell is read at least once.")
    return "\n".join(lines)


def output_size_explorer() -> Explorer:
    """Input, kernel, stride, padding and dilation against the number of outputs."""
    controls = {
        "size": _slider("input", 9, 1, 16),
        "kernel_size": _slider("kernel", 3, 1, 7),
        "stride": _slider("stride", 2, 1, 5),
        "padding": _slider("padding", 1, 0, 4),
        "dilation": _slider("dilation", 1, 1, 4),
    }

    def redraw() -> tuple[Figure, str]:
        options = {name: slider.value for name, slider in controls.items()}
        return output_size_figure(**options), output_size_text(**options)

    return Explorer("shipyard-output-size-explorer", controls, redraw)
