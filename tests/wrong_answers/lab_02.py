"""Wrong answers to lab 02, gated recurrent cells, and other correct ones."""

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


@RNN_CELL.fails_with("bias-dropped")
def adds_the_inputs_bias_only(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + h @ w_hh.T + b_ih)


@RNN_CELL.fails_with("bias-dropped")
def adds_the_states_bias_only(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(F.linear(x, w_ih) + F.linear(h, w_hh, b_hh))


@RNN_CELL.fails_with("bias-dropped")
def adds_no_bias(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + h @ w_hh.T)


@RNN_CELL.fails_with("tanh-missing")
def forgets_tanh(x, h, w_ih, w_hh, b_ih, b_hh):
    return F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)


@RNN_CELL.fails_with("tanh-before-sum")
def takes_tanh_of_each_part(x, h, w_ih, w_hh, b_ih, b_hh):
    return F.linear(x, w_ih, b_ih).tanh() + F.linear(h, w_hh, b_hh).tanh()


@RNN_CELL.fails_with("another-activation")
def squashes_with_sigmoid(x, h, w_ih, w_hh, b_ih, b_hh):
    return 1 / (1 + torch.exp(-(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)))


@RNN_CELL.fails_with("another-activation")
def uses_relu(x, h, w_ih, w_hh, b_ih, b_hh):
    return (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).clamp(min=0)


@RNN_CELL.fails_with("hidden-state-ignored")
def has_no_past(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + b_ih)


@RNN_CELL.fails_with("hidden-state-ignored")
def has_no_past_but_its_bias(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + b_ih + b_hh)


@RNN_CELL.fails_with("w_hh-not-transposed")
def multiplies_from_the_wrong_side(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + b_ih + h @ w_hh + b_hh)


@RNN_CELL.fails_with("old-state-added")
def adds_the_old_state(x, h, w_ih, w_hh, b_ih, b_hh):
    return h + torch.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)


@RNN_CELL.fails_with("old-state-added")
def adds_the_old_state_inside(x, h, w_ih, w_hh, b_ih, b_hh):
    return torch.tanh(x @ w_ih.T + b_ih + h + h @ w_hh.T + b_hh)


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


@LSTM_CELL.fails_with("gate-order")
def reads_the_papers_order(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, o, g = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("gate-order")
def reads_the_order_f_i_o_g(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    f, i, o, g = torch.chunk(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh), 4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@LSTM_CELL.fails_with("input-and-forget-swapped")
def forgets_the_candidate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * g.tanh() + i.sigmoid() * c
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("input-and-forget-swapped")
def reads_the_order_f_i_g_o(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    f, i, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("bias-dropped")
def adds_one_of_two_biases(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("tanh-missing-on-output")
def shows_the_raw_cell_state(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c, c


@LSTM_CELL.fails_with("candidate-as-state")
def returns_the_candidate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * new.tanh(), g.tanh()


@LSTM_CELL.fails_with("candidate-as-state")
def keeps_only_the_candidate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, _ = state
    _, _, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("candidate-as-state")
def shows_the_candidate(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c_tilde = torch.tanh(g)
    c = f.sigmoid() * c + i.sigmoid() * c_tilde
    return o.sigmoid() * torch.tanh(c_tilde), c


@LSTM_CELL.fails_with("candidate-as-state")
def forgets_everything(x, state, w_ih, w_hh, b_ih, b_hh):
    h, _ = state
    i, _, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("forget-gate-missing")
def never_forgets(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, _, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("input-gate-missing")
def always_writes(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    _, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("old-cell-state-shown")
def shows_the_old_state(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    h = o.sigmoid() * c.tanh()
    return h, f.sigmoid() * c + i.sigmoid() * g.tanh()


@LSTM_CELL.fails_with("sigmoid-on-candidate")
def squashes_all_four_alike(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).sigmoid().chunk(4, 1)
    c = f * c + i * g
    return o * c.tanh(), c


@LSTM_CELL.fails_with("tanh-on-gates")
def uses_tanh_everywhere(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).tanh().chunk(4, 1)
    c = f * c + i * g
    return o * c.tanh(), c


@LSTM_CELL.fails_with("h-and-c-swapped")
def returns_c_first(x, state, w_ih, w_hh, b_ih, b_hh):
    h, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


@LSTM_CELL.fails_with("h-and-c-swapped")
def reads_c_first(x, state, w_ih, w_hh, b_ih, b_hh):
    c, h = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@LSTM_CELL.fails_with("h-and-c-swapped")
def has_c_first_throughout(x, state, w_ih, w_hh, b_ih, b_hh):
    c, h = state
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


@LSTM_CELL.fails_with("hidden-state-ignored")
def opens_gates_by_the_input_alone(x, state, w_ih, w_hh, b_ih, b_hh):
    _, c = state
    i, f, g, o = (x @ w_ih.T + b_ih + b_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


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


@LSTM_CELL.passes
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


@GRU_CELL.fails_with("update-gate-swapped")
def keeps_what_it_should_replace(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return z * torch.tanh(x_n + r * h_n) + (1 - z) * h


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


@GRU_CELL.fails_with("reset-on-input")
def resets_the_whole_sum(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(r * (x_n + h_n)) + z * h


@GRU_CELL.fails_with("reset-on-input")
def resets_the_input(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(r * x_n + h_n) + z * h


@GRU_CELL.fails_with("reset-gate-missing")
def never_resets(x, h, w_ih, w_hh, b_ih, b_hh):
    _, z, n = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(3, 1)
    z, n = z.sigmoid(), n.tanh()
    return (1 - z) * n + z * h


@GRU_CELL.fails_with("gate-order")
def reads_the_order_z_r_n(x, h, w_ih, w_hh, b_ih, b_hh):
    x_z, x_r, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_z, h_r, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("bias-dropped")
def adds_no_bias_of_the_state(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("candidate-added-whole")
def adds_more_than_a_mean(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return torch.tanh(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("sigmoid-on-candidate")
def squashes_the_candidate(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, 1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.sigmoid(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("hidden-state-ignored")
def drops_the_states_product(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = b_hh.chunk(3)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


@GRU_CELL.fails_with("w_hh-not-transposed")
def multiplies_gru_blocks_from_the_wrong_side(x, h, w_ih, w_hh, b_ih, b_hh):
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
    h_r, h_z, h_n = (h @ w + b for w, b in zip(w_hh.chunk(3), b_hh.chunk(3), strict=True))
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


@LSTM_SEQUENCE.fails_with("time-first")
def stacks_on_the_first_axis(x, state, *weights):
    outputs = []
    for t in range(x.shape[1]):
        state = torch.lstm_cell(x[:, t], state, *weights)
        outputs.append(state[0])
    return torch.stack(outputs), state


@LSTM_SEQUENCE.fails_with("state-reset")
def starts_anew_at_each_step(x, state, *weights):
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], state, *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("cell-state-not-carried")
def forgets_c(x, state, *weights):
    h, c0 = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c0), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("hidden-state-not-carried")
def forgets_h(x, state, *weights):
    h0, c = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h0, c), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("first-state-ignored")
def starts_from_zero(x, state, *weights):
    h = c = torch.zeros_like(state[0])
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("cell-state-as-output")
def collects_c(x, state, *weights):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
        outputs.append(c)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("output-one-step-late")
def collects_before_the_step(x, state, *weights):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        outputs.append(h)
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("only-last-output")
def returns_the_end_only(x, state, *weights):
    for x_t in x.unbind(1):
        state = torch.lstm_cell(x_t, state, *weights)
    return state[0], state


@LSTM_SEQUENCE.fails_with("cell-state-not-returned")
def returns_h_as_state(x, state, *weights):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), h


@LSTM_SEQUENCE.fails_with("h-and-c-swapped")
def unpacks_c_first(x, state, *weights):
    c, h = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (h, c)


@LSTM_SEQUENCE.fails_with("h-and-c-swapped")
def returns_c_before_h(x, state, *weights):
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        h, c = torch.lstm_cell(x[:, t], (h, c), *weights)
        outputs.append(h)
    return torch.stack(outputs, 1), (c, h)


@LSTM_SEQUENCE.fails_with("read-backwards")
def reads_from_the_end(x, state, *weights):
    outputs = []
    for t in range(x.shape[1] - 1, -1, -1):
        state = torch.lstm_cell(x[:, t], state, *weights)
        outputs.insert(0, state[0])
    return torch.stack(outputs, 1), state


@LSTM_SEQUENCE.fails_with("read-backwards")
def reads_from_the_end_and_stacks_so(x, state, *weights):
    outputs = []
    for t in range(x.shape[1] - 1, -1, -1):
        state = torch.lstm_cell(x[:, t], state, *weights)
        outputs.append(state[0])
    return torch.stack(outputs, 1), state


@LSTM_SEQUENCE.passes
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


@MASKED_LENGTHS.fails_with("lengths-ignored")
def reads_the_padding(x, state, lengths, *weights):
    return _read(x, state, lengths, weights, lambda t, running, old, new: (new[0], new))


@MASKED_LENGTHS.fails_with("padding-not-zeroed")
def repeats_the_last_output(x, state, lengths, *weights):
    def update(t, running, old, new):
        h, c = (torch.where(running, n, o) for n, o in zip(new, old, strict=True))
        return h, (h, c)

    return _read(x, state, lengths, weights, update)


@MASKED_LENGTHS.fails_with("padding-not-zeroed")
def shows_every_step(x, state, lengths, *weights):
    def update(t, running, old, new):
        h, c = (torch.where(running, n, o) for n, o in zip(new, old, strict=True))
        return new[0], (h, c)

    return _read(x, state, lengths, weights, update)


@MASKED_LENGTHS.fails_with("state-not-frozen")
def masks_the_outputs_only(x, state, lengths, *weights):
    outputs, state = _read(x, state, lengths, weights, lambda t, running, old, new: (new[0], new))
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return outputs * mask[..., None], state


@MASKED_LENGTHS.fails_with("cell-state-not-frozen")
def freezes_h_alone(x, state, lengths, *weights):
    return _read(
        x, state, lengths, weights,
        lambda t, running, old, new: (
            new[0] * running, (torch.where(running, new[0], old[0]), new[1])
        ),
    )  # fmt: skip


@MASKED_LENGTHS.fails_with("hidden-state-not-frozen")
def freezes_c_alone(x, state, lengths, *weights):
    return _read(
        x, state, lengths, weights,
        lambda t, running, old, new: (
            new[0] * running, (new[0], torch.where(running, new[1], old[1]))
        ),
    )  # fmt: skip


@MASKED_LENGTHS.fails_with("state-zeroed")
def multiplies_the_state_by_the_mask(x, state, lengths, *weights):
    return _read(
        x, state, lengths, weights,
        lambda t, running, old, new: (new[0] * running, (new[0] * running, new[1] * running)),
    )  # fmt: skip


@MASKED_LENGTHS.fails_with("last-column-as-state")
def takes_the_last_column(x, state, lengths, *weights):
    def update(t, running, old, new):
        h, c = (torch.where(running, n, o) for n, o in zip(new, old, strict=True))
        return h * running, (h, c)

    outputs, (_, c) = _read(x, state, lengths, weights, update)
    return outputs, (outputs[:, -1], c)


def _with_mask(change):
    def answer(x, state, lengths, *weights):
        def update(t, running, old, new):
            running = change(t, lengths, x.shape[1])[:, None]
            h, c = (torch.where(running, n, o) for n, o in zip(new, old, strict=True))
            return new[0] * running, (h, c)

        return _read(x, state, lengths, weights, update)

    return answer


@MASKED_LENGTHS.fails_with("mask-one-step-late")
def counts_from_one(*arguments):
    return _with_mask(lambda t, lengths, time: lengths >= t)(*arguments)


@MASKED_LENGTHS.fails_with("mask-one-step-early")
def stops_before_the_last_step(*arguments):
    return _with_mask(lambda t, lengths, time: lengths > t + 1)(*arguments)


@MASKED_LENGTHS.fails_with("padding-at-the-front")
def expects_padding_first(*arguments):
    return _with_mask(lambda t, lengths, time: time - t <= lengths)(*arguments)


@MASKED_LENGTHS.fails_with("one-length-for-all")
def stops_all_with_the_shortest(*arguments):
    return _with_mask(lambda t, lengths, time: (lengths.min() > t).repeat(len(lengths)))(*arguments)


@MASKED_LENGTHS.fails_with("one-length-for-all")
def stops_all_with_the_longest(*arguments):
    return _with_mask(lambda t, lengths, time: (lengths.max() > t).repeat(len(lengths)))(*arguments)


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


@MASKED_LENGTHS.passes
def packs(x, state, lengths, *weights):
    return _packed(x, state, lengths, weights, total_length=x.shape[1])


@MASKED_LENGTHS.passes
def reads_one_sequence_at_a_time(x, state, lengths, *weights):
    outputs = x.new_zeros(*x.shape[:2], state[0].shape[1])
    finals = []
    for n, length in enumerate(lengths.tolist()):
        one = (state[0][n : n + 1], state[1][n : n + 1])
        for t in range(length):
            one = torch.lstm_cell(x[n : n + 1, t], one, *weights)
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
        h_new, c_new = torch.lstm_cell(x[:, t], (h, c), *weights)
        h, c = m * h_new + (1 - m) * h, m * c_new + (1 - m) * c
        outputs.append(m * h_new)
    return torch.stack(outputs, 1), (h, c)


# Back-propagation through time.


def _forward(x, h, w_ih, w_hh, b_ih, b_hh):
    states = [h]
    for t in range(x.shape[1]):
        states.append(torch.tanh(x[:, t] @ w_ih.T + b_ih + states[-1] @ w_hh.T + b_hh))
    return states


@RNN_BPTT.fails_with("tanh-derivative-forgotten")
def goes_straight_through_tanh(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b, d_x = 0, 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = grad_outputs[:, t] + later
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("tanh-derivative-of-output")
def takes_tanh_once_too_often(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b, d_x = 0, 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * (1 - torch.tanh(h[t + 1]) ** 2)
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("sigmoid-derivative")
def takes_the_slope_of_the_sigmoid(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b, d_x = 0, 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * h[t + 1] * (1 - h[t + 1])
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("time-path-dropped")
def stays_within_each_step(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = torch.stack(_forward(x, h0, w_ih, w_hh, b_ih, b_hh), 1)
    delta = grad_outputs * (1 - h[:, 1:] ** 2)
    d_b = delta.sum((0, 1))
    d_ih, d_hh = (torch.einsum("nth,nti->hi", delta, v) for v in (x, h[:, :-1]))
    return delta @ w_ih, delta[:, 0] @ w_hh, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("time-path-dropped")
def detaches_the_state(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    inputs = [v.detach().requires_grad_() for v in (x, h0, w_ih, w_hh, b_ih, b_hh)]
    h, outputs = inputs[1].detach(), []
    for t in range(x.shape[1]):
        h = torch.rnn_tanh_cell(inputs[0][:, t], h.detach(), *inputs[2:])
        outputs.append(h)
    grads = torch.autograd.grad(torch.stack(outputs, 1), inputs, grad_outputs, allow_unused=True)
    return grads[0], torch.zeros_like(h0), *grads[2:]


@RNN_BPTT.fails_with("derivative-on-one-path")
def multiplies_before_adding(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b, d_x = 0, 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = grad_outputs[:, t] * (1 - h[t + 1] ** 2) + later
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("last-output-only")
def starts_from_the_last_output(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    grad, d_ih, d_hh, d_b, d_x = grad_outputs[:, -1], 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = grad * (1 - h[t + 1] ** 2)
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], grad = delta @ w_ih, delta @ w_hh
    return d_x, grad, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("w_hh-transposed")
def goes_back_through_the_transpose(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_ih, d_hh, d_b, d_x = 0, 0, 0, 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * (1 - h[t + 1] ** 2)
        d_ih, d_hh, d_b = d_ih + delta.T @ x[:, t], d_hh + delta.T @ h[t], d_b + delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh.T
    return d_x, later, d_ih, d_hh, d_b, d_b


def _right_deltas(grad_outputs, x, h0, *weights):
    h = _forward(x, h0, *weights)
    deltas, later = [], 0
    for t in reversed(range(x.shape[1])):
        deltas.append((grad_outputs[:, t] + later) * (1 - h[t + 1].square()))
        later = deltas[-1] @ weights[1]
    return torch.stack(h, 1), torch.stack(deltas[::-1], 1), later


@RNN_BPTT.fails_with("state-after-the-step")
def pairs_delta_with_its_own_state(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->hi", delta, v) for v in (x, h[:, 1:]))
    return delta @ weights[0], d_h0, d_ih, d_hh, delta.sum((0, 1)), delta.sum((0, 1))


@RNN_BPTT.fails_with("first-state-left-out")
def begins_with_the_second_step(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih = torch.einsum("nth,nti->hi", delta, x)
    d_hh = torch.einsum("nth,nti->hi", delta[:, 1:], h[:, 1:-1])
    return delta @ weights[0], d_h0, d_ih, d_hh, delta.sum((0, 1)), delta.sum((0, 1))


@RNN_BPTT.fails_with("one-step-only")
def assigns_where_it_should_add(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
    h = _forward(x, h0, w_ih, w_hh, b_ih, b_hh)
    later, d_x = 0, torch.empty_like(x)
    for t in reversed(range(x.shape[1])):
        delta = (grad_outputs[:, t] + later) * (1 - h[t + 1] ** 2)
        d_ih, d_hh, d_b = delta.T @ x[:, t], delta.T @ h[t], delta.sum(0)
        d_x[:, t], later = delta @ w_ih, delta @ w_hh
    return d_x, later, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("averaged-over-batch")
def averages_the_batch(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->thi", delta, v).sum(0) for v in (x, h[:, :-1]))
    d_b = delta.mean(0).sum(0)
    return delta @ weights[0], d_h0, d_ih / len(x), d_hh / len(x), d_b, d_b


@RNN_BPTT.fails_with("averaged-over-time")
def averages_the_steps(grad_outputs, x, h0, *weights):
    h, delta, d_h0 = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->thi", delta, v).mean(0) for v in (x, h[:, :-1]))
    d_b = delta.sum(0).mean(0)
    return delta @ weights[0], d_h0, d_ih, d_hh, d_b, d_b


@RNN_BPTT.fails_with("h0-before-w_hh")
def stops_inside_the_first_tanh(grad_outputs, x, h0, *weights):
    h, delta, _ = _right_deltas(grad_outputs, x, h0, *weights)
    d_ih, d_hh = (torch.einsum("nth,nti->hi", delta, v) for v in (x, h[:, :-1]))
    return delta @ weights[0], delta[:, 0], d_ih, d_hh, delta.sum((0, 1)), delta.sum((0, 1))


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


@RNN_BPTT.passes
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
