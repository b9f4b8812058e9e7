"""A neuron, a layer, a network of layers, and a computation graph forwards and backwards."""

from __future__ import annotations

from itertools import pairwise

from shipyard import plots
from shipyard.drawings.paper import GRADIENT, Drawing, Shape

BACK = GRADIENT["colour"]


def neuron() -> Drawing:
    """One neuron with three inputs, with the symbols of its formula."""
    d = Drawing(
        760, 280,
        "A neuron: the inputs x1, x2 and x3 are each multiplied by a weight, the products and the "
        "bias b are added up to z, and a fixed function turns z into the output a.",
    )  # fmt: skip
    rows, plus = (60, 130, 200), d.op(360, 130, "+", 18)
    for n, y in enumerate(rows, start=1):
        x = d.box(70, y, f"$x_{n}$", "data", 58, 36)
        weight = d.box(190, y, f"$w_{n}$", "weights", 58, 36)
        d.wire(x.right, weight.left)
        end = plus.left if y == 130 else (plus.x, plus.y + (-18 if y < 130 else 18))
        path = (weight.right, end) if y == 130 else (weight.right, (plus.x, y), end)
        d.wire(*path)
        d.label(284, y - 15, f"$w_{n} x_{n}$", size=11)
    bias = d.box(430, 200, "$b$", "weights", 46, 34)
    d.wire(bias.top, (430, 143), (plus.x + 18, 143))
    d.wire(plus.right, (528, 130))
    d.label(484, 115, "$z$", size=13)
    function = d.pill(566, 130, "φ", 72)
    d.wire(function.right, (668, 130))
    d.box(698, 130, "$a$", "data", 58, 36)
    words = ((70, 26, "inputs"), (190, 26, "weights"), (360, 26, "sum"), (478, 200, "bias"),
             (566, 100, "activation"), (698, 100, "output"))  # fmt: skip
    for x, y, text in words:
        d.note(x, y, text)
    d.legend(256, ("data", "data"), ("weights", "learned numbers"), ("function", "fixed function"),
             ("op", "circle: arithmetic"))  # fmt: skip
    return d


def layer() -> Drawing:
    """Three inputs and four neurons, once as neurons and once as a matrix product."""
    d = Drawing(
        900, 330,
        "A layer twice: on the left three inputs, each joined to each of four neurons by a line "
        "that stands for a weight; on the right the same as a product of the inputs with a matrix "
        "of weights, in which each neuron owns one row.",
    )  # fmt: skip
    inputs = [(80, y) for y in (90, 150, 210)]
    neurons = [(260, y) for y in (60, 120, 180, 240)]
    for i, (x0, y0) in enumerate(inputs):
        for j, (x1, y1) in enumerate(neurons):
            colour = FOCUS if j == 1 else "#B5B5B5"
            d.wire((x0 + 18, y0), (x1 - 18, y1), colour=colour, arrow=False, width=2)
        d.box(x0, y0, f"$x_{i + 1}$", "data", 40, 34)
    for j, (x, y) in enumerate(neurons):
        d.box(x, y, f"$a_{j + 1}$", "focus" if j == 1 else "function", 40, 34, 16)
        d.wire((x + 20, y), (x + 66, y), colour=FOCUS if j == 1 else plots.INK)
    d.note(80, 30, "inputs")
    d.note(260, 30, "neurons")
    d.note(172, 276, "a line is a weight: 4 · 3 of them")

    x = d.tensor(430, 120, 1, 3, "data", "$x$", "(3)", cell=22)
    product = d.box(560, 120, "$x W^{\\mathrm{T}}$", "product", 64, 38)
    amounts = [[0.0] * 3, [0.6] * 3, [0.0] * 3, [0.0] * 3]
    weight = d.tensor(560, 220, 4, 3, "focus", amounts=amounts, cell=22)
    plus = d.op(672, 120, "+", 14)
    bias = d.tensor(672, 187, 1, 4, "weights", cell=18)
    function = d.pill(746, 120, "φ", 50)
    out = d.tensor(836, 120, 1, 4, "data", "$a$", "(4)", cell=22)
    path = (x, product, plus, function, out)
    for before, after in pairwise(path):
        d.wire(before.right, after.left)
    d.wire(weight.top, product.bottom)
    d.wire(bias.top, plus.bottom)
    d.label(500, 208, "$W$", FOCUS)
    d.note(500, 228, "(4, 3)")
    d.note(560, 276, "one row for each neuron")
    d.label(672, 208, "$b$", "#B97400")
    d.note(672, 226, "(4)")
    d.legend(310, ("data", "data"), ("weights", "biases"), ("function", "activation"),
             ("focus", "one neuron and its weights"))  # fmt: skip
    return d


def mlp() -> Drawing:
    """From the pixels of a picture to ten scores through two hidden layers, with every shape."""
    d = Drawing(
        900, 250,
        "A multilayer perceptron: a picture is laid out as 3,072 numbers; a linear layer and a "
        "ReLU make 512 numbers of them, a second pair makes 256, and a last linear layer makes ten "
        "scores, one for each class.",
    )  # fmt: skip
    y = 120
    picture = [d.volume(52 + 7 * n, y + 7 * n - 7, 44, 44, 0, role) for n, role in
               enumerate(("data", "values", "keys"))][-1]  # fmt: skip
    d.note(59, 70, "picture")
    d.note(59, 172, "(3, 32, 32)")
    tall = [(150, 150, "$x$", "(3072)"), (380, 100, "$h_1$", "(512)"), (610, 70, "$h_2$", "(256)"),
            (790, 36, "$z$", "(10)")]  # fmt: skip
    columns = [_column(d, x, y, height, *words) for x, height, *words in tall]
    d.wire((picture.right[0], y), columns[0].left)
    for n, (before, after) in enumerate(pairwise(columns), start=1):
        middle = before.x + (78 if n < 3 else 90)
        weights = d.box(middle, y, f"$W_{n}, b_{n}$", "weights", 74, 38)
        d.wire(before.right, weights.left)
        if n < 3:
            relu = d.pill(before.x + 163, y, "ReLU", 58)
            d.wire(weights.right, relu.left)
            d.wire(relu.right, after.left)
        else:
            d.wire(weights.right, after.left)
    d.note(808, y - 8, "scores of", "left")
    d.note(808, y + 8, "ten classes", "left")
    d.legend(230, ("data", "data"), ("weights", "linear layer, learned"), ("function", "function"))
    return d


def computation_graph(backward: bool = True) -> Drawing:
    """L = (w · x + b − y)² for one example, with its values and, if asked, its gradients."""
    words = (
        "The computation graph of L = (w · x + b − y)² for w = 2, x = 3, b = 1 and y = 5: the "
        "values 6, 7 and 2 run from left to right and end in L = 4"
    )
    back = "; the gradients 1, 4, 4 and 4 run back from right to left and end in 12 at w and 4 at b"
    d = Drawing(820, 270, f"{words}{back if backward else ''}.")
    y = 140
    w = d.box(72, 80, "$w$ = 2", "weights", 72, 36)
    x = d.box(72, 200, "$x$ = 3", "data", 72, 36)
    times, plus, minus, square = (
        d.op(at, y, sign, 17) for at, sign in ((210, "×"), (350, "+"), (490, "−"), (630, "( )²"))
    )
    loss = d.box(758, y, "$L$ = 4", "focus", 72, 36)
    b, target = (
        d.box(350, 224, "$b$ = 1", "weights", 72, 36),
        d.box(490, 224, "$y$ = 5", "data", 72, 36),
    )
    d.wire(w.right, (times.x, w.y), times.top)
    d.wire(x.right, (times.x, x.y), times.bottom)
    path = (times, plus, minus, square, loss)
    for n, (before, after) in enumerate(pairwise(path)):
        d.wire(before.right, after.left)
        middle = (before.right[0] + after.left[0]) / 2
        if n < 3:
            d.label(middle, y - 13, ("6", "7", "2")[n], size=12)
        if backward:
            d.wire((after.left[0], y + 12), (before.right[0], y + 12), **GRADIENT)
            d.label(middle, y + 28, ("4", "4", "4", "1")[n], BACK, 12)
    d.wire(b.top, plus.bottom)
    d.wire(target.top, minus.bottom)
    if backward:
        d.wire((times.x - 12, y - 13), (times.x - 12, w.y + 12), (w.right[0], w.y + 12), **GRADIENT)
        d.label(148, w.y + 29, "4 · 3 = 12", BACK, 10)
        d.wire((plus.x + 12, y + 14), (plus.x + 12, b.top[1]), **GRADIENT)
        d.label(plus.x + 26, 190, "4", BACK, 12)
    entries = [("value", "values, forwards"), ("gradient", "gradients, backwards")]
    d.legend(24, *entries[: 1 + backward])
    return d


FOCUS = "#A8447F"


def _column(d: Drawing, x: float, y: float, height: float, name: str, shape: str) -> Shape:
    """A vector, standing upright."""
    drawn = d.volume(x, y, 16, height, 0)
    d.label(x, y - height / 2 - 12, name, plots.BLUE, 12)
    d.note(x, y + height / 2 + 11, shape)
    return drawn
