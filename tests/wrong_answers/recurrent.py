"""Wrong answers on gated recurrent cells, and other correct ones."""

import torch
import torch.nn.functional as F

from wrong_answers import Task

RNN_CELL, LSTM_CELL, GRU_CELL, LSTM_SEQUENCE, MASKED_LENGTHS, RNN_BPTT = (Task() for _ in range(6))
TASKS = {
    "rnn_cell": RNN_CELL,
    "lstm_cell": LSTM_CELL,
    "gru_cell": GRU_CELL,
    "lstm_sequence": LSTM_SEQUENCE,
    "masked_lengths": MASKED_LENGTHS,
    "rnn_bptt": RNN_BPTT,
}


# The plain cell.


@RNN_CELL.fails_with("another-activation")
def squashes_with_sigmoid(x, h, w_ih, w_hh, b_ih, b_hh):
    return 1 / (1 + torch.exp(-(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)))


@RNN_CELL.fails_with("w_hh-not-transposed")
def multiplies_from_the_wrong_side(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + b_ih + h @ w_hh + b_hh)


@RNN_CELL.fails_with("raised-error")
def forgets_to_transpose(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih + b_ih + h @ w_hh + b_hh)


@RNN_CELL.fails_with("changed-input")
def adds_in_place(x, h, w_ih, w_hh, b_ih, b_hh):
    b_ih += b_hh
    return torch.tanh(x @ w_ih.T + h @ w_hh.T + b_ih)


@RNN_CELL.passes
def multiplies_once(x, h, w_ih, w_hh, b_ih, b_hh):
    both = torch.cat([x, h], dim=1)
    return torch.tanh(both @ torch.cat([w_ih, w_hh], dim=1).T + (b_ih + b_hh))


@RNN_CELL.passes
def writes_tanh_out(x, h, w_ih, w_hh, b_ih, b_hh):
    a = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    return 2 * torch.sigmoid(2 * a) - 1


@RNN_CELL.passes
def sums_by_einsum(x, h, w_ih, w_hh, b_ih, b_hh):
    a = torch.einsum("ni,hi->nh", x, w_ih) + torch.einsum("nk,hk->nh", h, w_hh)
    return (a + b_ih + b_hh).tanh()


# The LSTM cell.


@LSTM_CELL.fails_with("tanh-on-gates")
def uses_tanh_everywhere(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).tanh().chunk(4, 1)
    c = f * c + i * g
    return o * c.tanh(), c


@LSTM_CELL.fails_with("h-and-c-swapped")
def has_c_first_throughout(x, state, w_ih, w_hh, b_ih, b_hh):
    c, h = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


@LSTM_CELL.fails_with("w_hh-not-transposed")
def multiplies_each_block_from_the_wrong_side(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    a = [
        F.linear(x, u, b) + h @ w + d
        for u, w, b, d in zip(
            w_ih.chunk(4), w_hh.chunk(4), b_ih.chunk(4), b_hh.chunk(4), strict=True
        )
    ]
    c = a[1].sigmoid() * c + a[0].sigmoid() * a[2].tanh()
    return a[3].sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("wrong-type")
def returns_h_alone(x, state, w_ih, w_hh, b_ih, b_hh):
    return torch.lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh)[0]


@LSTM_CELL.passes
def computes_gate_by_gate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    n = c.shape[1]

    def part(k):
        rows = slice(k * n, (k + 1) * n)
        return x @ w_ih[rows].T + b_ih[rows] + h @ w_hh[rows].T + b_hh[rows]

    new = torch.sigmoid(part(1)) * c + torch.sigmoid(part(0)) * torch.tanh(part(2))
    return torch.sigmoid(part(3)) * torch.tanh(new), new


@LSTM_CELL.fails_with("forbidden-call")
def calls_torchs_layer(x, state, w_ih, w_hh, b_ih, b_hh):
    cell = torch.nn.LSTMCell(x.shape[1], w_hh.shape[1], dtype=x.dtype)
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), (w_ih, w_hh, b_ih, b_hh), strict=True):
            parameter.copy_(value)
    return cell(x, tuple(state))


@LSTM_CELL.passes
def returns_a_list(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    blocks = torch.cat([x, h], 1) @ torch.cat([w_ih, w_hh], 1).T + b_ih + b_hh
    i, f, g, o = blocks.unflatten(1, (4, -1)).unbind(1)
    c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
    return [o.sigmoid() * c.tanh(), c]


# The GRU cell.


@GRU_CELL.fails_with("reset-before-product")
def follows_the_paper(x, h, w_ih, w_hh, b_ih, b_hh):
    w_r, w_z, w_n = w_hh.chunk(3)
    b_r, b_z, b_n = b_hh.chunk(3)
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    r = torch.sigmoid(x_r + h @ w_r.T + b_r)
    z = torch.sigmoid(x_z + h @ w_z.T + b_z)
    n = torch.tanh(x_n + (r * h) @ w_n.T + b_n)
    return (1 - z) * n + z * h


@GRU_CELL.fails_with("reset-without-bias")
def resets_the_product_alone(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih + b_hh).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("wrong-type")
def returns_a_pair(x, h, w_ih, w_hh, b_ih, b_hh):
    h = torch.gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)
    return h, h


@GRU_CELL.passes
def moves_towards_the_candidate(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = F.linear(x, w_ih, b_ih).chunk(3, 1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return n + z * (h - n)


@GRU_CELL.passes
def goes_row_by_row(x, h, w_ih, w_hh, b_ih, b_hh):
    size = h.shape[1]
    rows = []
    for x_row, h_row in zip(x, h, strict=True):
        a, b = w_ih @ x_row + b_ih, w_hh @ h_row + b_hh
        r, z = torch.sigmoid(a + b)[: 2 * size].split(size)
        n = torch.tanh(a[2 * size :] + r * b[2 * size :])
        rows.append(torch.lerp(n, h_row, z))
    return torch.stack(rows)


# The LSTM over a sequence.


@LSTM_SEQUENCE.fails_with("batch-and-time-swapped")
def walks_along_the_batch(x, state, *weights):
    outputs = []
    for x_t in x:
        state = torch.lstm_cell(x_t, state, *weights)
        outputs.append(state[0])
    return torch.stack(outputs, 1), state


@LSTM_SEQUENCE.fails_with("batch-and-time-swapped")
def takes_torchs_default_layout(x, state, *weights):
    h, c = (s[None] for s in state)
    outputs, h, c = torch.lstm(x, (h, c), weights, True, 1, 0.0, False, False, False)
    return outputs, (h[0], c[0])


@LSTM_SEQUENCE.fails_with("read-backwards")
def reads_from_the_end(x, state, *weights):
    outputs = []
    for t in range(x.shape[1] - 1, -1, -1):
        state = torch.lstm_cell(x[:, t], state, *weights)
        outputs.insert(0, state[0])
    return torch.stack(outputs, 1), state


def steps(x, state, w_ih, w_hh, b_ih, b_hh):
    """A cell of the learner's own."""
    h, c = state
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_SEQUENCE.passes
def joins_the_steps(x, state, *weights):
    outputs = []
    for x_t in x.unbind(1):
        state = steps(x_t, state, *weights)
        outputs.append(state[0].unsqueeze(1))
    return torch.cat(outputs, 1), state


@LSTM_SEQUENCE.fails_with("forbidden-call")
def calls_torchs_lstm(x, state, *weights):
    h, c = (s[None] for s in state)
    outputs, h, c = torch.lstm(x, (h, c), weights, True, 1, 0.0, False, False, True)
    return outputs, (h[0], c[0])


@LSTM_SEQUENCE.passes
def fills_a_tensor(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    parts = x @ w_ih.T + b_ih + b_hh  # the input's part of all steps at once
    outputs = x.new_empty(*x.shape[:2], h.shape[1])
    for t in range(x.shape[1]):
        i, f, g, o = (parts[:, t] + h @ w_hh.T).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs[:, t] = h
    return outputs, [h, c]


# Lengths.


def _steps(x, state, weights):
    """Yields t, the old state and the new one; ``send`` sets the state to go on from."""
    for t in range(x.shape[1]):
        new = torch.lstm_cell(x[:, t], state, *weights)
        state = yield t, state, new


def _read(x, state, lengths, weights, update):
    """Calls update(t, running, old, new) -> (output, state) at each step."""
    outputs, steps, state = [], _steps(x, tuple(state), weights), tuple(state)
    t, old, new = next(steps)
    while True:
        output, state = update(t, (t < lengths)[:, None], old, new)
        outputs.append(output)
        try:
            t, old, new = steps.send(state)
        except StopIteration:
            return torch.stack(outputs, 1), state


@MASKED_LENGTHS.fails_with("state-not-frozen")
def masks_the_outputs_only(x, state, lengths, *weights):
    outputs, state = _read(x, state, lengths, weights, lambda t, running, old, new: (new[0], new))
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return outputs * mask[..., None], state


@MASKED_LENGTHS.fails_with("outputs-cut-short")
def packs_without_the_total_length(x, state, lengths, *weights):
    return _packed(x, state, lengths, weights, total_length=None)


def _packed(x, state, lengths, weights, total_length):
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    lstm = torch.nn.LSTM(x.shape[2], weights[1].shape[1], batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for parameter, value in zip(lstm.parameters(), weights, strict=True):
            parameter.copy_(value)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, (h, c) = lstm(packed, (state[0][None], state[1][None]))
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=total_length)
    return outputs, (h[0], c[0])


@MASKED_LENGTHS.fails_with("forbidden-call")
def packs(x, state, lengths, *weights):
    return _packed(x, state, lengths, weights, total_length=x.shape[1])


@MASKED_LENGTHS.passes
def reads_one_sequence_at_a_time(x, state, lengths, *weights):
    outputs = x.new_zeros(*x.shape[:2], state[0].shape[1])
    finals = []
    for n, length in enumerate(lengths.tolist()):
        one = (state[0][n : n + 1], state[1][n : n + 1])
        for t in range(length):
            one = steps(x[n : n + 1, t], one, *weights)
            outputs[n, t] = one[0]
        finals.append(one)
    h, c = zip(*finals, strict=True)
    return outputs, (torch.cat(h), torch.cat(c))


@MASKED_LENGTHS.passes
def blends_with_the_mask(x, state, lengths, *weights):
    h, c = state
    mask = (torch.arange(x.shape[1]) < lengths.unsqueeze(1)).to(x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        m = mask[:, t, None]
        h_new, c_new = steps(x[:, t], (h, c), *weights)
        h, c = m * h_new + (1 - m) * h, m * c_new + (1 - m) * c
        outputs.append(m * h_new)
    return torch.stack(outputs, 1), (h, c)


# Back-propagation through time.


def _forward(x, h, w_ih, w_hh, b_ih, b_hh):
    states = [h]
    for t in range(x.shape[1]):
        states.append(torch.tanh(x[:, t] @ w_ih.T + b_ih + states[-1] @ w_hh.T + b_hh))
    return states


@RNN_BPTT.fails_with("time-path-dropped")
def detaches_the_state(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    inputs = [v.detach().requires_grad_() for v in (x, h0, w_ih, w_hh, b_ih, b_hh)]
    h, outputs = inputs[1].detach(), []
    for t in range(x.shape[1]):
        h = torch.rnn_tanh_cell(inputs[0][:, t], h.detach(), *inputs[2:])
        outputs.append(h)
    grads = torch.autograd.grad(torch.stack(outputs, 1), inputs, grad_outputs, allow_unused=True)
    return grads[0], torch.zeros_like(h0), *grads[2:]


def _right_deltas(grad_outputs, x, h0, *weights):
    h = _forward(x, h0, *weights)
    deltas, later = [], 0
    for t in reversed(range(x.shape[1])):
        deltas.append((grad_outputs[:, t] + later) * (1 - h[t + 1].square()))
        later = deltas[-1] @ weights[1]
    return torch.stack(h, 1), torch.stack(deltas[::-1], 1), later


@RNN_BPTT.fails_with("first-state-left-out")
def begins_with_the_second_step(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih = torch.einsum("nth,nti->hi", delta, x)
    d_hh = torch.einsum("nth,nti->hi", delta[:, 1:], h[:, 1:-1])
    return delta @ weights[0], d_h0, d_ih, d_hh, delta.sum((0, 1)), delta.sum((0, 1))


@RNN_BPTT.fails_with("averaged-over-time")
def averages_the_steps(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->thi", delta, v).mean(0) for v in (x, h[:, :-1]))
    d_b = delta.sum(0).mean(0)
    return delta @ weights[0], d_h0, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("wrong-length")
def returns_one_bias_gradient(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->hi", delta, v) for v in (x, h[:, :-1]))
    return delta @ weights[0], d_h0, d_ih, d_hh, delta.sum((0, 1))


@RNN_BPTT.passes
def adds_up_step_by_step(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b = torch.zeros_like(h0), 0, 0, 0
    d_x = torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * (1 - h[t + 1] ** 2)
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b.clone()


@RNN_BPTT.fails_with("forbidden-call")
def asks_autograd(grad_outputs, x, h0, *weights):
    inputs = [v.detach().clone().requires_grad_() for v in (x, h0, *weights)]
    outputs = torch.stack(_forward(*inputs)[1:], 1)
    return list(torch.autograd.grad((outputs * grad_outputs).sum(), inputs))


@RNN_BPTT.passes
def sums_flattened_rows(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    rows = delta.flatten(0, 1)
    d_b = rows.sum(0)
    d_ih, d_hh = rows.T @ x.flatten(0, 1), rows.T @ h[:, :-1].flatten(0, 1)
    return delta @ weights[0], d_h0, d_ih, d_hh, d_b, d_b
