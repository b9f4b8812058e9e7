"""Queries, keys and values in one head; a whole Transformer block; the key-value cache."""

from __future__ import annotations

import itertools

import numpy as np

from shipyard import plots
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


def transformer_block() -> Drawing:
    """x + attention(norm(x)), then x + mlp(norm(x)): the sums form one straight path."""
    d = Drawing(
        960, 300,
        "A Transformer block: the positions x run straight along the top. The first branch goes "
        "through a norm, the projections to queries, keys and values, attention and an output "
        "projection, and is added; the second through a norm and two linear layers with a GELU.",
    )  # fmt: skip
    top, row = 76, 184
    state = {"colour": plots.BLUE, "width": 4}
    first, second = d.op(462, top, "+"), d.op(866, top, "+")
    d.group(74, 120, 440, 248)
    d.group(506, 120, 844, 248)
    d.wire((16, top), first.left, **state)
    d.wire(first.right, second.left, **state)
    d.wire(second.right, (948, top), **state)
    parts = [
        (46, first, [d.pill(116, row, "norm", 54), d.box(206, row, "$W_q, W_k, W_v$", width=86),
                     d.pill(306, row, "attention", 82), d.box(396, row, "$W_o$", width=50)]),
        (486, second, [d.pill(548, row, "norm", 54), d.box(634, row, "$W_1$", width=64),
                       d.pill(716, row, "GELU", 58), d.box(798, row, "$W_2$", width=64)]),
    ]  # fmt: skip
    for start, plus, chain in parts:
        d.dot(start, top, plots.BLUE)
        d.wire((start, top), (start, row), chain[0].left, colour=plots.BLUE)
        for before, after in itertools.pairwise(chain):
            d.wire(before.right, after.left)
        d.wire(chain[-1].right, (plus.x, row), plus.bottom)
    d.label(28, top - 20, "$x$", plots.BLUE, 15)
    d.label(930, top - 20, "$x$", plots.BLUE, 15)
    d.note(257, 136, "positions exchange what they know")
    d.note(675, 136, "each position by itself")
    d.note(306, 214, "masked, all heads")
    d.note(634, 214, "4 times as wide")
    d.note(798, 214, "and back")
    d.note(660, 60, "the residual path: nothing but sums")
    d.legend(278, ("weights", "weights"), ("function", "function"), ("op", "element by element"),
             ("state", "positions (time, width)"))  # fmt: skip
    return d


def kv_cache() -> Drawing:
    """One new position: it computes its own query, key and value, and looks at all cached ones."""
    d = Drawing(
        960, 390,
        "One step of writing with a key-value cache: only the newest position passes the weights; "
        "its key and value are appended to the cached ones of five earlier positions, its query "
        "meets all six keys, and the six weights mix all six values into one result.",
    )  # fmt: skip
    top, middle, bottom = 70, 170, 300
    x = d.tensor(62, middle, 1, 6, "focus", "new $x$", "(1, width)")
    made = {}
    for name, y in (("q", top), ("k", middle), ("v", bottom)):
        weights = d.box(176, y, f"$W_{name}$", width=54, height=38)
        path = (x.right, weights.left) if y == middle else (
            (122, middle), (122, y), weights.left)  # fmt: skip
        d.wire(*path)
        made[name] = d.tensor(276, y, 1, 3, "focus", f"${name}$", "(1, $d$)")
        d.wire(weights.right, made[name].left)
    d.dot(122, middle)
    stores = {}
    for name, y, role, word in (("k", middle, "keys", "K"), ("v", bottom, "values", "V")):
        d.tensor(430, y - 7, 5, 3, role, f"cached ${word}$")
        d.tensor(430, y + 35, 1, 3, "focus")
        stores[name] = 451, y
        d.wire(made[name].right, (360, y), (360, y + 35), (409, y + 35))
        d.note(430, y + 53, "(6, $d$)")
    product = d.box(560, top, "$qK^{\\mathrm{T}}$", "product", 64, 38)
    d.wire(made["q"].right, product.left)
    d.wire(stores["k"], (560, middle), product.bottom)
    scale, soft = d.pill(642, top, "÷ √$d$", 62), d.pill(730, top, "softmax", 74)
    d.wire(product.right, scale.left)
    d.wire(scale.right, soft.left)
    shares = [[0.25, 0.1, 0.5, 0.15, 0.35, 0.9]]
    weights = d.tensor(836, top, 1, 6, "focus", "weights", "(1, 6)", amounts=shares)
    d.wire(soft.right, weights.left)
    mix = d.box(836, bottom, "$AV$", "product", 58, 38)
    d.wire((836, top + 26), mix.top)
    d.wire(stores["v"], mix.left)
    y = d.tensor(922, bottom, 1, 3, "focus", "$y$", "(1, $d$)")
    d.wire(mix.right, y.left)
    d.legend(372, ("focus", "new: computed now"), ("keys", "kept: keys"),
             ("values", "kept: values"), ("weights", "weights, learned"))  # fmt: skip
    return d
