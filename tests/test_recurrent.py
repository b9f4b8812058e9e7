"""The recurrent cells and layers agree with torch, in values and in gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shipyard import recurrent

CELLS = {
    "rnn": (recurrent.rnn_cell, nn.RNNCell, nn.RNN),
    "lstm": (recurrent.lstm_cell, nn.LSTMCell, nn.LSTM),
    "gru": (recurrent.gru_cell, nn.GRUCell, nn.GRU),
}
names = st.sampled_from(sorted(CELLS))
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def assert_same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def flat(state) -> tuple:
    return state if isinstance(state, tuple) else (state,)


def draw_state(name, *shape, dtype=torch.float64):
    h, c = torch.randn(2, *shape, dtype=dtype)
    return (h, c) if name == "lstm" else h


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighted sum of all outputs, so that no element is left out."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum() for y in outputs
    )
    return torch.autograd.grad(loss, inputs)


def cell_weights(module):
    return (
        module.weight_ih,
        module.weight_hh,
        *((module.bias_ih, module.bias_hh) if module.bias else (None, None)),
    )


def present(weights):
    return [weight for weight in weights if weight is not None]


@settings(max_examples=60, deadline=None)
@given(names, st.integers(0, 4), sizes, sizes, st.booleans(), seeds)
def test_a_cell_has_torchs_values_and_gradients(name, batch, inputs, hidden, bias, seed):
    torch.manual_seed(seed)
    ours, theirs, _ = CELLS[name]
    module = theirs(inputs, hidden, bias=bias).double()
    x = torch.randn(batch, inputs, dtype=torch.float64, requires_grad=True)
    state = draw_state(name, batch, hidden)
    wanted = [x, *(s.requires_grad_() for s in flat(state)), *module.parameters()]

    got, expected = flat(ours(x, state, *cell_weights(module))), flat(module(x, state))

    assert_same(got, expected)
    assert_same(gradients(got, wanted), gradients(expected, wanted))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_cell_keeps_the_type_of_its_input(name, dtype, tolerance):
    ours, theirs, _ = CELLS[name]
    module = theirs(3, 4).to(dtype)
    x, state = torch.randn(2, 3, dtype=dtype), draw_state(name, 2, 4, dtype=dtype)
    got = ours(x, state, *cell_weights(module))
    assert_same(flat(got), flat(module(x, state)), tolerance)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_takes_one_sample_without_a_batch(name):
    ours, theirs, _ = CELLS[name]
    module = theirs(3, 4).double()
    x, state = torch.randn(3, dtype=torch.float64), draw_state(name, 4)
    assert_same(flat(ours(x, state, *cell_weights(module))), flat(module(x, state)))


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_takes_views_that_are_not_contiguous(name):
    ours, theirs, _ = CELLS[name]
    module = theirs(3, 4).double()
    x = torch.randn(3, 10, dtype=torch.float64).T[::2]
    state = draw_state(name, 4, 10)
    state = tuple(s.T[::2] for s in state) if name == "lstm" else state.T[::2]
    assert not x.is_contiguous()
    got = ours(x, state, *cell_weights(module))
    assert_same(flat(got), flat(module(x, state)))


@pytest.mark.parametrize(("name", "blocks"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_weights_that_do_not_fit_are_named_with_what_they_must_be(name, blocks):
    ours = CELLS[name][0]
    x, state = torch.zeros(2, 3), draw_state(name, 2, 4, dtype=torch.float32)
    right, wrong = torch.zeros(blocks * 4, 4), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=rf"must be \({blocks * 4}, 3\) and \({blocks * 4}, 4\)"):
        ours(x, state, wrong, right, None, None)


def layers_of(name, module, x, lengths=None):
    """Our layers with the weights and the zero state of a torch module."""
    weights = recurrent.layer_weights(module)
    zeros = x.new_zeros(x.shape[0], module.hidden_size)
    states = [(zeros, zeros) if name == "lstm" else zeros for _ in weights]
    return recurrent.stack(CELLS[name][0], x, states, weights, lengths, module.bidirectional)


def stacked(states) -> tuple:
    """Last states as torch returns them: (entries, batch, hidden), or two of those."""
    return tuple(torch.stack(parts) for parts in zip(*map(flat, states), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    batch=st.integers(0, 4),
    time=st.integers(1, 6),
    inputs=sizes,
    hidden=sizes,
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    seed=seeds,
)
def test_layers_have_torchs_values_and_gradients(
    name, batch, time, inputs, hidden, layers, bidirectional, bias, seed
):
    torch.manual_seed(seed)
    module = CELLS[name][2](
        inputs, hidden, layers, bias=bias, batch_first=True, bidirectional=bidirectional
    ).double()
    x = torch.randn(batch, time, inputs, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]

    outputs, states = layers_of(name, module, x)
    expected, last = module(x)

    got, want = (outputs, *stacked(states)), (expected, *flat(last))
    assert_same(got, want)
    assert_same(gradients(got, wanted), gradients(want, wanted))


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    seed=seeds,
)
def test_lengths_do_what_packing_does(name, lengths, padding, layers, bidirectional, seed):
    torch.manual_seed(seed)
    module = CELLS[name][2](3, 2, layers, batch_first=True, bidirectional=bidirectional).double()
    lengths = torch.tensor(lengths)
    time = int(lengths.max()) + padding
    x = torch.randn(len(lengths), time, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]

    outputs, states = layers_of(name, module, x, lengths)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, last = module(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=time)

    got, want = (outputs, *stacked(states)), (expected, *flat(last))
    assert_same(got, want)
    assert_same(gradients(got, wanted), gradients(want, wanted))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("filler", [1e3, float("nan"), float("inf")])
def test_what_stands_in_the_padding_changes_neither_values_nor_gradients(name, filler):
    module = CELLS[name][2](3, 2, batch_first=True, bidirectional=True).double()
    lengths = torch.tensor([4, 1, 0])
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    spoiled = x.clone()
    for n, length in enumerate(lengths):
        spoiled[n, length:] = filler
    results = []
    for sequences in (x, spoiled):
        outputs, states = layers_of(name, module, sequences, lengths)
        values = (outputs, *stacked(states))
        results.append((*values, *gradients(values, [*module.parameters()])))
    for clean, got in zip(*results, strict=True):
        assert torch.equal(got, clean)


def test_a_sequence_of_length_zero_keeps_its_first_state():
    cell = recurrent.rnn_cell
    weights = (torch.randn(2, 3), torch.randn(2, 2), None, None)
    h0 = torch.randn(1, 2)
    outputs, last = recurrent.unroll(cell, torch.randn(1, 5, 3), h0, weights, torch.tensor([0]))
    assert torch.equal(last, h0)
    assert torch.equal(outputs, torch.zeros(1, 5, 2))


@pytest.mark.parametrize("lengths", [[3, -1], [3, 6], [3], [3, 3, 3], 3])
def test_lengths_that_do_not_fit_are_refused(lengths):
    weights = (torch.zeros(2, 3), torch.zeros(2, 2), None, None)
    with pytest.raises(ValueError, match=r"length"):
        recurrent.unroll(
            recurrent.rnn_cell,
            torch.zeros(2, 5, 3),
            torch.zeros(2, 2),
            weights,
            torch.tensor(lengths),
        )


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 3)])
def test_a_sequence_without_steps_is_refused(shape):
    weights = (torch.zeros(2, 3), torch.zeros(2, 2), None, None)
    with pytest.raises(ValueError, match=r"expected \(batch, time, input\)"):
        recurrent.unroll(recurrent.rnn_cell, torch.zeros(shape), torch.zeros(2, 2), weights)


@pytest.mark.parametrize(("states", "weights"), [(1, 2), (0, 0), (3, 3)])
def test_a_wrong_number_of_states_or_weights_is_refused(states, weights):
    layer = (torch.zeros(2, 3), torch.zeros(2, 2), None, None)
    with pytest.raises(ValueError, match="2 for each layer"):
        recurrent.stack(
            recurrent.rnn_cell,
            torch.zeros(1, 4, 3),
            [torch.zeros(1, 2)] * states,
            [layer] * weights,
            bidirectional=True,
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(1, 7), sizes, sizes, st.booleans(), seeds)
def test_back_propagation_through_time_has_autograds_gradients(
    batch, time, inputs, hidden, bias, seed
):
    torch.manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64).requires_grad_()  # noqa: E731
    x, h0 = draw(batch, time, inputs), draw(batch, hidden)
    weights = [draw(hidden, inputs), draw(hidden, hidden)]
    weights += [draw(hidden), draw(hidden)] if bias else [None, None]
    outputs, _ = recurrent.unroll(recurrent.rnn_cell, x, h0, weights)
    grad_outputs = torch.randn_like(outputs)

    wanted = present([x, h0, *weights])
    expected = torch.autograd.grad(outputs, wanted, grad_outputs)
    with torch.no_grad():
        got = recurrent.rnn_bptt(grad_outputs, x, h0, *weights)

    assert_same(got[: len(wanted)], expected)


def test_back_propagation_refuses_a_gradient_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"expected \(2, 5, 4\)"):
        recurrent.rnn_bptt(
            torch.zeros(5, 2, 4),
            torch.zeros(2, 5, 3),
            torch.zeros(2, 4),
            torch.zeros(4, 3),
            torch.zeros(4, 4),
            None,
            None,
        )


@pytest.mark.parametrize("name", CELLS)
def test_gradcheck_accepts_each_cell(name):
    ours = CELLS[name][0]
    module = CELLS[name][1](2, 3).double()
    state = draw_state(name, 2, 3)
    inputs = [torch.randn(2, 2, dtype=torch.float64), *flat(state), *module.parameters()]
    inputs = [value.detach().requires_grad_() for value in inputs]
    count = len(flat(state))

    def step(x, *rest):
        start = rest[:count] if count == 2 else rest[0]
        return ours(x, start, *rest[count:])

    assert torch.autograd.gradcheck(step, inputs)
