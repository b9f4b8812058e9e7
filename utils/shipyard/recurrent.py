"""Recurrent cells from their formulas, unrolled over time, and the gradients of the plain cell.

A cell takes one step: (x_t, state) -> new state. `unroll` takes one step for each position of a
sequence, `stack` puts layers on top of each other, in one direction or both. The cells agree
with ``torch.nn.RNNCell``, ``LSTMCell`` and ``GRUCell``, the layers with ``torch.nn.RNN``,
``LSTM`` and ``GRU`` when those are made with ``batch_first=True``.

Shapes: x_t is (batch, input), a sequence x is (batch, time, input), h and c are (batch, hidden).
Weights are torch's: w_ih is (gates · hidden, input), w_hh is (gates · hidden, hidden), both
biases are (gates · hidden) or None, where gates is 1 for the plain cell, 4 for the LSTM and 3 for
the GRU, whose blocks of rows lie under each other in the order that the cell names.

Sources: J. Elman, "Finding structure in time", 1990; S. Hochreiter and J. Schmidhuber, "Long
short-term memory", 1997; F. Gers et al., "Learning to forget", 2000 (the forget gate); K. Cho et
al., "Learning phrase representations using RNN encoder-decoder", 2014 (the GRU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c)
Weights = Sequence[Tensor | None]  # w_ih, w_hh, b_ih, b_hh


def rnn_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Tensor:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        x: (batch, input)
        h: (batch, hidden), the hidden state before this step
        w_ih, w_hh, b_ih, b_hh: see the module; one block of rows.

    Returns:
        (batch, hidden), the hidden state after this step.

    Raises:
        ValueError: the shapes do not fit each other; the message names them.
    """
    _check(x, h, w_ih, w_hh, blocks=1)
    return torch.tanh(_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh))


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
    _check(x, h, w_ih, w_hh, blocks=4)
    i, f, g, o = (_affine(x, w_ih, b_ih) + _affine(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Tensor:
    """r, z = σ(…);  n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn));  h' = (1 − z) ⊙ n + z ⊙ h.

    Each … is W_ih x + b_ih + W_hh h + b_hh with its own block of rows; the blocks are r, z, n:
    reset gate, update gate, candidate. The reset gate acts after the product with W_hn, as in
    torch and cuDNN. The paper resets h before it, which gives other values.

    Args and returns: as `rnn_cell`, with three blocks of rows.

    Raises:
        ValueError: the shapes do not fit each other; the message names them.
    """
    _check(x, h, w_ih, w_hh, blocks=3)
    x_r, x_z, x_n = _affine(x, w_ih, b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = _affine(h, w_hh, b_hh).chunk(3, dim=-1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def unroll(
    cell: Callable[..., State],
    x: Tensor,
    state: State,
    weights: Weights,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """outputs[:, t] = h_t, with state_t = cell(x[:, t], state_{t−1}, *weights).

    Args:
        cell: `rnn_cell`, `lstm_cell`, `gru_cell`, or any function with their arguments
        x: (batch, time, input)
        state: the state before the first step: h, or (h, c)
        weights: w_ih, w_hh, b_ih, b_hh
        lengths: (batch), how many steps of each sequence count; the rest is padding. There the
            output is zero and the state stays as it is. None: all steps count.
        reverse: read each sequence from its own last step to its first.

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
    outputs: list[Tensor] = [None] * len(time)
    for t in reversed(time) if reverse else time:
        new = cell(x[:, t], state, *weights)
        outputs[t] = hidden(new)
        if lengths is None:
            state = new
        else:
            running = counts[:, t : t + 1]  # (batch, 1)
            outputs[t] = torch.where(running, outputs[t], 0)
            state = _choose(running, new, state)
    return torch.stack(outputs, dim=1), state


def stack(
    cell: Callable[..., State],
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Weights],
    lengths: Tensor | None = None,
    bidirectional: bool = False,
) -> tuple[Tensor, list[State]]:
    """`unroll` layer over layer: the outputs of one layer are the input of the next.

    With ``bidirectional`` a layer reads x forwards and backwards with different weights, and
    its output is both outputs side by side: (batch, time, 2 · hidden).

    Args:
        states, weights: one entry for each layer, or, with ``bidirectional``, for each layer and
            direction in torch's order: layer 0 forwards, layer 0 backwards, layer 1 forwards, …

    Returns:
        (outputs, states): those of the last layer, and the last state of each entry.

    Raises:
        ValueError: as `unroll`, or the number of states or weights is wrong.
    """
    directions = 2 if bidirectional else 1
    if not weights or len(weights) != len(states) or len(weights) % directions:
        raise ValueError(
            f"{len(weights)} weights and {len(states)} states; expected as many of one as of the "
            f"other, {directions} for each layer."
        )
    finals = []
    for first in range(0, len(weights), directions):
        outputs = []
        for direction in range(directions):
            entry = first + direction
            y, final = unroll(cell, x, states[entry], weights[entry], lengths, direction == 1)
            outputs.append(y)
            finals.append(final)
        x = torch.cat(outputs, dim=-1)
    return x, finals


def rnn_bptt(
    grad_outputs: Tensor,
    x: Tensor,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Back-propagation through time for the plain cell, by hand.

    With G_t = grad_outputs[:, t], the gradient of the loss for h_t by every way that does not
    lead through h_{t+1}, going from the last step to the first:

    - D_t = G_t + δ_{t+1} W_hh, the whole gradient for h_t (after the last step δ is zero)
    - δ_t = D_t ⊙ (1 − h_t²), the gradient for what stands inside the tanh

    and then grad_x_t = δ_t W_ih, grad_W_ih = Σ_t δ_tᵀ x_t, grad_W_hh = Σ_t δ_tᵀ h_{t−1},
    grad_b_ih = grad_b_hh = Σ_t δ_t, each summed over the batch too, and grad_h_0 = δ_1 W_hh.

    Args:
        grad_outputs: (batch, time, hidden)
        x: (batch, time, input)
        h0: (batch, hidden), the state before the first step
        w_ih, w_hh, b_ih, b_hh: as in `rnn_cell`.

    Returns:
        The gradients for x, h0, w_ih, w_hh, b_ih, b_hh.

    Raises:
        ValueError: the shapes do not fit each other; the message names them.
    """
    h, _ = unroll(rnn_cell, x, h0, (w_ih, w_hh, b_ih, b_hh))
    if grad_outputs.shape != h.shape:
        raise ValueError(
            f"grad_outputs has shape {tuple(grad_outputs.shape)}; expected {tuple(h.shape)}, the "
            f"shape of the outputs for x {tuple(x.shape)}."
        )
    before = torch.cat([h0.unsqueeze(1), h[:, :-1]], dim=1)  # h_{t−1} at each t
    delta = torch.empty_like(h)  # (batch, time, hidden)
    from_later = torch.zeros_like(h0)
    for t in reversed(range(x.shape[1])):
        delta[:, t] = (grad_outputs[:, t] + from_later) * (1 - h[:, t] ** 2)
        from_later = delta[:, t] @ w_hh

    grad_w_ih = torch.einsum("nth,nti->hi", delta, x)
    grad_w_hh = torch.einsum("nth,ntk->hk", delta, before)
    grad_b = delta.sum((0, 1))
    return delta @ w_ih, from_later, grad_w_ih, grad_w_hh, grad_b, grad_b.clone()


def layer_weights(module: torch.nn.RNNBase) -> list[tuple[Tensor | None, ...]]:
    """The weights of a ``torch.nn.RNN``, ``LSTM`` or ``GRU``, as `stack` takes them."""
    weights = [tuple(entry) for entry in module.all_weights]
    return weights if module.bias else [(*entry, None, None) for entry in weights]


def hidden(state: State) -> Tensor:
    """The h of a state: the state itself, or the first of (h, c)."""
    return state[0] if isinstance(state, tuple) else state


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.T
    return product if bias is None else product + bias


def _choose(running: Tensor, new: State, old: State) -> State:
    """``new`` where a sequence still runs, else ``old``."""
    if isinstance(new, tuple):
        return tuple(torch.where(running, n, o) for n, o in zip(new, old, strict=True))
    return torch.where(running, new, old)


def _check(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, blocks: int) -> None:
    rows = blocks * h.shape[-1]
    if w_ih.shape != (rows, x.shape[-1]) or w_hh.shape != (rows, h.shape[-1]):
        raise ValueError(
            f"w_ih has shape {tuple(w_ih.shape)} and w_hh {tuple(w_hh.shape)}; for x "
            f"{tuple(x.shape)} and h {tuple(h.shape)} they must be {(rows, x.shape[-1])} and "
            f"{(rows, h.shape[-1])}: {blocks} block(s) of {h.shape[-1]} rows."
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
