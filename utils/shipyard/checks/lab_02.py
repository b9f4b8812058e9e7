"""Checks of lab 02, gated recurrent cells. ``torch.lstm_cell`` and its kin are the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, sigmoid, tanh

from shipyard.checks import Case, Mistake, Passed, compare, draws


class _State(tuple):
    """(h, c), which a failing check shows by its shapes instead of all its numbers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"(h, c) of shape {tuple(self[0].shape)} each"


def check_rnn_cell(candidate: Callable) -> Passed:
    """Check ``rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh)``, the plain cell."""

    def formula(x, h, w_ih, w_hh, b_ih, b_hh):
        return x @ w_ih.T + b_ih + h @ w_hh.T + b_hh

    return compare(
        candidate,
        signature="rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh)",
        reference=torch.rnn_tanh_cell,
        cases=[Case(*arguments) for arguments in _cell_arguments(21, blocks=1)],
        mistakes=[
            *_shared_mistakes(torch.rnn_tanh_cell),
            Mistake(
                "tanh-missing",
                """You returned what stands inside the tanh. Without it the cell is linear: many
                steps collapse into one matrix, and nothing keeps the numbers between −1 and 1.""",
                formula,
            ),
            Mistake(
                "tanh-before-sum",
                """You took the tanh of the two parts and then added them. The input's part and the
                state's part are added first; one tanh acts on the sum. Your results can reach 2;
                a hidden state lies between −1 and 1.""",
                lambda x, h, w_ih, w_hh, b_ih, b_hh: (
                    tanh(x @ w_ih.T + b_ih) + tanh(h @ w_hh.T + b_hh)
                ),
            ),
            Mistake(
                "another-activation",
                """You used another activation function. The plain cell's is tanh: its values have
                both signs, and it is steepest at 0.""",
                lambda *a: sigmoid(formula(*a)),
                lambda *a: torch.relu(formula(*a)),
            ),
            Mistake(
                "old-state-added",
                """You added the old state to the new one. In the plain cell the old state acts
                only through W_hh, inside the tanh. A path that adds is what the LSTM's cell state
                and the GRU bring.""",
                lambda x, h, *weights: torch.rnn_tanh_cell(x, h, *weights) + h,
                lambda x, h, *weights: tanh(formula(x, h, *weights) + h),
            ),
        ],
    )


def check_lstm_cell(candidate: Callable) -> Passed:
    """Check ``lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh)`` with state (h, c): returns (h, c)."""

    def formula(
        order="ifgo",
        gate=sigmoid,
        candidate=tanh,
        keep=lambda i, f, g, c: f * c + i * g,
        show=lambda o, c, old, g: o * tanh(c),
        give=lambda h, c, g: (h, c),
    ):
        """The LSTM cell with one part replaced."""

        def answer(x, state, w_ih, w_hh, b_ih, b_hh):
            h, c = state
            blocks = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=-1)
            block = dict(zip(order, blocks, strict=True))
            i, f, o = (gate(block[name]) for name in "ifo")
            g = candidate(block["g"])
            new = keep(i, f, g, c)
            return give(show(o, new, c, g), new, g)

        return answer

    orders = {"".join(order) for order in itertools.permutations("ifgo")} - {"ifgo", "figo"}
    return compare(
        candidate,
        signature="lstm_cell(x, state, w_ih, w_hh, b_ih, b_hh)",
        reference=torch.lstm_cell,
        outputs=("h", "c"),
        cases=[
            Case(x, _State((h, 1.5 * c)), *weights)
            for x, h, c, *weights in _cell_arguments(22, blocks=4, states=2)
        ],
        mistakes=[
            *_shared_mistakes(torch.lstm_cell),
            Mistake(
                "input-and-forget-swapped",
                """The input gate and the forget gate have changed places: you let the forget gate
                act on the candidate and the input gate on the old cell state. It is
                c' = f ⊙ c + i ⊙ g, and torch stacks the blocks in the order i, f, g, o.""",
                formula("figo"),
            ),
            Mistake(
                "gate-order",
                """Your formulas use the right gates with the wrong rows of the weights. torch
                stacks the four blocks in the order i, f, g, o: input gate, forget gate, candidate,
                output gate. Other books and libraries have other orders.""",
                *(formula(order) for order in sorted(orders)),
            ),
            Mistake(
                "tanh-missing-on-output",
                """The tanh on the cell state is missing in h' = o ⊙ tanh(c'). The cell state may
                grow without limit; the tanh brings what is shown of it back between −1 and 1.""",
                formula(show=lambda o, c, old, g: o * c),
            ),
            Mistake(
                "candidate-as-state",
                """You took the candidate for the cell state. The candidate g (often written C with
                a tilde) is what could be written at this step; the cell state is
                c' = f ⊙ c + i ⊙ g. With the candidate in its place nothing is remembered.""",
                formula(give=lambda h, c, g: (h, g)),
                formula(show=lambda o, c, old, g: o * tanh(g), give=lambda h, c, g: (h, g)),
                formula(show=lambda o, c, old, g: o * tanh(g)),
                formula(keep=lambda i, f, g, c: i * g),
            ),
            Mistake(
                "forget-gate-missing",
                """The old cell state goes on whole: the forget gate does not act on it. That was
                the LSTM of 1997. Since 2000 it is c' = f ⊙ c + i ⊙ g, so that it can be emptied.
                """,
                formula(keep=lambda i, f, g, c: c + i * g),
            ),
            Mistake(
                "input-gate-missing",
                """The candidate is added whole: the input gate does not act on it. It is
                c' = f ⊙ c + i ⊙ g; the input gate decides how much of the candidate is written.""",
                formula(keep=lambda i, f, g, c: f * c + g),
            ),
            Mistake(
                "old-cell-state-shown",
                """Your hidden state shows the old cell state. First compute the new one, c', and
                then h' = o ⊙ tanh(c').""",
                formula(show=lambda o, c, old, g: o * tanh(old)),
            ),
            Mistake(
                "sigmoid-on-candidate",
                """The candidate went through a sigmoid. i, f and o are gates, shares from 0 to 1.
                g is content, not a gate: it has both signs, so its function is tanh.""",
                formula(candidate=sigmoid),
            ),
            Mistake(
                "tanh-on-gates",
                """The gates went through tanh. A gate is a share from 0 (shut) to 1 (open), so its
                function is the sigmoid; only the candidate g and the cell state go through tanh.
                """,
                formula(gate=tanh),
            ),
            Mistake(
                "h-and-c-swapped",
                """h and c have changed places. The state is (h, c): the hidden state first, then
                the cell state, in the argument as well as in the result. The gates read h.""",
                formula(give=lambda h, c, g: (c, h)),
                lambda x, state, *weights: torch.lstm_cell(x, state[::-1], *weights),
                lambda x, state, *weights: torch.lstm_cell(x, state[::-1], *weights)[::-1],
            ),
        ],
    )


def check_gru_cell(candidate: Callable) -> Passed:
    """Check ``gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)`` in torch's form."""

    def formula(
        order="rzn",
        inside=lambda r, x_n, h_n, **_: x_n + r * h_n,
        activation=tanh,
        mix=lambda z, n, h: (1 - z) * n + z * h,
    ):
        """The GRU cell with one part replaced."""

        def answer(x, h, w_ih, w_hh, b_ih, b_hh):
            place = {name: order.index(name) for name in order}
            x_r, x_z, x_n = ((x @ w_ih.T + b_ih).chunk(3, -1)[place[name]] for name in "rzn")
            h_r, h_z, h_n = ((h @ w_hh.T + b_hh).chunk(3, -1)[place[name]] for name in "rzn")
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            w, b = w_hh.chunk(3)[place["n"]], b_hh.chunk(3)[place["n"]]
            n = activation(inside(r=r, x_n=x_n, h_n=h_n, h=h, w=w, b=b))
            return mix(z, n, h)

        return answer

    orders = {"".join(order) for order in itertools.permutations("rzn")} - {"rzn"}
    return compare(
        candidate,
        signature="gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)",
        reference=torch.gru_cell,
        cases=[Case(*arguments) for arguments in _cell_arguments(23, blocks=3)],
        mistakes=[
            *_shared_mistakes(torch.gru_cell),
            Mistake(
                "update-gate-swapped",
                """z and 1 − z have changed places. Here z is the share of the old state that is
                kept: h' = (1 − z) ⊙ n + z ⊙ h. Some books give z the other meaning, so check
                which one a formula uses.""",
                formula(mix=lambda z, n, h: z * n + (1 - z) * h),
            ),
            Mistake(
                "reset-before-product",
                """You applied the reset gate to h, before the product with W_hn. That is the
                paper's form. In torch and cuDNN it acts after the product and its bias:
                n = tanh(x part + r ⊙ (W_hn h + b_hn)). The two give different values.""",
                formula(inside=lambda r, x_n, h, w, b, **_: x_n + (r * h) @ w.T + b),
            ),
            Mistake(
                "reset-without-bias",
                """The reset gate does not act on the bias b_hn. It multiplies the whole of
                W_hn h + b_hn. This is why the GRU needs two biases: b_in stands outside of the
                gate's reach, b_hn inside.""",
                formula(inside=lambda r, x_n, h_n, b, **_: x_n + r * (h_n - b) + b),
            ),
            Mistake(
                "reset-on-input",
                """The reset gate acts on the input's part too. It decides how much of the past
                enters the candidate, so it multiplies only W_hn h + b_hn.""",
                formula(inside=lambda r, x_n, h_n, **_: r * (x_n + h_n)),
                formula(inside=lambda r, x_n, h_n, **_: r * x_n + h_n),
            ),
            Mistake(
                "reset-gate-missing",
                """The reset gate has no effect on the candidate. It is
                n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn)).""",
                formula(inside=lambda x_n, h_n, **_: x_n + h_n),
            ),
            Mistake(
                "gate-order",
                """Your formulas use the right gates with the wrong rows of the weights. torch
                stacks the three blocks in the order r, z, n: reset gate, update gate, candidate.
                """,
                *(formula(order) for order in sorted(orders)),
            ),
            Mistake(
                "candidate-added-whole",
                """You added z ⊙ h and the whole candidate. The shares of old and new must sum to
                1: h' = (1 − z) ⊙ n + z ⊙ h, a weighted mean, so that h stays between −1 and 1.""",
                formula(mix=lambda z, n, h: n + z * h),
            ),
            Mistake(
                "sigmoid-on-candidate",
                """The candidate went through a sigmoid. r and z are gates, shares from 0 to 1. n
                is content: it has both signs, so its function is tanh.""",
                formula(activation=sigmoid),
            ),
        ],
    )


def check_lstm_sequence(candidate: Callable) -> Passed:
    """Check ``lstm_sequence(x, state, w_ih, w_hh, b_ih, b_hh)``: returns (outputs, (h, c))."""

    def unrolled(
        steps=lambda x: range(x.shape[1]),
        carry=lambda new, first: new,
        shown=lambda new, old: new[0],
        give=lambda outputs, state: (torch.stack(outputs, dim=1), state),
    ):
        """The loop over time with one part replaced."""

        def answer(x, state, *weights):
            first = state = tuple(state)
            outputs = []
            for t in steps(x):
                new = torch.lstm_cell(x[:, t], state, *weights)
                outputs.append(shown(new, state))
                state = carry(new, first)
            return give(outputs, new)

        return answer

    reference = unrolled()
    draw = draws(24)

    def case(batch, time, inputs, hidden):
        _, h, c, *weights = _arguments(draw, batch, inputs, hidden, blocks=4, states=2)
        return Case(draw(batch, time, inputs), _State((h, c)), *weights)

    return compare(
        candidate,
        signature="lstm_sequence(x, state, w_ih, w_hh, b_ih, b_hh)",
        reference=reference,
        outputs=("outputs", "state"),
        cases=[
            case(2, 2, 1, 1),
            case(1, 3, 2, 2),
            case(3, 1, 2, 4),
            case(2, 5, 3, 2),
            case(4, 7, 1, 3),
            case(3, 4, 5, 4),
            case(5, 3, 2, 2),
        ],
        mistakes=[
            Mistake(
                "batch-and-time-swapped",
                """You walked along the batch. x is (batch, time, input), so step t is x[:, t].
                x[t] is the whole of sequence t. (torch's own default is time first, which is why
                its layers have batch_first=True.)""",
                lambda x, *rest: reference(x.transpose(0, 1), *rest),
                lambda x, *rest: _first_transposed(reference(x.transpose(0, 1), *rest)),
            ),
            Mistake(
                "time-first",
                """Your outputs are (time, batch, hidden); the task asks for (batch, time, hidden).
                torch.stack(list, dim=1) puts the new axis second.""",
                lambda *a: _first_transposed(reference(*a)),
            ),
            Mistake(
                "state-reset",
                """Each of your steps starts from the first state, so that nothing is remembered.
                Hand the state that a step returns to the next step.""",
                unrolled(carry=lambda new, first: first),
            ),
            Mistake(
                "cell-state-not-carried",
                """You carry h from step to step, and lose c. The state has two parts, (h, c), and
                c is the one that remembers for long.""",
                unrolled(carry=lambda new, first: (new[0], first[1])),
                unrolled(carry=lambda new, first: (new[0], 0 * first[1])),
            ),
            Mistake(
                "hidden-state-not-carried",
                """You carry c from step to step, and lose h. The gates read h, so both parts of
                the state, (h, c), go on to the next step.""",
                unrolled(carry=lambda new, first: (first[0], new[1])),
                unrolled(carry=lambda new, first: (0 * first[0], new[1])),
            ),
            Mistake(
                "first-state-ignored",
                """You began with zeros. Begin with the state that is given: it may be the end of
                an earlier piece of the same sequence.""",
                lambda x, state, *weights: reference(x, tuple(0 * s for s in state), *weights),
            ),
            Mistake(
                "cell-state-as-output",
                """Your outputs are the cell states. c stays inside the cell; what it shows at each
                step, and what the next layer reads, is h.""",
                unrolled(shown=lambda new, old: new[1]),
            ),
            Mistake(
                "output-one-step-late",
                """Your outputs are the states before each step. outputs[:, t] is the h that the
                step on x[:, t] returns.""",
                unrolled(shown=lambda new, old: old[0]),
            ),
            Mistake(
                "only-last-output",
                """You returned the last hidden state alone. outputs holds the h of every step:
                (batch, time, hidden). Append each h to a list, and stack the list.""",
                unrolled(give=lambda outputs, state: (outputs[-1], state)),
                unrolled(give=lambda outputs, state: (outputs[-1].unsqueeze(1), state)),
            ),
            Mistake(
                "cell-state-not-returned",
                """The state that you return holds only h. The last state is (h, c): whoever goes
                on from here needs both.""",
                unrolled(give=lambda outputs, state: (torch.stack(outputs, 1), state[0])),
                unrolled(give=lambda outputs, state: (torch.stack(outputs, 1), state[1])),
            ),
            Mistake(
                "h-and-c-swapped",
                """h and c have changed places. The state is (h, c): the hidden state first, then
                the cell state, in the argument as well as in the result.""",
                lambda x, state, *weights: reference(x, state[::-1], *weights),
                unrolled(give=lambda outputs, state: (torch.stack(outputs, 1), state[::-1])),
                unrolled(carry=lambda new, first: new[::-1]),
            ),
            Mistake(
                "read-backwards",
                """You read the sequence from its end to its start. Step t comes after step t − 1,
                from t = 0 on.""",
                unrolled(steps=lambda x: reversed(range(x.shape[1]))),
                lambda x, *rest: _first_flipped(reference(x.flip(1), *rest)),
            ),
        ],
    )


def check_masked_lengths(candidate: Callable) -> Passed:
    """Check ``masked_lengths(x, state, lengths, w_ih, w_hh, b_ih, b_hh)``, an LSTM on a batch
    of padded sequences: returns (outputs, (h, c))."""

    def masked(
        runs=lambda t, lengths, time: t < lengths,
        freeze=(True, True),
        at_end=lambda new, old: old,
        shown=lambda running, new, frozen: torch.where(running, new, 0),
        give=lambda outputs, state, lengths: (outputs, state),
    ):
        """The masked loop with one part replaced."""

        def answer(x, state, lengths, *weights):
            state, outputs = tuple(state), []
            for t in range(x.shape[1]):
                running = runs(t, lengths, x.shape[1]).unsqueeze(1)
                new = torch.lstm_cell(x[:, t], state, *weights)
                state = tuple(
                    torch.where(running, n, at_end(n, s)) if frozen else n
                    for frozen, n, s in zip(freeze, new, state, strict=True)
                )
                outputs.append(shown(running, new[0], state[0]))
            return give(torch.stack(outputs, dim=1), state, lengths)

        return answer

    draw = draws(25)

    def case(lengths, time, inputs, hidden):
        lengths = torch.tensor(lengths)
        x, h, c, *weights = _arguments(draw, len(lengths), inputs, hidden, blocks=4, states=2)
        x = draw(len(lengths), time, inputs)  # the padding holds numbers too, and must not matter
        return Case(x, _State((h, c)), lengths, *weights)

    return compare(
        candidate,
        signature="masked_lengths(x, state, lengths, w_ih, w_hh, b_ih, b_hh)",
        reference=masked(),
        outputs=("outputs", "state"),
        cases=[
            case([1, 3], 3, 1, 1),
            case([3, 2], 3, 2, 2),
            case([2], 4, 2, 2),
            case([4, 1, 3, 2], 4, 3, 2),
            case([1, 1, 1], 2, 2, 3),
            case([5, 5], 5, 1, 2),
            case([2, 5, 1, 4, 3], 7, 3, 4),
        ],
        mistakes=[
            Mistake(
                "lengths-ignored",
                """The lengths have no effect: you read the padding like the rest. From step
                lengths[n] on, sequence n is over: its output is zero and its state stays.""",
                masked(freeze=(False, False), shown=lambda running, new, frozen: new),
            ),
            Mistake(
                "padding-not-zeroed",
                """The state is right, but the outputs go on after the end of a sequence. Padded
                steps must be zero, so that no sum or mean over time counts them.""",
                masked(shown=lambda running, new, frozen: frozen),
                masked(shown=lambda running, new, frozen: new),
            ),
            Mistake(
                "state-not-frozen",
                """The outputs are right, but the state goes on reading the padding. After the end
                of a sequence keep both h and c: torch.where(running, new, old).""",
                masked(freeze=(False, False)),
            ),
            Mistake(
                "cell-state-not-frozen",
                """You froze h, but c goes on. The state has two parts, and both must stay as they
                were at the last step that counts.""",
                masked(freeze=(True, False)),
            ),
            Mistake(
                "hidden-state-not-frozen",
                """You froze c, but h goes on. The state has two parts, and both must stay as they
                were at the last step that counts.""",
                masked(freeze=(False, True)),
            ),
            Mistake(
                "state-zeroed",
                """You set the state to zero after the end of a sequence. It must stay as it was
                at the last step that counts: that state is the summary of the sequence.""",
                masked(at_end=lambda new, old: torch.zeros_like(old)),
            ),
            Mistake(
                "last-column-as-state",
                """Your h is the output of the last column, outputs[:, -1]. For a sequence that
                ended earlier this is padding. Its last h is the one at step lengths[n] − 1.""",
                masked(give=lambda outputs, state, lengths: (outputs, (outputs[:, -1], state[1]))),
            ),
            Mistake(
                "mask-one-step-late",
                """Your sequences end one step late: t <= length. Steps count from 0, so sequence n
                has the steps 0 … lengths[n] − 1, and the mask is t < lengths.""",
                masked(runs=lambda t, lengths, time: t <= lengths),
            ),
            Mistake(
                "mask-one-step-early",
                """Your sequences end one step early. Steps count from 0, so sequence n has the
                steps 0 … lengths[n] − 1, and the mask is t < lengths.""",
                masked(runs=lambda t, lengths, time: t < lengths - 1),
            ),
            Mistake(
                "padding-at-the-front",
                """Your mask keeps the last steps. The padding stands at the end of each sequence,
                so the steps that count are the first lengths[n].""",
                masked(runs=lambda t, lengths, time: t >= time - lengths),
            ),
            Mistake(
                "one-length-for-all",
                """You used one length for the whole batch. Each sequence has its own: the mask is
                (batch,) at each step, t < lengths, and unsqueeze(1) makes it fit (batch, hidden).
                """,
                masked(runs=lambda t, lengths, time: t < lengths.min().expand_as(lengths)),
                masked(runs=lambda t, lengths, time: t < lengths.max().expand_as(lengths)),
            ),
            Mistake(
                "outputs-cut-short",
                """Your outputs stop with the longest sequence. They must keep all the steps of x,
                with zeros at the end: (batch, time, hidden).""",
                masked(
                    give=lambda outputs, state, lengths: (outputs[:, : int(lengths.max())], state)
                ),
            ),
        ],
    )


def check_rnn_bptt(candidate: Callable) -> Passed:
    """Check ``rnn_bptt(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh)``: gradients, by hand, for
    x, h0, w_ih, w_hh, b_ih, b_hh."""

    def states(x, h, *weights):
        """h_0, h_1, …: (batch, time + 1, hidden)."""
        all_states = [h]
        for t in range(x.shape[1]):
            all_states.append(torch.rnn_tanh_cell(x[:, t], all_states[-1], *weights))
        return torch.stack(all_states, dim=1)

    def reference(grad_outputs, *inputs):
        inputs = [value.detach().requires_grad_() for value in inputs]
        return torch.autograd.grad(states(*inputs)[:, 1:], inputs, grad_outputs)

    def by_hand(
        slope=lambda h: 1 - h**2,
        inside=lambda grad, later, slope: (grad + later) * slope,
        back=lambda delta, w_hh: delta @ w_hh,
        before=lambda h: h[:, :-1],
        first=lambda delta, w_hh: delta @ w_hh,
        kept=lambda delta: delta,
        batch=lambda total, x: total,
    ):
        """The formulas of `recurrent.rnn_bptt` with one part replaced."""

        def answer(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh):
            h = states(x, h0, w_ih, w_hh, b_ih, b_hh)
            deltas, later = [], torch.zeros_like(h0)
            for t in reversed(range(x.shape[1])):
                deltas.insert(0, inside(grad_outputs[:, t], later, slope(h[:, t + 1])))
                later = back(deltas[0], w_hh)
            delta = torch.stack(deltas, dim=1)
            used = kept(delta)
            grad_w_ih = torch.einsum("nth,nti->hi", used, x)
            grad_w_hh = torch.einsum("nth,ntk->hk", used, before(h))
            grad_b = used.sum((0, 1))
            totals = (batch(total, x) for total in (grad_w_ih, grad_w_hh, grad_b, grad_b))
            return delta @ w_ih, first(delta[:, 0], w_hh), *totals

        return answer

    def only_step(index):
        def kept(delta):
            mask = torch.zeros(delta.shape[1], 1, dtype=delta.dtype)
            mask[index] = 1
            return delta * mask

        return kept

    def last_output_only(grad_outputs, *rest):
        last = torch.zeros_like(grad_outputs)
        last[:, -1] = grad_outputs[:, -1]
        return reference(last, *rest)

    draw = draws(26)

    def case(batch, time, inputs, hidden):
        _, h0, *weights = _arguments(draw, batch, inputs, hidden, blocks=1)
        return Case(draw(batch, time, hidden), draw(batch, time, inputs), h0, *weights)

    return compare(
        candidate,
        signature="rnn_bptt(grad_outputs, x, h0, w_ih, w_hh, b_ih, b_hh)",
        reference=reference,
        outputs=("grad_x", "grad_h0", "grad_w_ih", "grad_w_hh", "grad_b_ih", "grad_b_hh"),
        cases=[
            case(1, 2, 1, 2),
            case(1, 1, 2, 3),
            case(2, 3, 2, 2),
            case(3, 5, 2, 4),
            case(4, 2, 3, 2),
            case(2, 9, 1, 3),
        ],
        mistakes=[
            Mistake(
                "tanh-derivative-forgotten",
                """The slope of the tanh is missing. From h_t to what stands inside the tanh, the
                gradient is multiplied by 1 − h_t²: δ_t = D_t ⊙ (1 − h_t²).""",
                by_hand(slope=torch.ones_like),
            ),
            Mistake(
                "tanh-derivative-of-output",
                """You took the slope 1 − tanh²(h_t), but h_t is already the value of the tanh. Its
                slope in terms of its own value is 1 − h_t².""",
                by_hand(slope=lambda h: 1 - tanh(h) ** 2),
            ),
            Mistake(
                "sigmoid-derivative",
                """You used h_t (1 − h_t), the slope of the sigmoid. The cell's function is tanh,
                and its slope is 1 − h_t².""",
                by_hand(slope=lambda h: h * (1 - h)),
            ),
            Mistake(
                "time-path-dropped",
                """Your gradients stop at each step: what comes back from later steps is missing.
                h_t also acts on the loss through h_{t+1}, so D_t = G_t + δ_{t+1} W_hh. Without
                the second term nothing is learnt across time.""",
                by_hand(inside=lambda grad, later, slope: grad * slope),
                by_hand(
                    inside=lambda grad, later, slope: grad * slope,
                    first=lambda delta, w_hh: torch.zeros_like(delta),
                ),
            ),
            Mistake(
                "derivative-on-one-path",
                """The slope of the tanh acts on only one of the two gradients that meet in h_t.
                Add them first, then multiply: δ_t = (G_t + δ_{t+1} W_hh) ⊙ (1 − h_t²).""",
                by_hand(inside=lambda grad, later, slope: grad * slope + later),
                by_hand(inside=lambda grad, later, slope: grad + later * slope),
            ),
            Mistake(
                "last-output-only",
                """You used the gradient of the last output alone. Every h_t may be part of the
                loss: add grad_outputs[:, t] at each step t.""",
                last_output_only,
            ),
            Mistake(
                "w_hh-transposed",
                """On the way back the gradient went through W_hhᵀ. Forwards it is h @ W_hh.T, so
                backwards it is δ @ W_hh, without the transpose.""",
                by_hand(back=lambda delta, w_hh: delta @ w_hh.T),
                by_hand(
                    back=lambda delta, w_hh: delta @ w_hh.T,
                    first=lambda delta, w_hh: delta @ w_hh.T,
                ),
            ),
            Mistake(
                "state-after-the-step",
                """grad_w_hh is made from the wrong states. W_hh multiplies the state before the
                step, so the sum is Σ_t δ_tᵀ h_{t−1}, which begins with h0.""",
                by_hand(before=lambda h: h[:, 1:]),
            ),
            Mistake(
                "first-state-left-out",
                """grad_w_hh begins one step late: the term of the first step is missing. At t = 1
                the state before the step is h0, which need not be zero.""",
                by_hand(before=lambda h: torch.cat([0 * h[:, :1], h[:, 1:-1]], dim=1)),
            ),
            Mistake(
                "one-step-only",
                """The gradients of the weights come from one step alone; probably a loop assigns
                them with = where it should add with +=. The same weights are used at every step,
                so their gradient is the sum over all steps.""",
                by_hand(kept=only_step(0)),
                by_hand(kept=only_step(-1)),
            ),
            Mistake(
                "averaged-over-batch",
                """The gradients of the weights are averaged over the batch. grad_outputs already
                holds whatever mean the loss takes; here everything is summed.""",
                by_hand(batch=lambda total, x: total / x.shape[0]),
            ),
            Mistake(
                "averaged-over-time",
                """The gradients of the weights are averaged over the steps. The same weights are
                used at every step, so their gradient is the sum.""",
                by_hand(batch=lambda total, x: total / x.shape[1]),
            ),
            Mistake(
                "h0-before-w_hh",
                """grad_h0 is one product short. δ_1 is the gradient for what stands inside the
                first tanh; h0 enters it through W_hh, so grad_h0 = δ_1 W_hh.""",
                by_hand(first=lambda delta, w_hh: delta),
            ),
        ],
    )


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
    sizes = [(1, 1, 2), (2, 3, 2), (1, 4, 3), (5, 1, 1), (3, 2, 5), (4, 7, 4), (7, 3, 3)]
    cases = [_arguments(draw, *size, blocks, states) for size in sizes]
    cases[-1][0] = draw(3, 7).T  # not contiguous
    return cases


def _shared_mistakes(reference: Callable) -> list[Mistake]:
    """Mistakes that can be made in every cell."""

    def bias_changed(change):
        return lambda x, state, w_ih, w_hh, *biases: reference(
            x, state, w_ih, w_hh, *change(*biases)
        )

    def hidden_changed(x, state, w_ih, w_hh, *biases):
        return reference(x, state, w_ih, torch.zeros_like(w_hh), *biases)

    def block_transposed(x, state, w_ih, w_hh, *biases):
        blocks = w_hh.split(w_hh.shape[1])
        return reference(x, state, w_ih, torch.cat([block.T for block in blocks]), *biases)

    return [
        Mistake(
            "bias-dropped",
            """One of the biases is missing. torch has two: b_ih for the input's part and b_hh for
            the state's part, and both are added.""",
            bias_changed(lambda b_ih, b_hh: (b_ih, 0 * b_hh)),
            bias_changed(lambda b_ih, b_hh: (0 * b_ih, b_hh)),
            bias_changed(lambda b_ih, b_hh: (0 * b_ih, 0 * b_hh)),
        ),
        Mistake(
            "hidden-state-ignored",
            """The old hidden state has no effect through W_hh. Without W_hh h + b_hh the cell has
            no past: every step would give the same answer to the same input.""",
            hidden_changed,
            lambda x, state, w_ih, w_hh, b_ih, b_hh: hidden_changed(
                x, state, w_ih, w_hh, b_ih, 0 * b_hh
            ),
        ),
        Mistake(
            "w_hh-not-transposed",
            """W_hh is turned the wrong way. W_hh h for a batch of rows is h @ W_hh.T. A block of
            W_hh is square, so that without the transpose nothing fails, and all is wrong.""",
            block_transposed,
        ),
    ]


def _first_transposed(result: tuple) -> tuple:
    return result[0].transpose(0, 1), result[1]


def _first_flipped(result: tuple) -> tuple:
    return result[0].flip(1), result[1]
