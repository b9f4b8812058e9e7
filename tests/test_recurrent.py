"""The LSTM cell and any cell unrolled agree with torch, in values and in gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shipyard import recurrent

CELLS = {
    "rnn": (torch.rnn_tanh_cell, nn.RNN),
    "lstm": (recurrent.lstm_cell, nn.LSTM),
    "gru": (torch.gru_cell, nn.GRU),
}
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def assert_same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def flat(state) -> tuple:
    return state if isinstance(state, tuple) else (state,)


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighted sum of all outputs, so that no element is left out."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (y * torch.randn(y.shape, dtype=y.dtype, generator=generator)).sum() for y in outputs
    )
    return torch.autograd.grad(loss, inputs)


def cell_weights(module):
    biases = (module.bias_ih, module.bias_hh) if module.bias else (None, None)
    return module.weight_ih, module.weight_hh, *biases


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), sizes, sizes, st.booleans(), st.booleans(), seeds)
def test_the_lstm_cell_has_torchs_values_and_gradients(batch, inputs, hidden, bias, views, seed):
    torch.manual_seed(seed)
    module = nn.LSTMCell(inputs, hidden, bias=bias).double()
    x, h, c = (
        torch.randn(size, 2 * batch).double().T[::2] if views else torch.randn(batch, size).double()
        for size in (inputs, hidden, hidden)
    )
    wanted = [*(value.requires_grad_() for value in (x, h, c)), *module.parameters()]
    got, expected = recurrent.lstm_cell(x, (h, c), *cell_weights(module)), module(x, (h, c))
    assert_same(got, expected)
    assert_same(gradients(got, wanted), gradients(expected, wanted))


def test_the_lstm_cell_takes_one_sample_in_float32_without_a_batch():
    module = nn.LSTMCell(3, 4)
    x, state = torch.randn(3), (torch.randn(4), torch.randn(4))
    assert_same(recurrent.lstm_cell(x, state, *cell_weights(module)), module(x, state), 1e-5)


def test_weights_that_do_not_fit_are_named_with_what_they_must_be():
    x, h = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"must be \(16, 3\) and \(16, 4\)"):
        recurrent.lstm_cell(x, (h, h), torch.zeros(5, 3), torch.zeros(16, 4), None, None)


def unrolled(name, module, x, lengths=None):
    """The cell over time, with the weights and the zero state of a torch module of one layer."""
    (weights,) = recurrent.layer_weights(module)
    zeros = x.new_zeros(x.shape[0], module.hidden_size)
    state = (zeros, zeros) if name == "lstm" else zeros
    outputs, state = recurrent.unroll(CELLS[name][0], x, state, weights, lengths)
    return outputs, *(value[None] for value in flat(state))


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 4), time=st.integers(1, 6), inputs=sizes, hidden=sizes,
    bias=st.booleans(), seed=seeds,
)  # fmt: skip
def test_unrolled_cells_have_a_layers_values_and_gradients(
    name, batch, time, inputs, hidden, bias, seed
):
    torch.manual_seed(seed)
    module = CELLS[name][1](inputs, hidden, bias=bias, batch_first=True).double()
    x = torch.randn(batch, time, inputs, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]
    got, (expected, last) = unrolled(name, module, x), module(x)
    assert_same(got, (expected, *flat(last)))
    assert_same(gradients(got, wanted), gradients((expected, *flat(last)), wanted))


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), padding=st.integers(0, 2),
    seed=seeds,
)  # fmt: skip
def test_lengths_do_what_packing_does(name, lengths, padding, seed):
    torch.manual_seed(seed)
    module = CELLS[name][1](3, 2, batch_first=True).double()
    lengths = torch.tensor(lengths)
    time = int(lengths.max()) + padding
    x = torch.randn(len(lengths), time, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]

    got = unrolled(name, module, x, lengths)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, last = module(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=time)

    assert_same(got, (expected, *flat(last)))
    assert_same(gradients(got, wanted), gradients((expected, *flat(last)), wanted))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("filler", [1e3, float("nan"), float("inf")])
def test_what_stands_in_the_padding_changes_neither_values_nor_gradients(name, filler):
    module = CELLS[name][1](3, 2, batch_first=True).double()
    lengths = torch.tensor([4, 1, 0])
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    spoiled = x.clone()
    for n, length in enumerate(lengths):
        spoiled[n, length:] = filler
    results = []
    for sequences in (x, spoiled):
        values = unrolled(name, module, sequences, lengths)
        results.append((*values, *gradients(values, [*module.parameters()])))
    for clean, got in zip(*results, strict=True):
        assert torch.equal(got, clean)


WEIGHTS = (torch.randn(8, 3), torch.randn(8, 2), None, None)


def test_a_sequence_of_length_zero_keeps_its_first_state():
    state = torch.randn(1, 2), torch.randn(1, 2)
    x, lengths = torch.randn(1, 5, 3), torch.tensor([0])
    outputs, last = recurrent.unroll(recurrent.lstm_cell, x, state, WEIGHTS, lengths)
    assert all(torch.equal(got, kept) for got, kept in zip(last, state, strict=True))
    assert torch.equal(outputs, torch.zeros(1, 5, 2))


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        *[((2, 5, 3), lengths, "length") for lengths in ([3, -1], [3, 6], [3], [3, 3, 3], 3)],
        ((2, 0, 3), None, r"expected \(batch, time, input\)"),
        ((2, 3), None, r"expected \(batch, time, input\)"),
    ],
)
def test_sequences_and_lengths_that_do_not_fit_are_refused(shape, lengths, message):
    state = torch.zeros(2, 2), torch.zeros(2, 2)
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        recurrent.unroll(recurrent.lstm_cell, torch.zeros(shape), state, WEIGHTS, lengths)
