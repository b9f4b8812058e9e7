"""Rounding to a grid, a layer that multiplies bytes, and a gradient that goes straight through."""

from __future__ import annotations

from shipyard import plots
from shipyard.drawings.paper import EDGE, INK, Drawing


def rounding_grid() -> Drawing:
    """Real numbers above, the whole numbers that stand for them below."""
    d = Drawing(
        900, 270,
        "A line of real numbers above a row of eight whole numbers from 0 to 7: each real number "
        "goes to the nearest mark of the grid, zero goes to the zero point 2, and a number beyond "
        "the last mark is clamped to 7.",
    )  # fmt: skip
    step, left, zero = 82, 150, 2
    marks = [left + step * k for k in range(8)]
    line, row = 92, 190
    d.wire((60, line), (850, line), width=2)
    d.note(60, line - 22, "real numbers $x$", "left")
    for k, x in enumerate(marks):
        role = "focus" if k == zero else "data"
        box = d.box(x, row, f"{k}", role, 44, 32)
        d.wire((x, line + 12), box.top, colour="#9A9A9A", width=1.5)
        d.wire((x, line - 7), (x, line + 7), width=2, arrow=False)
    d.label(marks[zero] - 6, line - 20, "0", size=11)
    for x, k, name in ((0.55, 3, "$x_1$"), (-1.36, 1, "$x_2$"), (5.75, 7, "$x_3$")):
        at = marks[zero] + step * x
        d.dot(at, line, plots.VERMILION)
        d.label(at, line - 42, name, plots.VERMILION, 12)
        d.wire((at, line - 30), (marks[k], line - 9), colour=plots.VERMILION, width=1.5, above=True)
    d.note(60, row, "stored $k$", "left")
    d.note(marks[4] + step / 2, line + 24, "scale $s$")
    d.wire((marks[4] + 3, line + 10), (marks[5] - 3, line + 10), colour=EDGE, width=1.2)
    d.note(marks[zero], row + 34, "zero point $z$")
    d.note(marks[7], row + 34, "clamped")
    d.note(marks[4] + step / 2, row + 60, "$x_1$ and $x_2$ move by half a step at most; "
           "$x_3$ lies outside of the range")  # fmt: skip
    return d


def int8_layer() -> Drawing:
    """A linear layer of whole numbers, from real inputs to real outputs."""
    d = Drawing(
        960, 250,
        "A layer in int8: the input is quantized to bytes, a product with int8 weights is summed "
        "in int32 with an int32 bias, the sum is multiplied by an integer and shifted back to "
        "bytes, and only the last layer's bytes are turned into real numbers again.",
    )  # fmt: skip
    y = 110
    x = d.tensor(56, y, 4, 2, "plain", "$x$", "float32", cell=13)
    quantize = d.pill(150, y, "quantize", 82)
    xq = d.tensor(246, y, 4, 2, "data", "$k_x$", "uint8", cell=13)
    product = d.box(346, y, "$\\Sigma\\, k_w k_x$", "product", 84, 40)
    weights = d.box(346, 200, "$k_w$: int8", width=92, height=34)
    accumulator = d.tensor(470, y, 4, 2, "focus", "sums", "int32", cell=19)
    bias = d.op(556, y, "+")
    b = d.box(556, 200, "$k_b$: int32", width=92, height=34)
    requantize = d.pill(664, y, "$\\times\\, m \\; \\gg\\, n$", 108)
    yq = d.tensor(780, y, 4, 2, "data", "$k_y$", "uint8", cell=13)
    out = d.pill(884, y, "next layer", 92)
    d.wire(x.right, quantize.left)
    d.wire(quantize.right, xq.left)
    d.wire(xq.right, product.left)
    d.wire(weights.top, product.bottom)
    d.wire(product.right, accumulator.left)
    d.wire(accumulator.right, bias.left)
    d.wire(b.top, bias.bottom)
    d.wire(bias.right, requantize.left)
    d.wire(requantize.right, yq.left)
    d.wire(yq.right, out.left)
    d.note(664, y + 32, "an integer and a shift")
    d.note(150, y + 32, "once, at the start")
    d.legend(236, ("weights", "weights, learned"), ("data", "bytes"), ("focus", "four bytes each"))
    return d


def straight_through() -> Drawing:
    """Forward through a staircase, backward as if it were a line."""
    d = Drawing(
        860, 210,
        "Fake quantization in training: forward, the weight goes through a rounding staircase and "
        "a dequantization to the loss; backward, the dashed gradient passes by the staircase "
        "unchanged, except where the weight was clamped, where it is zero.",
    )  # fmt: skip
    y = 70
    w = d.box(70, y, "$w$", width=60)
    clamp = d.pill(210, y, "clamp", 76)
    stairs = d.box(370, y, "round", "focus", 84, 40)
    layer = d.box(530, y, "layer", "product", 76, 38)
    loss = d.box(690, y, "loss", "data", 70, 36)
    for before, after in zip((w, clamp, stairs, layer), (clamp, stairs, layer, loss), strict=True):
        d.wire(before.right, after.left, width=3)
    back = 130
    for start, end in ((690, 530), (530, 210), (210, 70)):
        d.wire((start, back), (end + 6, back), colour=plots.VERMILION, width=2)
    for x in (690, 530, 210, 70):
        d.wire((x, y + 22), (x, back), colour="#CFCFCF", width=1, arrow=False)
    d.note(610, back + 18, "gradient of the loss")
    d.note(370, back + 18, "straight through: times 1")
    d.note(140, back + 18, "0 where clamped")
    d.label(450, y - 18, "$\\hat{w}$", INK, 12)
    d.legend(190, ("weights", "kept in float32"), ("focus", "slope 0 nearly everywhere"))
    return d
