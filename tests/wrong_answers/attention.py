"""Wrong answers on attention, and other correct ones."""

import math

import torch
import torch.nn.functional as F

from shipyard import attention
from wrong_answers import Task

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


@ATTENTION.fails_with("scale-wrong")
def scales_by_the_keys(query, key, value, mask=None):
    to_the_keys = (query.size(-1) / key.size(-2)) ** 0.5
    return loops_over_the_queries(query * to_the_keys, key, value, mask)


@ATTENTION.fails_with("mask-after-softmax")
def hides_the_exponentials_too_late(query, key, value, mask=None):
    e = torch.exp(query @ key.mT / math.sqrt(query.size(-1)))
    weights = e / e.sum(-1, keepdim=True)
    return weights.masked_fill(~mask, 0.0) @ value if mask is not None else weights @ value


@ATTENTION.forbids
def calls_torch(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# The causal mask.


@CAUSAL_MASK.passes
def fills_in_loops(length, past=0):
    return torch.tensor([[j <= past + i for j in range(past + length)] for i in range(length)])


@CAUSAL_MASK.fails_with("inverted")
def marks_what_is_hidden(length, past=0):
    return torch.ones(length, past + length).triu(diagonal=past + 1) == 1


@CAUSAL_MASK.fails_with("past-hidden")
def closes_the_past(length, past=0):
    return F.pad(torch.ones(length, length, dtype=torch.bool).tril(), (past, 0))


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


@MULTI_HEAD.fails_with("split-without-transpose")
def cuts_heads_by_view(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, heads, time, width // heads) for t in (q, k, v))
    out = loops_over_the_queries(q, k, v, mask).transpose(1, 2).reshape(batch, time, width)
    return F.linear(out, w_out, b_out)


@MULTI_HEAD.forbids
def calls_torchs_module(x, w_in, b_in, w_out, b_out, heads, mask=None):
    layer = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for parameter, given in zip(layer.parameters(), (w_in, b_in, w_out, b_out), strict=True):
            parameter.copy_(given)
    return layer(x, x, x, attn_mask=None if mask is None else ~mask)[0]


MULTI_HEAD.fails_with("mask-ignored", lambda *given, mask=None: adds_up_the_heads(*given))


# The sinusoidal encoding.


@SINUSOIDAL.passes
def uses_logarithms_in_float32(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    t = torch.arange(length).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(base) / width))
    P[:, 0::2] = torch.sin(t * frequency)
    P[:, 1::2] = torch.cos(t * frequency)
    return P


@SINUSOIDAL.fails_with("own-angle-for-each-column")
def gives_each_column_its_own_angle(length, width, base=10_000.0):
    rows = ([t / base ** (i / width) for i in range(width)] for t in range(length))
    wave = (math.sin, math.cos)
    return torch.tensor([[wave[i % 2](a) for i, a in enumerate(row)] for row in rows])


@SINUSOIDAL.fails_with("halves")
def puts_all_sines_first(length, width, base=10_000.0):
    P = uses_logarithms_in_float32(length, width, base)
    return torch.cat([P[:, ::2], P[:, 1::2]], dim=1)


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


@ROTARY.fails_with("pairs-by-halves")
def rotates_halves(x, positions, base=10_000.0):
    cos, sin = (torch.cat([t, t], dim=-1) for t in turns(x, positions, base))
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


@ROTARY.fails_with("overwritten-too-early")
def uses_the_new_value(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    x = x.clone()
    x[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    x[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
    return x


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
