"""The volume that one filter of a convolution looks at."""

from __future__ import annotations

from shipyard.drawings.paper import FILLS, Drawing

FOCUS = FILLS["focus"][1]


def convolution_volume() -> Drawing:
    """A filter reaches over all channels: one block of numbers becomes one number."""
    d = Drawing(
        760, 330,
        "A convolution over several channels: a small block through all channels of the input is "
        "multiplied by a filter of the same shape and added up to one number of one channel of the "
        "output; each filter makes a channel of its own.",
    )  # fmt: skip
    d.volume(150, 180, 170, 170, 90)
    d.volume(110, 155, 50, 50, 90, "focus")
    for y, role, name in ((105, "weights", "filter 1"), (235, "plain", "filter 2")):
        d.volume(392, y, 50, 50, 90, role)
        d.label(404, y + 40, name, size=10)
    d.volume(640, 180, 130, 130, 30, "values")
    d.volume(610, 161, 18, 18, 0, "focus", strong=True)
    d.wire((190, 140), (360, 105), colour=FOCUS, above=True)
    d.wire((474, 100), (598, 156), colour=FOCUS, above=True)
    d.note(505, 66, "multiply element", "left")
    d.note(505, 82, "by element, add up", "left")
    d.note(412, 36, "a filter reaches over all $C$ channels")
    for x, symbol, words in ((160, "input  $x$", "$(C, H, W)$: one channel behind the other"),
                             (648, "output  $y$", "one channel for each filter")):  # fmt: skip
        d.label(x, 286, symbol, size=11)
        d.note(x, 306, words)
    return d
