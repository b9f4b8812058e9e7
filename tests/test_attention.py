"""Attention, encodings and layer norm agree with torch, in values and in gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shipyard import attention

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def assert_same(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def gradients(output, inputs, seed=1):
    """Gradients of a random weighted sum of the output, so that no element is left out."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return torch.autograd.grad((output * weights).sum(), inputs)


def draw(*shape, contiguous=True, dtype=torch.float64):
    x = torch.randn(*shape, dtype=dtype)
    if not contiguous and x.dim() > 1:
        x = torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).transpose(-2, -1)
    return x.requires_grad_()


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 3), sizes, sizes, sizes, sizes, sizes, st.booleans(), st.booleans(), seeds)
def test_attention_has_torchs_values_and_gradients(
    batch, heads, queries, keys, d, d_v, masked, contiguous, seed
):
    torch.manual_seed(seed)
    query = draw(batch, heads, queries, d, contiguous=contiguous)
    key = draw(batch, heads, keys, d, contiguous=contiguous)
    value = draw(batch, heads, keys, d_v, contiguous=contiguous)
    mask = torch.rand(queries, keys) < 0.6 if masked else None
    if masked:
        mask[:, 0] = True  # each query may look somewhere
    got = attention.scaled_dot_product_attention(query, key, value, mask)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert_same(got, expected)
    for ours, theirs in zip(
        gradients(got, (query, key, value)), gradients(expected, (query, key, value)), strict=True
    ):
        assert_same(ours, theirs)


def test_float32_agrees_to_float32s_precision():
    query, key, value = (draw(2, 3, 7, 4, dtype=torch.float32) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value)
    got = attention.scaled_dot_product_attention(query, key, value)
    assert got.dtype == torch.float32
    assert_same(got, expected, tolerance=1e-5)


def test_each_row_of_weights_adds_up_to_one_and_hidden_keys_get_nothing():
    query, key = draw(2, 3, 5, 4), draw(2, 3, 6, 4)
    mask = attention.causal_mask(5, 6)
    weights = attention.attention_weights(query, key, mask)
    assert_same(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert weights.masked_select(~mask).abs().max() == 0


def test_a_query_that_may_look_nowhere_gets_zeros_as_in_torch():
    query, key, value = (draw(1, 1, 3, 2) for _ in range(3))
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    got = attention.scaled_dot_product_attention(query, key, value, mask)
    assert got[0, 0, 1].abs().max() == 0
    assert_same(got, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert all(grad.isfinite().all() for grad in gradients(got, (query, key, value)))


def test_the_causal_mask_is_that_of_torchs_is_causal():
    query, key, value = (draw(2, 2, 6, 4) for _ in range(3))
    got = attention.scaled_dot_product_attention(query, key, value, attention.causal_mask(6))
    assert_same(got, F.scaled_dot_product_attention(query, key, value, is_causal=True))


def test_with_more_keys_than_queries_the_last_query_sees_all_keys():
    assert attention.causal_mask(2, 4).tolist() == [
        [True, True, True, False],
        [True, True, True, True],
    ]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 4), sizes, sizes, sizes, st.booleans(), st.booleans(), seeds)
def test_multi_head_attention_has_torchs_values_and_gradients(
    batch, heads, d, queries, keys, bias, cross, seed
):
    torch.manual_seed(seed)
    width = heads * d
    module = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).double()
    for parameter in module.parameters():  # torch starts its biases at zero
        nn.init.normal_(parameter)
    x = draw(batch, queries, width)
    memory = draw(batch, keys, width) if cross else x
    got = attention.multi_head_attention(
        x,
        memory,
        module.in_proj_weight,
        module.in_proj_bias,
        module.out_proj.weight,
        module.out_proj.bias,
        heads,
    )
    expected, _ = module(x, memory, memory, need_weights=False)
    assert_same(got, expected)
    inputs = [x, *module.parameters()]
    for ours, theirs in zip(gradients(got, inputs), gradients(expected, inputs), strict=True):
        assert_same(ours, theirs)


def test_padding_changes_nothing_for_the_positions_that_count():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(6, 2, batch_first=True).double()
    weights = (
        module.in_proj_weight,
        module.in_proj_bias,
        module.out_proj.weight,
        module.out_proj.bias,
    )
    short = draw(1, 3, 6)
    padded = torch.cat([short, torch.full((1, 2, 6), 1e3, dtype=torch.float64)], dim=1)
    mask = attention.padding_mask(torch.tensor([3]), 5)
    got = attention.multi_head_attention(padded, padded, *weights, 2, mask)[:, :3]
    assert_same(got, attention.multi_head_attention(short, short, *weights, 2))


@settings(deadline=None)
@given(sizes, st.integers(0, 6), st.integers(1, 4), sizes)
def test_heads_split_and_merge_back(batch, time, heads, d):
    x = torch.randn(batch, time, heads * d)
    halves = attention.split_heads(x, heads)
    assert halves.shape == (batch, heads, time, d)
    assert torch.equal(halves[:, heads - 1], x[..., (heads - 1) * d :])
    assert torch.equal(attention.merge_heads(halves), x)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(1, 8))
def test_the_sinusoidal_encoding_is_that_of_the_paper_element_by_element(length, half):
    width = 2 * half
    got = attention.sinusoidal_encoding(length, width)
    assert got.shape == (length, width)
    for t in range(length):
        for k in range(half):
            angle = torch.tensor(t / 10_000 ** (2 * k / width), dtype=torch.float64)
            assert_same(got[t, 2 * k].double(), angle.sin(), 1e-6)
            assert_same(got[t, 2 * k + 1].double(), angle.cos(), 1e-6)


@settings(deadline=None)
@given(sizes, st.integers(1, 6), st.integers(1, 4), seeds)
def test_the_rotary_encoding_is_a_product_of_complex_numbers(batch, time, half, seed):
    torch.manual_seed(seed)
    x = draw(batch, 2, time, 2 * half)
    positions = torch.randint(0, 500, (time,))
    frequency = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(time, half, dtype=torch.float64), positions[:, None] * frequency)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (half, 2))) * turn)
    assert_same(attention.rotary_encoding(x, positions), expected.flatten(-2))


def test_a_rotated_dot_product_depends_on_the_distance_alone():
    query, key = draw(1, 8), draw(1, 8)

    def score(t, s):
        turned_query = attention.rotary_encoding(query, torch.tensor([t]))
        return turned_query @ attention.rotary_encoding(key, torch.tensor([s])).T

    assert_same(score(3, 1), score(103, 101))
    assert (score(3, 1) - score(3, 2)).abs() > 1e-3


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_the_cache_returns_everything_that_was_appended(counts):
    keys, values = torch.randn(2, 2, 3, sum(counts), 4)
    cache, start = attention.KeyValueCache(), 0
    for count in counts:
        new = slice(start, start + count)
        got_keys, got_values = cache.append(keys[:, :, new], values[:, :, new])
        start += count
        assert cache.length == start
        assert torch.equal(got_keys, keys[:, :, :start])
        assert torch.equal(got_values, values[:, :, :start])


def test_step_by_step_attention_with_a_cache_equals_causal_attention_at_once():
    query, key, value = (draw(2, 3, 9, 4).detach() for _ in range(3))
    expected = attention.scaled_dot_product_attention(query, key, value, attention.causal_mask(9))
    cache, rows = attention.KeyValueCache(), []
    for new in (slice(0, 4), slice(4, 5), slice(5, 9)):
        keys, values = cache.append(key[:, :, new], value[:, :, new])
        mask = attention.causal_mask(query[:, :, new].shape[2], cache.length)
        rows.append(attention.scaled_dot_product_attention(query[:, :, new], keys, values, mask))
    assert_same(torch.cat(rows, dim=2), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: attention.attention_weights(x, x[..., :2]), "last sizes"),
        (lambda x: attention.attention_weights(x, x, torch.ones(3, 3)), "torch.bool"),
        (lambda x: attention.scaled_dot_product_attention(x, x, x[..., :2, :]), "one value"),
        (lambda x: attention.causal_mask(3, 2), "2 keys for 3 queries"),
        (lambda x: attention.split_heads(x, 3), "3 heads"),
        (lambda x: attention.sinusoidal_encoding(4, 3), "even"),
        (lambda x: attention.rotary_encoding(x[..., :3], torch.arange(3)), "even"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3, 4))


def test_a_cache_refuses_another_batch():
    cache = attention.KeyValueCache()
    cache.append(torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4))
    with pytest.raises(ValueError, match="new cache"):
        cache.append(torch.randn(3, 1, 1, 4), torch.randn(3, 1, 1, 4))
