"""Paper and pens for diagrams: shapes and colours say what a thing is.

An orange box holds weights, a grey pill is a fixed function, a white circle works element by
element, a white box is a matrix product. Blue is data and state, pink is what the picture is about.
Lengths are pixels of the page, x to the right and y down; a position is the middle of a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from shipyard import plots

DPI = 110
PX = 72 / DPI  # points in a pixel of the page: matplotlib counts widths in points
INK, EDGE, SOFT = plots.INK, "#6B6B6B", "#F6F6F6"
FILLS = {  # colour of a role: (fill, edge)
    "weights": ("#FDEFD5", "#B97400"),
    "function": ("#EFEFEF", EDGE),
    "product": ("white", INK),
    "data": ("#E1EEF8", plots.BLUE),
    "keys": ("#FAE7DC", "#B97400"),
    "values": ("#DDF2EB", "#007A59"),
    "focus": ("#F6E4EF", "#A8447F"),
    "plain": ("#F1F1F1", EDGE),
}
GRADIENT = {"colour": "#B84E00", "dashed": True}  # how a wire that carries one looks
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """What was drawn: its middle, and the middles of its edges, where wires begin and end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y - self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y + self.height / 2


class Drawing:
    """A white card of ``width`` × ``height`` pixels with ``alt`` as its alternative text.

    Raises:
        ValueError: ``alt`` is empty.
    """

    def __init__(self, width: int, height: int, alt: str):
        if not alt.strip():
            raise ValueError("alt is empty; write one sentence that says what the drawing shows.")
        self.width, self.height, self.alt = width, height, alt
        size = width / DPI, height / DPI
        self.figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="none")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def show(self) -> None:
        """Show the drawing in a notebook.

        Raises:
            ValueError: a text runs over the edge of the card.
        """
        self.require_room()
        plots.show(self.figure, self.alt)

    def require_room(self) -> None:
        """Refuse a drawing in which a text runs over the edge."""
        renderer = self.figure.canvas.get_renderer()
        card = self.figure.bbox
        for text in self.axes.texts:
            box = text.get_window_extent(renderer)
            if box.x0 < 0 or box.y0 < 0 or box.x1 > card.x1 or box.y1 > card.y1:
                raise ValueError(f"The text {text.get_text()!r} runs over the edge.")

    # --- shapes ----------------------------------------------------------------------------------

    def box(
        self, x: float, y: float, text: str, role: str = "weights", width: float = 58,
        height: float = 36, radius: float = 5,
    ) -> Shape:  # fmt: skip
        """A box with round corners; ``role`` gives its colours."""
        fill, edge = FILLS[role]
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2), width, height, lw=2 * PX, fc=fill, ec=edge,
                boxstyle=f"round,pad=0,rounding_size={radius}", zorder=3,
            )
        )  # fmt: skip
        self.label(x, y + 1, text, size=10)
        return Shape(x, y, width, height)

    def pill(self, x: float, y: float, text: str, width: float = 58) -> Shape:
        """A fixed function: a box without corners."""
        return self.box(x, y, text, "function", width, 28, 13.9)

    def op(self, x: float, y: float, sign: str, radius: float = 13) -> Shape:
        """A circle that works element by element; ``sign`` is "×", "+", "−" or a few letters."""
        arm = 0.43 * radius
        self.axes.add_patch(Circle((x, y), radius, lw=2 * PX, fc="white", ec=INK, zorder=3))
        turn = arm / 2**0.5
        level, upright = ((-arm, 0), (arm, 0)), ((0, -arm), (0, arm))
        signs = {
            "×": [((-turn, -turn), (turn, turn)), ((-turn, turn), (turn, -turn))],
            "+": [level, upright],
            "−": [level],
        }
        strokes = signs.get(sign, [])
        if not strokes:
            self.label(x, y, sign, size=0.55 * radius)
        for (x0, y0), (x1, y1) in strokes:
            self.axes.plot([x + x0, x + x1], [y + y0, y + y1], color=INK, lw=2.4 * PX, zorder=4)
        return Shape(x, y, 2 * radius, 2 * radius)

    def dot(self, x: float, y: float, colour: str = INK) -> None:
        """A branch of a wire."""
        self.axes.add_patch(Circle((x, y), 3.2, fc=colour, ec=colour, zorder=4))

    def group(self, left: float, top: float, right: float, bottom: float) -> None:
        """A pale card behind what belongs together."""
        self.axes.add_patch(
            FancyBboxPatch(
                (left, top), right - left, bottom - top, lw=1.5 * PX, fc=SOFT, ec="#B5B5B5",
                boxstyle="round,pad=0,rounding_size=14", zorder=0,
            )
        )  # fmt: skip

    def tensor(
        self, x: float, y: float, rows: int, columns: int, role: str = "data", name: str = "",
        shape: str = "", cell: float = 14, amounts: Sequence | None = None,
    ) -> Shape:  # fmt: skip
        """A matrix as a grid of cells, its name above and its shape below.

        ``amounts`` from 0 to 1, (rows, columns), colour the cells from white to the role's colour.
        """
        fill, edge = FILLS[role]
        width, height = columns * cell, rows * cell
        left, top = x - width / 2, y - height / 2
        shades = np.full((rows, columns), -1.0) if amounts is None else np.asarray(amounts)
        for row in range(rows):
            for column in range(columns):
                shade = shades[row, column]
                colour = fill if shade < 0 else to_rgba(edge, 0.9 * shade)
                corner = (left + column * cell, top + row * cell)
                self._polygon(_rectangle(*corner, cell, cell), colour, to_rgba(edge, 0.35), 1)
        self._polygon(_rectangle(left, top, width, height), "none", edge, 2)
        if name:
            self.label(x, top - 11, name, colour=edge, size=12)
        if shape:
            self.label(x, top + height + 11, shape, colour=EDGE, size=8.5)
        return Shape(x, y, width, height)

    def volume(
        self, x: float, y: float, width: float, height: float, depth: float, role: str = "data",
        strong: bool = False,
    ) -> Shape:  # fmt: skip
        """A block seen from the front, from above and from the right; its front is at (x, y)."""
        fill, edge = FILLS[role]
        left, top = x - width / 2, y - height / 2
        over, up = 0.55 * depth, 0.4 * depth
        front = _rectangle(left, top, width, height)
        lid = [(left, top), (left + over, top - up), (left + width + over, top - up),
               (left + width, top)]  # fmt: skip
        side = [(left + width, top), (left + width + over, top - up),
                (left + width + over, top + height - up), (left + width, top + height)]  # fmt: skip
        shade = to_rgba(edge)[:3]
        for face, amount in ((lid, 0.12), (side, 0.22), (front, 0.0)):
            self._polygon(face, fill, "none", 0)
            colour = (*shade, 0.45 if strong else amount)
            self._polygon(face, colour, edge, 2)
        return Shape(x, y, width, height)

    def block(
        self, left: float, top: float, width: float, height: float, fill: str, edge: str,
        line: float = 1.5,
    ) -> None:  # fmt: skip
        """A plain rectangle, for a cell of a table or a span of time."""
        self._polygon(_rectangle(left, top, width, height), fill, edge, line)

    # --- wires and words -------------------------------------------------------------------------

    def wire(
        self, *points: Point, colour: str = INK, width: float = 2, arrow: bool = True,
        over: Sequence[Point] = (), above: bool = False, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A line through ``points`` with round corners, and a gap in what it crosses at ``over``.

        ``above``: before the shapes, and not behind them. ``dashed``: a gradient, on its way back.
        """
        points = [np.asarray(point, dtype=float) for point in points]
        if arrow:
            head = _unit(points[-1] - points[-2])
            side = np.array([-head[1], head[0]])
            tip, length, half = points[-1], 8 + width, 3 + 0.6 * width
            base = tip - length * head
            corners = [tip, base + half * side, base + 0.3 * length * head, base - half * side]
            self._polygon(corners, colour, colour, 0.3, zorder=4.5 if above else 2.5)
            points[-1] = base + 0.3 * length * head
        vertices, codes = [points[0]], [Path.MOVETO]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            radius = min(10, *(np.linalg.norm(end - corner) / 2 for end in (before, after)))
            vertices += [corner + radius * _unit(before - corner), corner,
                         corner + radius * _unit(after - corner)]  # fmt: skip
            codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
        path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
        for x, y in over:
            gap = _rectangle(x - width / 2 - 5, y - width / 2 - 5, width + 10, width + 10)
            self._polygon(gap, SOFT, SOFT, 0, zorder=2.3)
        zorder = 4.4 if above else 2.4 if over else 2.2
        style = (0, (4, 2.2)) if dashed else "solid"
        self.axes.add_patch(
            PathPatch(path, fc="none", ec=colour, lw=width * PX, zorder=zorder, ls=style)
        )

    def label(
        self, x: float, y: float, text: str, colour: str = INK, size: float = 12, align="center"
    ) -> None:
        """Words or a formula ($…$) beside what they name."""
        self.axes.text(
            x, y, text, color=colour, fontsize=size, ha=align, va="center", zorder=5,
            math_fontfamily="stix", family="DejaVu Sans",
        )  # fmt: skip

    def note(self, x: float, y: float, text: str, align: str = "center") -> None:
        """A remark in small grey letters."""
        self.label(x, y, text, EDGE, 8.5, align)

    def legend(self, y: float, *entries: tuple[str, str], x: float | None = None) -> None:
        """What the shapes stand for, in one line: ("weights", "layer with weights"), …"""
        widths = [56 + self._width_of(text, 9) for _, text in entries]
        at = (self.width - sum(widths)) / 2 if x is None else x
        for (role, text), width in zip(entries, widths, strict=True):
            if role == "op":
                self.op(at + 14, y, "×", radius=9)
            elif role == "state":
                self.wire((at, y), (at + 28, y), colour=plots.BLUE, width=3)
            elif role == "value":
                self.wire((at, y), (at + 28, y))
            elif role == "gradient":
                self.wire((at, y), (at + 28, y), **GRADIENT)
            else:
                self.box(at + 14, y, "", role, 26, 16, 8 if role == "function" else 4)
            self.label(at + 36, y, text, size=9, align="left")
            at += width

    def _width_of(self, text: str, size: float) -> float:
        drawn = self.axes.text(0, 0, text, fontsize=size, family="DejaVu Sans")
        width = drawn.get_window_extent(self.figure.canvas.get_renderer()).width
        drawn.remove()
        return width

    def _polygon(self, corners, fill, edge, width, zorder: float = 3) -> None:
        patch = Polygon(corners, closed=True, fc=fill, ec=edge, lw=width * PX, zorder=zorder,
                        joinstyle="round")  # fmt: skip
        self.axes.add_patch(patch)


def _rectangle(left: float, top: float, width: float, height: float) -> list[Point]:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
