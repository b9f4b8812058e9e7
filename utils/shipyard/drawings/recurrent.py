"""An RNN in time, the cells of an LSTM and a GRU: memory runs along the top, time to the right."""

from __future__ import annotations

from shipyard import plots
from shipyard.drawings.paper import Drawing

STATE = {"colour": plots.BLUE, "width": 4}


def lstm_cell() -> Drawing:
    """One step of an LSTM, with the names of its formulas."""
    d = Drawing(
        760, 430,
        "An LSTM cell: the cell state c runs along the top; the forget gate multiplies it, the "
        "input gate times the candidate is added to it, and the output gate times its tanh becomes "
        "the hidden state h.",
    )  # fmt: skip
    d.group(70, 40, 680, 370)
    top, bottom, layer = 96, 336, 258
    forget, plus = d.op(190, top, "×"), d.op(400, top, "+")
    write, show = d.op(400, 178, "×"), d.op(592, layer, "×")
    squash = d.pill(592, 178, "tanh")
    gates = [("σ", 190, "forget"), ("σ", 290, "input"), ("tanh", 400, "candidate"),
             ("σ", 505, "output")]  # fmt: skip
    f, i, g, o = (d.box(x, layer, text) for text, x, _ in gates)
    for _, x, name in gates:
        d.note(x, 356, name)

    d.wire((16, top), forget.left, **STATE)
    d.wire(forget.right, plus.left, **STATE)
    d.wire(plus.right, (744, top), **STATE)
    d.dot(592, top, plots.BLUE)
    d.wire((592, top), squash.top, colour=plots.BLUE, width=2)
    d.wire((16, bottom), (505, bottom), o.bottom)
    for gate in (f, i, g):
        d.dot(gate.x, bottom)
        d.wire((gate.x, bottom), gate.bottom)
    d.wire((120, 418), (120, bottom), arrow=False)
    d.dot(120, bottom)
    d.wire(f.top, forget.bottom)
    d.wire(i.top, (i.x, write.y), write.left)
    d.wire(g.top, write.bottom)
    d.wire(write.top, plus.bottom)
    d.wire(o.right, show.left)
    d.wire(squash.bottom, show.top)
    d.wire(show.bottom, (592, bottom), (744, bottom))
    d.dot(645, bottom)
    d.wire((645, bottom), (645, 14), over=[(645, top)])

    d.label(36, top - 18, "$c_{t{-}1}$", plots.BLUE, 15)
    d.label(728, top - 18, "$c_t$", plots.BLUE, 15)
    d.label(36, bottom - 18, "$h_{t{-}1}$", size=15)
    d.label(728, bottom - 18, "$h_t$", size=15)
    d.label(663, 22, "$h_t$", size=15)
    d.label(138, 408, "$x_t$", size=15)
    for x, y, text in ((204, 205, "$f_t$"), (303, 205, "$i_t$"), (415, 218, "$g_t$"),
                       (553, 246, "$o_t$")):  # fmt: skip
        d.label(x, y, text, size=13)
    d.legend(404, ("weights", "weights"), ("function", "function"),
             ("op", "element by element"), ("state", "cell state"), x=180)  # fmt: skip
    return d


def gru_cell() -> Drawing:
    """One step of a GRU in torch's form: the reset gate acts after the product with W_hn."""
    d = Drawing(
        760, 440,
        "A GRU cell: the state h runs along the top; the update gate z says how much of it stays "
        "and how much of the candidate n is added; the reset gate r says how much of the old state "
        "enters the candidate.",
    )  # fmt: skip
    d.group(70, 30, 690, 384)
    top, layer, row, from_h, from_x = 76, 286, 212, 342, 362
    keep, plus = d.op(520, top, "×"), d.op(630, top, "+")
    reset, join, write = d.op(280, row, "×"), d.op(390, row, "+"), d.op(630, 144, "×")
    squash, rest = d.pill(390, 144, "tanh"), d.pill(578, row, "1 −", 44)
    r, past = d.box(180, layer, "σ"), d.box(280, layer, "$W_{hn}$")
    new, z = d.box(390, layer, "$W_{in}$"), d.box(520, layer, "σ")

    d.wire((16, top), keep.left, **STATE)
    d.wire(keep.right, plus.left, **STATE)
    d.wire(plus.right, (744, top), **STATE)
    d.dot(104, top, plots.BLUE)
    d.wire((104, top), (104, from_h), (512, from_h), (512, z.bottom[1]), colour=plots.BLUE, width=2)
    d.wire((130, 424), (130, from_x), (528, from_x), (528, z.bottom[1]), over=[(528, from_h)])
    for x in (172, 280):
        d.dot(x, from_h, plots.BLUE)
        d.wire((x, from_h), (x, r.bottom[1]), colour=plots.BLUE, width=2)
    for x in (188, 390):
        d.dot(x, from_x)
        d.wire((x, from_x), (x, r.bottom[1]), over=[(x, from_h)])
    d.wire(r.top, (180, row), reset.left)
    d.wire(past.top, reset.bottom)
    d.wire(reset.right, join.left)
    d.wire(new.top, join.bottom)
    d.wire(join.top, squash.bottom)
    d.wire(squash.right, write.left)
    d.wire(z.top, keep.bottom, over=[(520, 144)])
    d.dot(520, row)
    d.wire((520, row), rest.left)
    d.wire(rest.right, (630, row), write.bottom)
    d.wire(write.top, plus.bottom)

    d.label(36, top - 18, "$h_{t{-}1}$", plots.BLUE, 15)
    d.label(728, top - 18, "$h_t$", plots.BLUE, 15)
    d.label(148, 416, "$x_t$", size=15)
    for x, y, text in ((194, 240, "$r_t$"), (535, 250, "$z_t$"), (450, 130, "$n_t$")):
        d.label(x, y, text, size=13)
    for x, name in ((180, "reset"), (520, "update")):
        d.note(x + 44, layer + 25, name, "left") if name == "update" else d.note(x - 44, 316, name)
    d.legend(414, ("weights", "weights"), ("function", "function"), ("op", "element by element"),
             ("state", "state"), x=200)  # fmt: skip
    return d


def rnn_unrolled() -> Drawing:
    """A plain RNN as a loop, and unrolled over four steps."""
    d = Drawing(
        880, 300,
        "A recurrent network twice: on the left one cell whose state h goes back into it; on the "
        "right the same cell four times in a row, each step with its own input x below and its "
        "own output h above, and all with the same weights.",
    )  # fmt: skip
    middle, blue = 140, {"colour": plots.BLUE, "width": 2}
    loop = d.box(120, middle, "cell", width=76, height=52)
    d.wire((120, 226), loop.bottom)
    d.wire(loop.top, (120, 56))
    d.wire((158, middle), (194, middle), (194, 90), (46, 90), (46, middle), loop.left,
           over=[(120, 90)], **STATE)  # fmt: skip
    d.label(120, 242, "$x_t$", size=15)
    d.label(120, 40, "$h_t$", size=15)
    d.label(228, middle, "=", size=20)
    d.wire((272, middle), (332, middle), **STATE)
    d.label(296, middle - 20, "$h_0$", plots.BLUE, 14)
    for step in range(1, 5):
        x = 370 + 128 * (step - 1)
        cell = d.box(x, middle, "cell", width=76, height=52)
        d.wire((x, 226), cell.bottom)
        d.label(x, 242, f"$x_{step}$", size=15)
        d.wire(cell.right, (x + 90, middle), **STATE)
        d.dot(x + 58, middle, plots.BLUE)
        d.wire((x + 58, middle), (x + 58, 60), **blue)
        d.label(x + 58, 44, f"$h_{step}$", plots.BLUE, 14)
    d.legend(
        280, ("weights", "one cell: the same weights in every step"), ("state", "hidden state")
    )
    return d
