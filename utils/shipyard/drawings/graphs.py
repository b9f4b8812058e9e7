"""What an ONNX file holds, and the way of a network into it and out again."""

from __future__ import annotations

from itertools import pairwise

from shipyard.drawings.paper import Drawing


def onnx_graph() -> Drawing:
    """The graph of Relu(x W₁ᵀ + b₁) W₂ᵀ + b₂: operators, named values, weights."""
    d = Drawing(
        960, 350,
        "The graph of a network of two layers: the input x goes through the operators Gemm, Relu "
        "and Gemm to the output y. The wires between them are values with the names h and r; the "
        "weights W1, b1, W2 and b2 are stored tensors that go into the two Gemm nodes from above. "
        "Beside the graph the file holds the opset and the metadata.",
    )  # fmt: skip
    row, above = 206, 92
    d.group(22, 30, 938, 262)
    d.note(46, 46, "graph", "left")
    x = d.tensor(90, row, 3, 4, "data", "$x$", "(batch, 4)")
    first = d.box(290, row, "Gemm", "product", 76, 42)
    relu = d.pill(464, row, "Relu", 68)
    last = d.box(638, row, "Gemm", "product", 76, 42)
    y = d.tensor(838, row, 3, 3, "data", "$y$", "(batch, 3)")
    for node, place, columns, rows, out in ((first, "1", 4, 5, "5, 4"), (last, "2", 5, 3, "3, 5")):
        weight = d.tensor(node.x - 60, above, rows, columns, "weights", f"$W_{place}$", cell=9)
        bias = d.tensor(node.x + 62, above, 1, rows, "weights", f"$b_{place}$", cell=9)
        d.note(node.x - 60 + 5 * columns + 12, above + 14, f"({out})", "left")
        for stored, at in ((weight, node.x - 18), (bias, node.x + 18)):
            turn = row - 56
            d.wire(stored.bottom, (stored.x, turn), (at, turn), (at, row - 21))
    for before, after, name in ((x, first, "x"), (first, relu, "h"), (relu, last, "r"),
                                (last, y, "y")):  # fmt: skip
        d.wire(before.right, after.left)
        d.label((before.right[0] + after.left[0]) / 2, row - 13, f"${name}$", size=11)
    d.note(464, row + 34, "the order of the nodes: each input is there before it is used")
    d.box(150, 308, "opset 20", "plain", 128, 32)
    d.note(224, 308, "which version of each operator is meant", "left")
    d.box(610, 308, "metadata", "plain", 128, 32)
    d.note(684, 308, "classes, preprocessing, …", "left")
    return d


def export_steps() -> Drawing:
    """From nn.Module to the file, on one machine, and from the file to answers, on another."""
    d = Drawing(
        960, 226,
        "From left to right: an nn.Module is captured as a graph of ATen operators, translated "
        "into ONNX operators, and optimised; this happens once, in PyTorch, and gives a file. ONNX "
        "Runtime reads the file wherever it is used, optimises it once more for that machine, and "
        "runs it.",
    )  # fmt: skip
    row = 122
    d.group(20, 34, 578, 200)
    d.group(672, 34, 942, 200)
    d.note(299, 52, "once: torch.onnx.export")
    d.note(807, 52, "on each machine: ONNX Runtime")
    stations = [
        d.box(80, row, "nn.Module", "weights", 96, 44),
        d.box(224, row, "ATen graph", "data", 106, 44),
        d.box(372, row, "ONNX graph", "data", 112, 44),
        d.box(516, row, "ONNX graph", "data", 112, 44),
        d.box(625, row, "file", "focus", 58, 60),
        d.box(790, row, "its graph", "data", 88, 44),
        d.box(898, row, "answers", "values", 76, 44),
    ]
    for before, after in pairwise(stations):
        d.wire(before.right, after.left)
    steps = ((151, "capture"), (298, "translate"), (444, "optimise"), (712, "optimise"),
             (848, "run"))  # fmt: skip
    for x, name in steps:
        d.label(x, row - 38, name, size=10)
    notes = ((80, "Python code"), (224, "no Python left"), (372, "operators of the opset"),
             (516, "fewer of them"), (790, "for this processor"), (898, "no torch"))  # fmt: skip
    for x, what in notes:
        d.note(x, row + 40, what)
    return d
