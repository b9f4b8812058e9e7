"""Wrong answers on attention, and other correct ones."""

import math

import torch
import torch.nn.functional as F

from shipyard import attention
from wrong_answers import Task, but

TASKS = {
    "scaled_dot_product_attention": (ATTENTION := Task()),
    "causal_mask": (CAUSAL_MASK := Task()),
    "multi_head_attention": (MULTI_HEAD := Task()),
    "sinusoidal_encoding": (SINUSOIDAL := Task()),
    "rotary_encoding": (ROTARY := Task()),
    "kv_cache": (KV_CACHE := Task()),
}

# The package's own functions pass: other tests compare them with torch's.
for name in ("scaled_dot_product_attention", "sinusoidal_encoding", "rotary_encoding"):
    TASKS[name].passes(getattr(attention, name))
CAUSAL_MASK.passes(lambda length, past=0: attention.causal_mask(length, past + length))
MULTI_HEAD.passes(lambda x, *rest, **more: attention.multi_head_attention(x, x, *rest, **more))


# Scaled dot-product attention.


@ATTENTION.passes
def loops_over_the_queries(query, key, value, mask=None):
    rows = []
    for i in range(query.shape[-2]):
        scores = (query[..., i : i + 1, :] * key).sum(-1) / math.sqrt(key.shape[-1])
        if mask is not None:
            row = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])[..., i, :]
            scores = scores - (1 - row.to(scores.dtype)) * 1e9
        rows.append((scores.softmax(-1)[..., None] * value).sum(-2))
    return torch.stack(rows, dim=-2)


ATTENTION.fails_with("scale-wrong", but(loops_over_the_queries, "key.shape[-1])", "key.shape[-2])"))
ATTENTION.fails_with(
    "mask-inverted", but(loops_over_the_queries, "(1 - row.to(scores.dtype))", "row")
)


@ATTENTION.forbids
def calls_torch(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# The causal mask.


@CAUSAL_MASK.passes
def fills_in_loops(length, past=0):
    return torch.tensor([[j <= past + i for j in range(past + length)] for i in range(length)])


CAUSAL_MASK.fails_with("inverted", but(fills_in_loops, "j <= past", "j > past"))
CAUSAL_MASK.fails_with("past-hidden", but(fills_in_loops, "j <= past", "past <= j <= past"))


# Multi-head attention.


@MULTI_HEAD.passes
def adds_up_the_heads(x, w_in, b_in, w_out, b_out, heads, mask=None):
    width = x.shape[-1]
    d = width // heads
    out = b_out.expand(*x.shape[:-1], width)
    for h in range(heads):
        rows = [slice(third * width + h * d, third * width + (h + 1) * d) for third in range(3)]
        q, k, v = (F.linear(x, w_in[r], b_in[r]) for r in rows)
        out = out + loops_over_the_queries(q, k, v, mask) @ w_out[:, h * d : (h + 1) * d].T
    return out


MULTI_HEAD.fails_with("mask-ignored", but(adds_up_the_heads, "v, mask)", "v)"))
MULTI_HEAD.fails_with("weights-order", but(adds_up_the_heads, "q, k, v =", "k, q, v ="))


@MULTI_HEAD.forbids
def calls_torchs_module(x, w_in, b_in, w_out, b_out, heads, mask=None):
    layer = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for parameter, given in zip(layer.parameters(), (w_in, b_in, w_out, b_out), strict=True):
            parameter.copy_(given)
    return layer(x, x, x, attn_mask=None if mask is None else ~mask)[0]


# The sinusoidal encoding.


@SINUSOIDAL.passes
def uses_logarithms_in_float32(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    t = torch.arange(length).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(base) / width))
    P[:, 0::2] = torch.sin(t * frequency)
    P[:, 1::2] = torch.cos(t * frequency)
    return P


SINUSOIDAL.fails_with("one-function", but(uses_logarithms_in_float32, "torch.cos", "torch.sin"))
SINUSOIDAL.fails_with(
    "halves",
    but(
        uses_logarithms_in_float32,
        "return P",
        "return P[:, [*range(0, width, 2), *range(1, width, 2)]]",
    ),
)


# The rotary encoding.


def turns(x, positions, base):
    k = torch.arange(0, x.shape[-1], 2, dtype=torch.float64)
    a = positions.double()[:, None] / base ** (k / x.shape[-1])
    return a.cos(), a.sin()


@ROTARY.passes
def multiplies_complex_numbers(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


ROTARY.fails_with(
    "positions-ignored",
    but(
        multiplies_complex_numbers, "x, positions, base)\n", "x, positions - positions[0], base)\n"
    ),
)
ROTARY.fails_with("turned-backwards", but(multiplies_complex_numbers, "(cos, sin)", "(cos, -sin)"))


# The key-value cache.


@KV_CACHE.passes
def computes_one_position_at_a_time(query, key, value, cache=None):
    outputs = []
    keys, values = (key[..., :0, :], value[..., :0, :]) if cache is None else cache
    for t in range(query.shape[-2]):
        keys = torch.cat([keys, key[..., t : t + 1, :]], dim=-2)
        values = torch.cat([values, value[..., t : t + 1, :]], dim=-2)
        outputs.append(loops_over_the_queries(query[..., t : t + 1, :], keys, values))
    return torch.cat(outputs, dim=-2), [keys, values]


@KV_CACHE.passes
def masks_from_the_end(query, key, value, cache=None):
    if cache is not None:
        key, value = (torch.cat(pair, dim=-2) for pair in zip(cache, (key, value), strict=True))
    mask = attention.causal_mask(query.shape[-2], key.shape[-2])
    return loops_over_the_queries(query, key, value, mask), (key, value)


@KV_CACHE.fails_with("changes-the-given-cache")
def appends_to_the_given_list(query, key, value, cache=None):
    answer, new = masks_from_the_end(query, key, value, cache)
    cache = [] if cache is None else cache
    cache[:] = new
    return answer, cache


@KV_CACHE.fails_with("changes-the-given-cache")
def writes_behind_the_given_cache(query, key, value, cache=None):
    batch, heads, new, d = key.shape
    buffer = key.new_zeros(2, batch, heads, 50, d) if cache is None else cache[0]._base
    past = 0 if cache is None else cache[0].shape[-2]
    buffer[..., past : past + new, :] = torch.stack([key, value])
    keys, values = buffer[0, ..., : past + new, :], buffer[1, ..., : past + new, :]
    return masks_from_the_end(query, keys, values)[0], (keys, values)


@KV_CACHE.fails_with("not-a-pair")
def forgets_the_cache_where_there_is_one(query, key, value, cache=None):
    answer = masks_from_the_end(query, key, value, cache)
    return answer if cache is None else answer[0]
