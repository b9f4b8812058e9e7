"""The one plot style of the series, and figures that more than one lesson draws."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython import get_ipython
from IPython.display import display
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

# Okabe and Ito's palette: told apart under every common colour blindness.
# Source: M. Okabe and K. Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#6B6B6B",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PINK, SKY, GREY)
INK = "#222222"
PALE = "#E4E4E4"

# Signed values: blue below zero, white at zero, vermilion above.
DIVERGING = LinearSegmentedColormap.from_list("shipyard", [BLUE, "#FFFFFF", VERMILION])
# Amounts from zero up: white to blue.
SEQUENTIAL = LinearSegmentedColormap.from_list("shipyard-blue", ["#FFFFFF", SKY, BLUE, "#00263D"])

# A figure is shown at its own size (110 dpi) with twice as many pixels, for dense screens.
SHARPNESS = 2

STYLE = {
    "figure.figsize": (7.5, 3.4),
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
    "savefig.pad_inches": 0.08,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.titlesize": 11,
    "axes.titlepad": 7,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Set the series' plot style for every figure that follows."""
    plt.rcParams.update(STYLE)


def style() -> AbstractContextManager:
    """The same style for the figures made inside a ``with`` block only."""
    return plt.rc_context(STYLE)


def show(figure: Figure, alt: str) -> None:
    """Show ``figure`` with ``alt`` as its alternative text, then close it.

    ``alt`` is a sentence that says what is to be seen. The output is one tag,
    ``<img alt width src="data:image/png;base64,…">``, and ``alt`` as plain text: the one form for
    which JupyterLab, nbconvert and the site all write an alternative text. GitHub shows such
    tags (jupyter_rfb stores its pictures so for GitHub's sake, vispy/jupyter_rfb#37) if the width
    stands in quotes (udacity/deep-learning#277) and not in a style (karolzak/ipyplot#3).
    The picture has two pixels for each of the page's. Without a running IPython (a plain script,
    a test) this prints ``alt``.

    Raises:
        ValueError: ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty; write one sentence that says what the figure shows.")
    if get_ipython() is None:
        print(alt)
    else:
        picture = _pixels(figure)
        tag = (
            f'<img alt="{html.escape(alt)}" width="{round(picture.width / SHARPNESS)}" '
            f'src="data:image/png;base64,{base64.b64encode(_png(picture)).decode()}">'
        )
        display({"text/html": tag, "text/plain": alt}, raw=True)
    plt.close(figure)


def png_bytes(figure: Figure) -> bytes:
    """``figure`` as PNG data of its full size (not cut to its contents): fast and steady."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def number(value: float, decimals: int = 2) -> str:
    """``value`` in few characters: no trailing zeros, a real minus sign, −∞ and ∞."""
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    text = f"{float(value):.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text.replace("-", "−")


def signed_limit(values) -> float:
    """Where the colour scale of a signed picture ends: 99 % of its values are smaller."""
    sizes = np.abs(_array(values))
    return float(np.quantile(sizes, 0.99)) or float(sizes.max()) or 1.0


def image_grid(
    images: Sequence, titles: Sequence[str] | None = None, columns: int | None = None
) -> Figure:
    """Pictures side by side, ``columns`` to a row, each pixel a sharp square.

    Args:
        images: N pictures, arrays or tensors: (N, height, width), (N, channels, height, width)
            or (N, height, width, channels), with 1 or 3 channels. Whole numbers are 0…255, real
            numbers 0…1.
        titles: one short line for each picture.
        columns: pictures to a row; by default all in one row up to 10.

    Raises:
        ValueError: no picture, a shape or a range that is no picture, or a wrong number of
            titles.
    """
    pictures = [_picture(image) for image in images]
    if not pictures:
        raise ValueError("images is empty; give at least one picture.")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} images; give one for each.")
    columns = columns or min(len(pictures), 10)
    rows = math.ceil(len(pictures) / columns)
    side = min(8.0 / columns, 2.2)
    figure = Figure(figsize=(side * columns, (side + (0.3 if titles else 0.05)) * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for i, axis in enumerate(axes):
        axis.axis("off")
        if i < len(pictures):
            axis.imshow(pictures[i], cmap="gray", vmin=0, vmax=1)
            if titles is not None:
                axis.set_title(titles[i], fontsize=9, pad=3)
    return figure


def number_grids(
    matrices: Sequence,
    titles: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
    marks: dict[int, Sequence[tuple]] | None = None,
    decimals: int = 2,
) -> Figure:
    """Matrices in one row with their numbers, blue below zero and orange above, as in an equation.

    Args:
        matrices: N matrices (rows, columns), or single numbers. NaN leaves a cell out.
        titles: one line above each matrix.
        symbols: N − 1 signs between the matrices, such as "∗" and "=".
        marks: for a matrix's place, its frames: (row, column, height, width, colour).
        decimals: digits after the point, at most; trailing zeros are left out.

    Raises:
        ValueError: titles or symbols do not fit the number of matrices, or one is not a matrix.
    """
    grids = [np.atleast_2d(_array(matrix)).astype(float) for matrix in matrices]
    if any(grid.ndim != 2 for grid in grids):
        raise ValueError("number_grids draws matrices (rows, columns); an input has more axes.")
    if titles is not None and len(titles) != len(grids):
        raise ValueError(f"{len(titles)} titles for {len(grids)} matrices; give one for each.")
    if symbols is not None and len(symbols) != len(grids) - 1:
        raise ValueError(f"{len(symbols)} symbols for {len(grids)} matrices; give one fewer.")
    gap = 1.0 if symbols is None else 1.4
    # A title is about 0.19 cells wide per letter, and may stand out over a narrow matrix.
    letters = [max(len(line) for line in t.split("\n")) for t in titles or [""] * len(grids)]
    widths = [max(grid.shape[1], 0.19 * n) for grid, n in zip(grids, letters, strict=True)]
    lines = max((t.count("\n") + 1 for t in titles), default=0) if titles else 0
    height = max(grid.shape[0] for grid in grids)
    total = sum(widths) + gap * (len(grids) - 1)
    cell = min(0.46, 8.6 / total)
    top = 0.3 + 0.42 * lines * 0.46 / cell
    figure = Figure(figsize=(cell * (total + 0.3), cell * (height + top + 0.2)), layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.15, total + 0.15), ylim=(height + 0.1, -top - 0.1))
    axis.axis("off")
    left = 0.0
    for n, (grid, width) in enumerate(zip(grids, widths, strict=True)):
        x, y = left + (width - grid.shape[1]) / 2, (height - grid.shape[0]) / 2
        _draw_grid(axis, grid, x, y, decimals, fontsize=9.5 * cell / 0.46)
        for row, column, rows, columns, colour in (marks or {}).get(n, ()):
            axis.add_patch(
                Rectangle((x + column, y + row), columns, rows, fill=False, ec=colour, lw=2.6)
            )
        if titles is not None:
            middle = x + grid.shape[1] / 2
            axis.text(middle, y - 0.25, titles[n], ha="center", va="bottom", fontsize=10)
        left += width
        if symbols is not None and n < len(symbols):
            sign = symbols[n]
            axis.text(left + gap / 2, height / 2, sign, ha="center", va="center", fontsize=15)
        left += gap
    return figure


def feature_maps(maps: Sequence, titles: Sequence[str] | None = None, columns: int = 4) -> Figure:
    """Signed pictures side by side: blue below zero, white at zero, orange above.

    Each picture has its own scale, from −m to m, where m is larger than 99 % of its values.

    Args:
        maps: N matrices (height, width) of real numbers.
        titles: one short line for each map.
        columns: pictures to a row, at most.

    Raises:
        ValueError: there is no map, or a wrong number of titles.
    """
    arrays = [_array(values).astype(float) for values in maps]
    if not arrays:
        raise ValueError("maps is empty; give at least one (height, width) map.")
    if titles is not None and len(titles) != len(arrays):
        raise ValueError(f"{len(titles)} titles for {len(arrays)} maps; give one for each.")
    columns = min(columns, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    width = min(8.0 / columns, 2.8)
    height = width * max(array.shape[0] / array.shape[1] for array in arrays)
    figure = Figure(figsize=(width * columns, (height + (0.28 if titles else 0.05)) * rows))
    for i, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=i < len(arrays), color="#C8C8C8")
        if i < len(arrays):
            limit = signed_limit(arrays[i])
            axis.imshow(arrays[i], cmap=DIVERGING, vmin=-limit, vmax=limit)
            if titles is not None:
                axis.set_title(titles[i], fontsize=9, pad=3)
    return figure


def training_curves(history) -> Figure:
    """The loss of each step, and the measurements of each epoch where there are any.

    Args:
        history: as `training.fit` returns it: ``losses`` has one number for each step, ``rows``
            one dict for each epoch, with its last ``step``. A measurement whose name ends in
            ``loss`` is drawn on the left, one whose name ends in ``accuracy`` on the right.

    Raises:
        ValueError: no step was taken.
    """
    losses = np.asarray(list(history.losses), dtype=float)
    if not len(losses):
        raise ValueError("history.losses is empty; train for at least one step first.")
    rows = list(history.rows)
    names = [name for name in (rows[0] if rows else {}) if name.endswith(("loss", "accuracy"))]
    accuracies = [name for name in names if name.endswith("accuracy")]
    figure = Figure(figsize=(7.5, 3.2))
    panels = np.atleast_1d(figure.subplots(1, 2 if accuracies else 1))
    steps = np.arange(1, len(losses) + 1)
    panels[0].plot(steps, losses, color=SKY, alpha=0.45, linewidth=1, label="loss of each step")
    window = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    panels[0].plot(steps[window - 1 :], smooth, color=BLUE, label=f"mean of {window} steps")
    ends = [row["step"] for row in rows]
    for name, colour in zip((n for n in names if n not in accuracies), PALETTE[1:], strict=False):
        values = [row[name] for row in rows]
        panels[0].plot(ends, values, "o-", color=colour, label=name.replace("_", " "))
    panels[0].set(xlabel="step", ylabel="loss", title="Loss", ylim=(0, None))
    panels[0].legend()
    for name, colour in zip(accuracies, PALETTE, strict=False):
        values = [100 * row[name] for row in rows]
        epochs = np.arange(1, len(rows) + 1)
        panels[1].plot(epochs, values, "o-", color=colour, label=name.replace("_", " "))
    if accuracies:
        panels[1].set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy")
        panels[1].xaxis.get_major_locator().set_params(integer=True)
        panels[1].legend()
    return figure


def confusion_matrix(matrix, classes: Sequence[str]) -> Figure:
    """A table of true class (row) against predicted class (column), darker for more.

    Args:
        matrix: (classes, classes) counts; row i, column j counts pictures of class i that were
            called j.
        classes: the class names, in the order of the rows.

    Raises:
        ValueError: ``matrix`` is not square or does not fit ``classes``.
    """
    counts = _array(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"matrix has shape {counts.shape}, but {len(classes)} classes need "
            f"({len(classes)}, {len(classes)})."
        )
    side = max(4.0, 0.52 * len(classes) + 1.2)
    figure = Figure(figsize=(side + 0.6, side))
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.45 else INK
        axis.text(j, i, f"{count:g}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    return figure


def _pixels(figure: Figure) -> Image.Image:
    """The figure, cut to its contents."""
    buffer = io.BytesIO()
    # Cutting to the contents asks for the default layout again; a figure's own has to stay.
    with plt.rc_context({"figure.constrained_layout.use": False}):
        dpi = SHARPNESS * figure.dpi
        figure.savefig(buffer, format="png", bbox_inches="tight", dpi=dpi)
    return Image.open(buffer).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    """PNG data, with 256 colours where nobody can tell: half the bytes. Photographs keep all."""
    few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    change = np.subtract(few.convert("RGB"), picture, dtype=np.int16)
    buffer = io.BytesIO()
    (few if np.abs(change).mean() < 0.5 else picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_grid(axis, grid: np.ndarray, x: float, y: float, decimals: int, fontsize: float) -> None:
    """Draw one matrix of numbers with its upper left corner at (x, y)."""
    finite = np.abs(grid[np.isfinite(grid)])
    limit = 1.6 * (finite.max() if finite.size and finite.max() > 0 else 1.0)
    for (row, column), value in np.ndenumerate(grid):
        if np.isnan(value):
            continue
        colour = DIVERGING(0.5 + 0.5 * value / limit) if np.isfinite(value) else PALE
        axis.add_patch(Rectangle((x + column, y + row), 1, 1, fc=colour, ec="#B5B5B5", lw=0.8))
        text = number(value, decimals)
        axis.text(
            x + column + 0.5, y + row + 0.52, text, ha="center", va="center", fontsize=fontsize
        )


def _array(values) -> np.ndarray:
    """A tensor on any device, with or without gradient, or a list, as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _picture(image) -> np.ndarray:
    """``image`` as (height, width) or (height, width, 3) with values from 0 to 1."""
    pixels = _array(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(
            f"an image has shape {tuple(_array(image).shape)}; expected (height, width), "
            "(channels, height, width) or (height, width, channels) with 1 or 3 channels."
        )
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / 255
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(
            f"an image has values from {low:.3g} to {high:.3g}; real numbers must lie in 0 to 1, "
            "whole numbers in 0 to 255. Undo the normalisation first (data.denormalize)."
        )
    return pixels.clip(0, 1)
