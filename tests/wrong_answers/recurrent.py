"""Wrong answers on gated recurrent cells, and other correct ones."""

import torch
import torch.nn.functional as F

from shipyard import recurrent
from wrong_answers import Task, but

TASKS = {
    "rnn_cell": (RNN_CELL := Task()),
    "lstm_cell": (LSTM_CELL := Task()),
    "gru_cell": (GRU_CELL := Task()),
    "lstm_sequence": (LSTM_SEQUENCE := Task()),
    "masked_lengths": (MASKED_LENGTHS := Task()),
    "rnn_bptt": (RNN_BPTT := Task()),
}


# The plain cell.


@RNN_CELL.passes
def multiplies_once(x, h, w_ih, w_hh, b_ih, b_hh):
    both = torch.cat([x, h], dim=1)
    return torch.tanh(both @ torch.cat([w_ih, w_hh], dim=1).T + (b_ih + b_hh))


@RNN_CELL.passes
def writes_tanh_out(x, h, w_ih, w_hh, b_ih, b_hh):
    a = torch.einsum("ni,hi->nh", x, w_ih) + torch.einsum("nk,hk->nh", h, w_hh)
    return 2 * torch.sigmoid(2 * (a + b_ih + b_hh)) - 1


RNN_CELL.fails_with(
    "another-activation",
    but(
        writes_tanh_out,
        "2 * torch.sigmoid(2 * (a + b_ih + b_hh)) - 1",
        "torch.sigmoid(a + b_ih + b_hh)",
    ),
)
RNN_CELL.fails_with("w_hh-not-transposed", but(writes_tanh_out, "hk->nh", "kh->nh"))


RNN_CELL.forbids(torch.rnn_tanh_cell)


# The LSTM cell.


LSTM_CELL.passes(recurrent.lstm_cell)


@LSTM_CELL.passes
def computes_gate_by_gate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state

    def part(k):
        rows = slice(k * c.shape[1], (k + 1) * c.shape[1])
        return x @ w_ih[rows].T + b_ih[rows] + h @ w_hh[rows].T + b_hh[rows]

    new = torch.sigmoid(part(1)) * c + torch.sigmoid(part(0)) * torch.tanh(part(2))
    return [torch.sigmoid(part(3)) * torch.tanh(new), new]


LSTM_CELL.fails_with(
    "candidate-as-state",
    but(computes_gate_by_gate, "torch.tanh(new), new", "torch.tanh(new), torch.tanh(part(2))"),
)
LSTM_CELL.fails_with("h-and-c-swapped", but(computes_gate_by_gate, "h, c = state", "c, h = state"))


LSTM_CELL.forbids(torch.lstm_cell)


# The GRU cell.


@GRU_CELL.passes
def moves_towards_the_candidate(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3, 1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n)


GRU_CELL.fails_with(
    "update-gate-swapped", but(moves_towards_the_candidate, "n + z * (h - n)", "h + z * (n - h)")
)
GRU_CELL.fails_with(
    "reset-gate-misplaced", but(moves_towards_the_candidate, "x_n + r * h_n", "r * (x_n + h_n)")
)


@GRU_CELL.passes
def goes_row_by_row(x, h, w_ih, w_hh, b_ih, b_hh):
    size, rows = h.shape[1], []
    for x_row, h_row in zip(x, h, strict=True):
        a, b = w_ih @ x_row + b_ih, w_hh @ h_row + b_hh
        r, z = torch.sigmoid(a + b)[: 2 * size].split(size)
        n = torch.tanh(a[2 * size :] + r * b[2 * size :])
        rows.append(torch.lerp(n, h_row, z))
    return torch.stack(rows)


GRU_CELL.forbids(torch.gru_cell)


# The LSTM over a sequence.


@LSTM_SEQUENCE.passes
def unrolls(x, state, *weights):
    return recurrent.unroll(recurrent.lstm_cell, x, state, weights)


@LSTM_SEQUENCE.passes
def fills_a_tensor(x, state, *weights):
    outputs = x.new_empty(*x.shape[:2], state[0].shape[1])
    for t in range(x.shape[1]):
        state = computes_gate_by_gate(x[:, t], state, *weights)
        outputs[:, t] = state[0]
    return outputs, state


LSTM_SEQUENCE.fails_with(
    "read-backwards", but(fills_a_tensor, "range(x.shape[1])", "reversed(range(x.shape[1]))")
)
LSTM_SEQUENCE.fails_with("cell-state-as-output", but(fills_a_tensor, "= state[0]", "= state[1]"))


# Lengths.


@MASKED_LENGTHS.passes
def unrolls_as_far_as_it_goes(x, state, lengths, *weights):
    return recurrent.unroll(recurrent.lstm_cell, x, state, weights, lengths)


@MASKED_LENGTHS.passes
def reads_one_sequence_at_a_time(x, state, lengths, *weights):
    outputs, finals = x.new_zeros(*x.shape[:2], state[0].shape[1]), []
    for n, length in enumerate(lengths.tolist()):
        one = (state[0][n : n + 1], state[1][n : n + 1])
        outputs[n, :length], one = unrolls(x[n : n + 1, :length], one, *weights)
        finals.append(one)
    h, c = zip(*finals, strict=True)
    return outputs, (torch.cat(h), torch.cat(c))


MASKED_LENGTHS.fails_with(
    "one-length-for-all",
    but(reads_one_sequence_at_a_time, "lengths.tolist()", "lengths * 0 + lengths.max()"),
)
MASKED_LENGTHS.fails_with(
    "outputs-cut-short",
    but(reads_one_sequence_at_a_time, "return outputs,", "return outputs[:, : lengths.max()],"),
)


@MASKED_LENGTHS.forbids
def packs(x, state, lengths, *weights):
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    lstm = torch.nn.LSTM(x.shape[2], weights[1].shape[1], batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for parameter, value in zip(lstm.parameters(), weights, strict=True):
            parameter.copy_(value)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, (h, c) = lstm(packed, (state[0][None], state[1][None]))
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
    return outputs, (h[0], c[0])


# Back-propagation through time.


def right_deltas(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    """The states and the deltas of all steps, (batch, time, hidden), and the gradient for h0."""
    h, deltas, later = [h0], [], 0
    for t in range(x.shape[1]):
        h.append(torch.tanh(x[:, t] @ w_ih.T + b_ih + h[-1] @ w_hh.T + b_hh))
    for t in reversed(range(x.shape[1])):
        deltas.append((grad_outputs[:, t] + later) * (1 - h[t + 1].square()))
        later = deltas[-1] @ w_hh
    return torch.stack(h, 1), torch.stack(deltas[::-1], 1), later


@RNN_BPTT.passes
def adds_up_by_einsum(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = right_deltas(grad_outputs, x, h0, *weights)
    d_ih = torch.einsum("nth,nti->hi", delta, x)
    d_hh = torch.einsum("nth,nti->hi", delta, h[:, :-1])
    return delta @ weights[0], d_h0, d_ih, d_hh, delta.sum((0, 1)), delta.sum((0, 1))


@RNN_BPTT.passes
def sums_flattened_rows(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h, delta, d_h0 = right_deltas(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh)
    rows = delta.flatten(0, 1)
    d_b = rows.sum(0)
    d_ih, d_hh = rows.T @ x.flatten(0, 1), rows.T @ h[:, :-1].flatten(0, 1)
    return delta @ w_ih, d_h0, d_ih, d_hh, d_b, d_b


RNN_BPTT.fails_with("grad-of-h0", but(sums_flattened_rows, "@ w_ih, d_h0", "@ w_ih, delta[:, 0]"))
RNN_BPTT.fails_with("state-after-the-step", but(sums_flattened_rows, "h[:, :-1]", "h[:, 1:]"))


@RNN_BPTT.forbids
def asks_autograd(grad_outputs, x, h0, *weights):
    inputs = [v.detach().clone().requires_grad_() for v in (x, h0, *weights)]
    states, _, _ = right_deltas(grad_outputs, *inputs)
    return list(torch.autograd.grad((states[:, 1:] * grad_outputs).sum(), inputs))
