"""Checks of gated recurrent cells: references in torch's form, and the cases to try them on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, sigmoid, tanh

from shipyard.checks import Case, check, draws

# The builtins behind torch's layers and cells, and autograd.
TORCHS_OWN = dict.fromkeys(
    ("rnn_tanh", "lstm", "gru", "rnn_tanh_cell", "lstm_cell", "gru_cell"),
    "That is what you are building: write the formulas yourself.",
) | {"run_backward": "That is autograd, which you are building: apply the chain rule yourself."}
_check = functools.partial(check, tolerance=1e-10, forbidden=TORCHS_OWN)  # float64 throughout


def rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    return tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)


def lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
    i, f, o = sigmoid(i), sigmoid(f), sigmoid(o)
    g = tanh(g)
    c = f * c + i * g
    h = o * tanh(c)
    return h, c


def gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, -1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, -1)
    r = sigmoid(x_r + h_r)
    z = sigmoid(x_z + h_z)
    n = tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def lstm_sequence(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = lstm_cell(x[:, t], (h, c), w_ih, w_hh, b_ih, b_hh)
        outputs.append(h)
    return torch.stack(outputs, dim=1), (h, c)


def masked_lengths(x, state, lengths, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        running = (t < lengths).unsqueeze(1)  # (batch, 1)
        h_new, c_new = lstm_cell(x[:, t], (h, c), w_ih, w_hh, b_ih, b_hh)
        outputs.append(torch.where(running, h_new, 0))
        h = torch.where(running, h_new, h)
        c = torch.where(running, c_new, c)
    return torch.stack(outputs, dim=1), (h, c)


def rnn_bptt(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = [h0]  # h[t + 1] is the state after step t
    for t in range(x.shape[1]):
        h.append(rnn_cell(x[:, t], h[t], w_ih, w_hh, b_ih, b_hh))
    grad_x, later = torch.zeros_like(x), torch.zeros_like(h0)
    grad_w_ih, grad_w_hh = torch.zeros_like(w_ih), torch.zeros_like(w_hh)
    grad_b = torch.zeros_like(b_ih)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * (1 - h[t + 1] ** 2)
        grad_x[:, t] = delta @ w_ih
        grad_w_ih += delta.T @ x[:, t]
        grad_w_hh += delta.T @ h[t]
        grad_b += delta.sum(0)
        later = delta @ w_hh
    return grad_x, later, grad_w_ih, grad_w_hh, grad_b, grad_b


def _arguments(
    draw: Callable[..., Tensor], batch: int, inputs: int, hidden: int, blocks: int, states: int = 1
) -> list[Tensor]:
    """x, then ``states`` states, then the four weights of a cell."""
    rows = blocks * hidden
    shapes = [(batch, inputs), *[(batch, hidden)] * states]
    shapes += [(rows, inputs), (rows, hidden), (rows,), (rows,)]
    return [draw(*shape) for shape in shapes]


def _cell_arguments(seed: int, blocks: int, states: int = 1) -> list[list[Tensor]]:
    """The same cases for each cell: batch 1, one input, one hidden unit, odd sizes, a view."""
    draw = draws(seed)
    sizes = [(2, 3, 2), (3, 2, 5), (4, 7, 4), (7, 3, 3), (1, 4, 3), (5, 1, 1), (1, 1, 2)]
    cases = [_arguments(draw, *size, blocks, states) for size in sizes]
    cases[3][0] = draw(3, 7).T  # not contiguous
    return cases


@_check(rnn_cell)
def check_rnn_cell():
    """The plain cell."""
    return [Case(*arguments) for arguments in _cell_arguments(21, blocks=1)]


@_check(lstm_cell, outputs=("h", "c"))
def check_lstm_cell():
    """The state is (h, c)."""
    return [
        Case(x, (h, 1.5 * c), *weights)
        for x, h, c, *weights in _cell_arguments(22, blocks=4, states=2)
    ]


@_check(gru_cell)
def check_gru_cell():
    """In torch's form."""
    return [Case(*arguments) for arguments in _cell_arguments(23, blocks=3)]


@_check(lstm_sequence, seed=24, outputs=("outputs", "state"))
def check_lstm_sequence(draw):
    """Returns (outputs, (h, c))."""

    def case(batch, time, inputs, hidden):
        _, h, c, *weights = _arguments(draw, batch, inputs, hidden, blocks=4, states=2)
        return Case(draw(batch, time, inputs), (h, c), *weights)

    sizes = [
        (3, 3, 2, 2), (3, 1, 2, 4), (2, 5, 3, 2), (4, 7, 1, 3), (3, 4, 5, 4), (2, 2, 1, 1),
        (1, 3, 2, 2),
    ]  # fmt: skip
    return [case(*size) for size in sizes]


@_check(masked_lengths, seed=25, outputs=("outputs", "state"))
def check_masked_lengths(draw):
    """An LSTM on a batch of padded sequences: returns (outputs, (h, c))."""

    def case(lengths, time, inputs, hidden):
        lengths = torch.tensor(lengths)
        x, h, c, *weights = _arguments(draw, len(lengths), inputs, hidden, blocks=4, states=2)
        x = draw(len(lengths), time, inputs)  # the padding holds numbers too, and must not matter
        return Case(x, (h, c), lengths, *weights)

    sizes = [
        ([3, 2], 3, 2, 2), ([1, 3], 4, 2, 3), ([4, 1, 3, 2], 4, 3, 2), ([1, 1, 1], 2, 2, 3),
        ([5, 5], 5, 1, 2), ([2, 5, 1, 4, 3], 7, 3, 4), ([1, 3], 3, 1, 1), ([2], 4, 2, 2),
    ]  # fmt: skip
    return [case(*size) for size in sizes]


@_check(
    rnn_bptt,
    seed=26,
    outputs=("grad_x", "grad_h0", "grad_w_ih", "grad_w_hh", "grad_b_ih", "grad_b_hh"),
)
def check_rnn_bptt(draw):
    """Gradients, by hand, for x, h0, w_ih, w_hh, b_ih, b_hh."""

    def case(batch, time, inputs, hidden):
        _, h0, *weights = _arguments(draw, batch, inputs, hidden, blocks=1)
        return Case(draw(batch, time, hidden), draw(batch, time, inputs), h0, *weights)

    sizes = [(2, 3, 3, 2), (3, 5, 2, 4), (4, 2, 3, 2), (2, 9, 1, 3), (1, 2, 1, 2), (1, 1, 2, 3)]
    return [case(*size) for size in sizes]
