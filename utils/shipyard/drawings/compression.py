"""Ways to make a network smaller: which weights go, which channels hang together, who teaches."""

from __future__ import annotations

import numpy as np

from shipyard import plots
from shipyard.drawings.paper import INK, Drawing

ROWS, COLUMNS = 6, 8


def ways_to_shrink() -> Drawing:
    """One matrix of weights, and what four ways leave of it."""
    d = Drawing(
        960, 270,
        "A matrix of 6 times 8 weights, and what is left of it in four ways: single weights, where "
        "half of the cells are empty anywhere; two of every four, where each group of four cells "
        "keeps two; channels, a smaller full matrix without some rows; low rank, a tall and a "
        "wide thin matrix whose product stands for the whole.",
    )  # fmt: skip
    amounts = np.random.default_rng(5).uniform(0.08, 1.0, (ROWS, COLUMNS))
    y = 128
    d.tensor(88, y, ROWS, COLUMNS, "weights", "$W$", "all weights", amounts=amounts)

    kept = amounts >= np.median(amounts)
    d.tensor(268, y, ROWS, COLUMNS, "weights", "", "single weights", amounts=amounts * kept)
    d.note(268, y + 73, "zeros anywhere")

    groups = amounts.reshape(-1, 4)
    best = groups >= np.sort(groups, axis=1)[:, 2:3]
    two = d.tensor(448, y, ROWS, COLUMNS, "weights", "", "2 of every 4",
                   amounts=amounts * best.reshape(ROWS, COLUMNS))  # fmt: skip
    d.wire(two.top, two.bottom, arrow=False, width=1.5, above=True)
    d.note(448, y + 73, "zeros in a pattern")

    strong = np.argsort(amounts.sum(axis=1))[2:]
    d.tensor(628, y, len(strong), COLUMNS, "weights", "", "channels",
             amounts=amounts[np.sort(strong)])  # fmt: skip
    d.note(628, y + 73, "fewer rows, no zeros")

    rng = np.random.default_rng(7)
    tall = d.tensor(776, y, ROWS, 2, "weights", "$B$", amounts=rng.uniform(0.1, 1, (ROWS, 2)))
    wide = d.tensor(874, y, 2, COLUMNS, "weights", "$A$", amounts=rng.uniform(0.1, 1, (2, COLUMNS)))
    d.label((tall.right[0] + wide.left[0]) / 2, y, "·", size=16)
    d.label(835, y + 53, "low rank", colour="#6B6B6B", size=8.5)
    d.note(835, y + 73, "two thin matrices, no zeros")
    d.note(480, 24, "darker: a larger weight      white: zero")
    d.note(480, 248, "The first two keep the shape, so a dense kernel does the same work. "
                     "The last two leave less to compute.")  # fmt: skip
    return d


def channel_groups() -> Drawing:
    """A residual block: the inner channels are free, the outer ones hang together."""
    d = Drawing(
        960, 330,
        "A residual block. The input x has outer channels, drawn blue. A first convolution makes "
        "the inner channels, drawn pink; a second one reads them and makes outer channels again, "
        "which are added to x. An inner channel touches two layers; an outer one is made by the "
        "convolution before the block and by the second one, and read by the first one and by "
        "the layer after the block.",
    )  # fmt: skip
    y, up = 200, 78
    before = d.box(70, y, "conv", width=62)
    x = d.tensor(178, y, 6, 1, "data", "$x$", "$(c, h, w)$", cell=13)
    first = d.box(314, y, "conv 1", width=70)
    inner = d.tensor(440, y, 6, 1, "focus", "$a$", "$(c', h, w)$", cell=13)
    second = d.box(566, y, "conv 2", width=70)
    made = d.tensor(662, y, 6, 1, "data", "", "$(c, h, w)$", cell=13)
    plus = d.op(742, y, "+")
    out = d.tensor(810, y, 6, 1, "data", "", "$(c, h, w)$", cell=13)
    after = d.box(900, y, "next", width=62)
    d.group(250, 112, 706, 268)
    blue, pink = plots.BLUE, "#A8447F"
    for start, end, colour in (
        (before.right, x.left, blue), (x.right, first.left, blue), (first.right, inner.left, pink),
        (inner.right, second.left, pink), (second.right, made.left, blue),
        (made.right, plus.left, blue), (plus.right, out.left, blue), (out.right, after.left, blue),
    ):  # fmt: skip
        d.wire(start, end, colour=colour)
    d.wire((222, y), (222, up), (742, up), plus.top, colour=blue, width=3)
    d.dot(222, y, blue)
    d.label(482, up - 16, "shortcut: channel 3 of x is added to channel 3 of conv 2", size=9)
    d.label(440, 132, "free: cut a row of conv 1 and a column of conv 2", pink, 9)
    d.label(482, 298, "tied: an outer channel leaves both convolutions that make it, "
                      "and both layers that read it", blue, 9)  # fmt: skip
    d.legend(24, ("weights", "layer with weights"), ("focus", "inner channels"),
             ("data", "outer channels"))  # fmt: skip
    return d


def distillation() -> Drawing:
    """Who teaches whom: soft targets from the teacher, hard ones from the label."""
    d = Drawing(
        960, 320,
        "Distillation: one picture goes into a large frozen teacher and into a small student. The "
        "logits of both are divided by the temperature T and go through a softmax; the divergence "
        "of the two times T squared is one part of the loss. The cross-entropy of the student's "
        "logits with the label is the other. The gradient flows into the student alone.",
    )  # fmt: skip
    top, low, last = 76, 178, 262
    picture = d.box(64, 127, "image", "data", 66, 36)
    teacher = d.box(214, top, "teacher\nlarge, frozen", "plain", 116, 62)
    student = d.box(214, low, "student\nsmall, learns", "focus", 116, 44)
    rng = np.random.default_rng(2)
    logits = []
    for y, name, model in ((top, "$z_t$", teacher), (low, "$z_s$", student)):
        z = d.tensor(344, y, 1, 5, "data", name, cell=12, amounts=rng.uniform(0.1, 0.9, (1, 5)))
        d.wire(picture.right, (126, 127), (126, y), model.left)
        d.wire(model.right, z.left)
        soft = d.pill(462, y, "softmax( · / $T$)", 124)
        d.wire(z.right, soft.left)
        shares = np.array(
            [[0.1, 0.7, 0.25, 0.12, 0.05]] if y == top else [[0.3, 0.45, 0.3, 0.2, 0.1]]
        )
        p = d.tensor(592, y, 1, 5, "values", "$p$" if y == top else "$q$", cell=12, amounts=shares)
        d.wire(soft.right, p.left)
        logits.append((z, p))
    d.dot(126, 127)
    divergence = d.pill(706, 127, "$T^2\\,$KL($p$ ‖ $q$)", 104)
    for (_, p), corner, edge in (
        (logits[0], top, divergence.top),
        (logits[1], low, divergence.bottom),
    ):
        d.wire(p.right, (706, corner), edge)
    hard = d.pill(706, last, "CE($z_s$, $y$)", 104)
    d.wire((390, low), (390, last), hard.left)
    d.dot(390, low)
    label = d.box(592, 300, "label $y$", "data", 66, 26)
    d.wire(label.right, (706, 300), hard.bottom)
    plus = d.op(836, 194, "+")
    d.wire(divergence.right, (836, 127), plus.top)
    d.wire(hard.right, (836, last), plus.bottom)
    d.label(790, 114, "α", size=11)
    d.label(790, last - 14, "1 − α", size=11)
    loss = d.box(912, 194, "loss", "product", 58, 34)
    d.wire(plus.right, loss.left, colour=INK)
    return d
