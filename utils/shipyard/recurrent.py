"""The LSTM cell from its formula, and a cell of any kind unrolled over time.

A cell takes one step: (x_t, state) -> new state. `unroll` takes one step for each position of a
sequence. The cell agrees with ``torch.nn.LSTMCell``, and unrolled it agrees with one layer of
``torch.nn.LSTM`` that was made with ``batch_first=True``.

Shapes: x_t is (batch, input), a sequence x is (batch, time, input), h and c are (batch, hidden).
Weights are torch's: w_ih is (gates · hidden, input), w_hh is (gates · hidden, hidden), both
biases are (gates · hidden) or None. The LSTM has 4 gates, whose blocks of rows lie under each
other in the order that the cell names.

Sources: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997; F. Gers et al.,
"Learning to forget", 2000 (the forget gate).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c)
Weights = Sequence[Tensor | None]  # w_ih, w_hh, b_ih, b_hh


def lstm_cell(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """i, f, o = σ(…), g = tanh(…);  c' = f ⊙ c + i ⊙ g;  h' = o ⊙ tanh(c').

    Each … is W_ih x + b_ih + W_hh h + b_hh with its own block of rows; the blocks are
    i, f, g, o: input gate, forget gate, candidate, output gate.

    Args:
        x: (batch, input)
        state: (h, c), both (batch, hidden): the hidden state and the cell state
        w_ih, w_hh, b_ih, b_hh: see the module; four blocks of rows.

    Returns:
        (h', c'), the state after this step.

    Raises:
        ValueError: the shapes do not fit each other; the message names them.
    """
    h, c = state
    _check(x, h, w_ih, w_hh)
    i, f, g, o = (_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def unroll(
    cell: Callable[..., State],
    x: Tensor,
    state: State,
    weights: Weights,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """outputs[:, t] = h_t, with state_t = cell(x[:, t], state_{t−1}, *weights).

    Args:
        cell: `lstm_cell`, or any function with its arguments
        x: (batch, time, input)
        state: the state before the first step: h, or (h, c)
        weights: w_ih, w_hh, b_ih, b_hh
        lengths: (batch), how many steps of each sequence count; the rest is padding. There the
            output is zero and the state stays as it is. None: all steps count.

    Returns:
        (outputs, state): (batch, time, hidden), and the state after the last step that counts.

    Raises:
        ValueError: there is no step, or ``lengths`` does not fit ``x``.
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (batch, time, input) with at least one step."
        )
    time = range(x.shape[1])
    if lengths is not None:
        _check_lengths(x, lengths)
        counts = torch.arange(len(time), device=x.device) < lengths.unsqueeze(1)  # (batch, time)
        # NaN in the padding would reach the gradients, as 0 · NaN
        x = torch.where(counts.unsqueeze(-1), x, 0)
    outputs = []
    for t in time:
        new = cell(x[:, t], state, *weights)
        h = new[0] if isinstance(new, tuple) else new
        if lengths is None:
            state = new
        else:
            running = counts[:, t : t + 1]  # (batch, 1)
            h = torch.where(running, h, 0)
            state = _choose(running, new, state)
        outputs.append(h)
    return torch.stack(outputs, dim=1), state


def layer_weights(module: torch.nn.RNNBase) -> list[tuple[Tensor | None, ...]]:
    """The weights of a ``torch.nn.RNN``, ``LSTM`` or ``GRU``, one entry for each direction."""
    weights = [tuple(entry) for entry in module.all_weights]
    return weights if module.bias else [(*entry, None, None) for entry in weights]


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.T
    return product if bias is None else product + bias


def _choose(running: Tensor, new: State, old: State) -> State:
    """``new`` where a sequence still runs, else ``old``."""
    if isinstance(new, tuple):
        return tuple(torch.where(running, n, o) for n, o in zip(new, old, strict=True))
    return torch.where(running, new, old)


def _check(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor) -> None:
    rows = 4 * h.shape[-1]
    if w_ih.shape != (rows, x.shape[-1]) or w_hh.shape != (rows, h.shape[-1]):
        raise ValueError(
            f"w_ih has shape {tuple(w_ih.shape)} and w_hh {tuple(w_hh.shape)}; for x "
            f"{tuple(x.shape)} and h {tuple(h.shape)} they must be {(rows, x.shape[-1])} and "
            f"{(rows, h.shape[-1])}: 4 blocks of {h.shape[-1]} rows."
        )


def _check_lengths(x: Tensor, lengths: Tensor) -> None:
    if lengths.shape != x.shape[:1]:
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)}; expected ({x.shape[0]},), one number for "
            f"each sequence of x {tuple(x.shape)}."
        )
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
        raise ValueError(
            f"lengths run from {int(lengths.min())} to {int(lengths.max())}; a length must lie "
            f"from 0 to {x.shape[1]}, the number of steps in x {tuple(x.shape)}."
        )
