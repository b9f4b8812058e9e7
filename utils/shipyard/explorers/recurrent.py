"""Explorers for the LSTM cell: its gates one by one, and its gates while it reads a sentence."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from shipyard import plots, recurrent
from shipyard.explorers.base import Explorer

QUANTITIES = {
    "input gate i": "i",
    "forget gate f": "f",
    "output gate o": "o",
    "cell state c": "c",
    "hidden state h": "h",
}
"""What the sentence explorer can show: the name in words, and the letter in `gate_activity`."""

LONGEST = 80  # characters that fit side by side in one figure

_LABELS = {"description_width": "110px"}


# --- one step, gate by gate -----------------------------------------------------------------------


def lstm_step(i: float, f: float, g: float, o: float, c: float) -> dict[str, float]:
    """One step of an LSTM cell with one unit, from its four pre-activations and the old c.

    Returns:
        The gates "i", "f", "o", the candidate "g", "kept" = f · c, "written" = i · g, and the new
        "c" and "h".
    """
    x, one = torch.tensor([[i, f, g, o]]).double(), torch.eye(4).double()
    # With this weight the cell's pre-activations are the four numbers themselves.
    state = (torch.zeros(1, 1).double(), torch.tensor([[c]]).double())
    values = gate_activity(x.unsqueeze(1), (one, torch.zeros(4, 1).double(), None, None), state)
    step = {name: float(value) for name, value in values.items()}
    return {**step, "kept": step["f"] * c, "written": step["i"] * step["g"]}


def lstm_step_figure(i: float, f: float, g: float, o: float, c: float) -> Figure:
    """On the left how far each gate is open, on the right how the old c becomes the new c and h."""
    step = lstm_step(i, f, g, o, c)
    with plots.style():
        figure = Figure(figsize=(8.0, 2.9), dpi=100)
        gates, path = figure.subplots(1, 2, width_ratios=(1, 1.35))
        names = ["input i", "forget f", "candidate g", "output o"]
        colours = [plots.GREEN, plots.BLUE, plots.ORANGE, plots.PINK]
        _bars(gates, names, [step[name] for name in "ifgo"], colours)
        gates.set(xlim=(-1.35, 1.35), title="gates (0…1) and candidate (−1…1)")

        names = ["old c", "kept f · c", "written i · g", "new c", "shown h"]
        values = [c, step["kept"], step["written"], step["c"], step["h"]]
        colours = [plots.GREY, plots.BLUE, plots.ORANGE, plots.VERMILION, plots.PINK]
        starts = [0, 0, step["kept"], 0, 0]
        _bars(path, names, values, colours, starts)
        path.set(xlim=(-5.2, 5.2), title="new c = f · c + i · g,  h = o · tanh(new c)")
    return figure


def _bars(axis, names, values, colours, starts=None) -> None:
    """Horizontal bars with their numbers, each from its start."""
    starts = starts or [0] * len(values)
    axis.barh(names, values, left=starts, color=colours, height=0.62)
    axis.axvline(0, color=plots.INK, lw=0.8)
    for row, (value, start) in enumerate(zip(values, starts, strict=True)):
        end, side = start + value, "left" if value >= 0 else "right"
        text = f" {plots.number(value)} "
        axis.text(end, row, text, va="center", ha=side, fontsize=9)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


def lstm_step_text(i: float, f: float, g: float, o: float, c: float) -> str:
    """The two formulas of the cell with their numbers put in."""
    step = lstm_step(i, f, g, o, c)
    n = {name: plots.number(value) for name, value in step.items()}
    return (
        f"c = f · c + i · g = {n['f']} · {plots.number(c)} + {n['i']} · {n['g']} = {n['c']}\n"
        f"h = o · tanh(c) = {n['o']} · {plots.number(torch.tanh(torch.tensor(step['c'])))} "
        f"= {n['h']}"
    )


def lstm_step_explorer() -> Explorer:
    """Move the pre-activations of i, f, g, o and the old cell state; see the gates, c and h."""
    starts = {"i": 1.0, "f": 2.0, "g": 1.0, "o": 0.0}
    names = {"i": "input i", "f": "forget f", "g": "candidate g", "o": "output o"}
    controls = {
        letter: ipywidgets.FloatSlider(
            value=start, min=-6, max=6, step=0.5, description=names[letter], style=_LABELS
        )
        for letter, start in starts.items()
    }
    controls["c"] = ipywidgets.FloatSlider(
        value=2, min=-3, max=3, step=0.25, description="old cell state c", style=_LABELS
    )

    def redraw() -> tuple[Figure, str]:
        options = {name: slider.value for name, slider in controls.items()}
        return lstm_step_figure(**options), lstm_step_text(**options)

    return Explorer("shipyard-lstm-step-explorer", controls, redraw)


# --- a sentence, gate by gate ---------------------------------------------------------------------


@torch.no_grad()
def gate_activity(
    x: Tensor, weights: recurrent.Weights, state: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """The gates, the candidate and the states of an LSTM layer at each step of one sequence.

    Args:
        x: (1, time, input), one sequence
        weights: w_ih, w_hh, b_ih, b_hh of the layer
        state: (h, c) before the first step; zeros if None.

    Returns:
        "i", "f", "g", "o", "c" and "h", each (time, hidden).
    """
    w_ih, w_hh, b_ih, b_hh = weights
    if state is None:
        state = (x.new_zeros(1, w_hh.shape[1]),) * 2
    before, cells = [], []

    def remembering_cell(x_t, old, *weights):
        new = recurrent.lstm_cell(x_t, old, *weights)
        before.append(old[0])
        cells.append(new[1])
        return new

    outputs, _ = recurrent.unroll(remembering_cell, x, state, weights)
    total = x[0] @ w_ih.T + torch.cat(before) @ w_hh.T  # (time, 4 · hidden)
    for bias in (b_ih, b_hh):
        total = total if bias is None else total + bias
    i, f, g, o = total.chunk(4, dim=-1)
    values = {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
    return {**values, "c": torch.cat(cells), "h": outputs[0]}


def liveliest_units(activity: dict[str, Tensor], count: int) -> list[int]:
    """The ``count`` units whose hidden state varies most over the sentence, most lively first."""
    spread = activity["h"].std(dim=0, correction=0)
    return spread.argsort(descending=True, stable=True)[:count].tolist()


def sentence_figure(
    sentence: str, activity: dict[str, Tensor], quantity: str = "forget gate f", units: int = 16
) -> Figure:
    """A heat map: one column for each character, one row for each of the liveliest units.

    Gates run from white (shut) to dark blue (open), states from blue (below zero) to orange.

    Args:
        sentence: the text that was read.
        activity: as `gate_activity` returns it for that text.
        quantity: one of `QUANTITIES`.
        units: how many rows.

    Raises:
        ValueError: ``sentence`` is empty or too long, or ``quantity`` is unknown.
    """
    if not 1 <= len(sentence) <= LONGEST:
        raise ValueError(
            f"The sentence has {len(sentence)} characters; write 1 to {LONGEST}, so that each "
            "one gets a column."
        )
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity is {quantity!r}; choose one of: {', '.join(QUANTITIES)}.")
    rows = liveliest_units(activity, units)
    values = activity[QUANTITIES[quantity]][:, rows].T.cpu().numpy()
    is_gate = QUANTITIES[quantity] in "ifo"
    limit = 1.0 if is_gate else plots.signed_limit(values)
    with plots.style():
        figure = Figure(figsize=(8.4, 0.8 + 0.14 * max(len(rows), 8)), dpi=100)
        axis = figure.subplots()
        colours = plots.SEQUENTIAL if is_gate else plots.DIVERGING
        image = axis.imshow(
            values, cmap=colours, vmin=0 if is_gate else -limit, vmax=limit, aspect="auto"
        )
        letters = ["·" if letter == " " else letter for letter in sentence.replace("\n", "↵")]
        # parse_math: a $ in the sentence is a dollar sign
        axis.set_xticks(range(len(letters)), letters, fontsize=8, parse_math=False)
        axis.set_yticks(range(0, len(rows), 4), [str(row) for row in rows[::4]], fontsize=7)
        axis.set(xlabel="character that is read", ylabel="unit", title=quantity)
        axis.grid(False)
        figure.colorbar(image, ax=axis, pad=0.01)
    return figure


def sentence_text(sentence: str, activity: dict[str, Tensor]) -> str:
    """How far the gates are open on average, and after which character most was forgotten."""
    mean = {name: float(activity[name].mean()) for name in "ifo"}
    step = int(activity["f"].mean(dim=1).argmin())
    shown = {" ": "the blank", "\n": "the end of line"}.get(sentence[step], repr(sentence[step]))
    return (
        f"mean of the input gate {mean['i']:.2f}, forget gate {mean['f']:.2f}, "
        f"output gate {mean['o']:.2f}\n"
        f"most is forgotten at {shown}, character {step + 1} of {len(sentence)}: "
        f"mean forget gate {float(activity['f'][step].mean()):.2f}"
    )


def sentence_explorer(
    read: Callable[[str], dict[str, Tensor]], sentence: str = "Return the number of items."
) -> Explorer:
    """Type a sentence, choose what to see, and see it for each character.

    Args:
        read: takes a text and returns its `gate_activity`; it may raise ``ValueError`` for a
            text that it cannot read.
        sentence: the first text.
    """
    wide = ipywidgets.Layout(width="560px")
    controls = {
        "sentence": ipywidgets.Text(
            value=sentence, description="sentence, Enter", continuous_update=False, layout=wide,
            style=_LABELS,
        ),
        "quantity": ipywidgets.Dropdown(
            options=list(QUANTITIES), value="forget gate f", description="show", style=_LABELS
        ),
        "units": ipywidgets.IntSlider(
            value=16, min=4, max=40, step=4, description="units", style=_LABELS
        ),
    }  # fmt: skip

    def redraw() -> tuple[Figure, str]:
        written = controls["sentence"].value
        if not written:
            raise ValueError("Type at least one character, then press Enter.")
        activity = read(written)
        quantity, units = controls["quantity"].value, controls["units"].value
        figure = sentence_figure(written, activity, quantity, units)
        shown = min(units, activity["f"].shape[1])
        text = f"{quantity}: the {shown} units, of {activity['f'].shape[1]}, that change most\n"
        return figure, text + sentence_text(written, activity)

    return Explorer("shipyard-sentence-explorer", controls, redraw)
