"""How queries, keys and values flow through one head of attention."""

from __future__ import annotations

import numpy as np

from shipyard.drawings.paper import Drawing


def attention_head() -> Drawing:
    """One head, from the positions X to the result Y, with every shape."""
    d = Drawing(
        960, 410,
        "One attention head: three matrices of weights turn the positions X into queries Q, keys K "
        "and values V; Q times K transposed gives the scores, which are scaled, masked and turned "
        "into weights by a softmax; the weights times V give the result Y.",
    )  # fmt: skip
    top, middle, bottom = 84, 204, 324
    x = d.tensor(62, middle, 4, 6, "plain", "$X$", "$(n, \\mathrm{width})$")
    rows = (("Q", top, "data"), ("K", middle, "keys"), ("V", bottom, "values"))
    made = {}
    for name, y, role in rows:
        weights = d.box(180, y, f"$W_{name.lower()}$", width=54, height=38)
        d.note(180, y + 31, "$(\\mathrm{width}, d)$")
        made[name] = d.tensor(282, y, 4, 3, role, f"${name}$", "$(n, d)$")
        d.wire(weights.right, made[name].left)
        middle_wire = (x.right, weights.left) if y == middle else (
            (124, middle), (124, y), weights.left)  # fmt: skip
        d.wire(*middle_wire)
    d.dot(124, middle)

    product = d.box(394, 144, "$QK^{\\mathrm{T}}$", "product", 64, 38)
    d.wire(made["Q"].right, (394, top), product.top)
    d.wire(made["K"].right, (394, middle), product.bottom)
    rng = np.random.default_rng(3)
    drawn = rng.uniform(0.05, 0.8, (4, 4))
    scores = d.tensor(486, 144, 4, 4, "focus", "scores", "$(n, n)$", amounts=drawn)
    d.wire(product.right, scores.left)
    steps = [d.pill(572, 144, "÷ √$d$", 66), d.pill(652, 144, "mask", 56),
             d.pill(736, 144, "softmax", 74)]  # fmt: skip
    for before, after in zip([scores, *steps], steps, strict=False):
        d.wire(before.right, after.left)
    kept = np.tril(rng.uniform(0.2, 1, (4, 4)))
    shares = kept / kept.sum(1, keepdims=True)
    weights = d.tensor(832, 144, 4, 4, "focus", "weights $A$", amounts=shares)
    d.wire(steps[-1].right, weights.left)
    for y, words in ((126, "$(n, n)$"), (144, "each row"), (162, "adds up to 1")):
        d.note(866, y, words, "left")
    mix = d.box(832, bottom, "$AV$", "product", 58, 38)
    d.wire(weights.bottom, mix.top)
    d.wire(made["V"].right, mix.left)
    y = d.tensor(920, bottom, 4, 3, "values", "$Y$", "$(n, d)$")
    d.wire(mix.right, y.left)
    d.note(318, top - 13, "what each position looks for", "left")
    d.note(318, middle + 13, "what each position offers", "left")
    d.note(318, bottom - 13, "what each position hands on, if it is looked at", "left")
    d.legend(
        390,
        ("weights", "weights, learned"),
        ("function", "function"),
        ("product", "matrix product"),
    )
    return d
