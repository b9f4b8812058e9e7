"""Wrong answers to lab 03, attention, and other correct ones."""

import math

import torch
import torch.nn.functional as F

from wrong_answers import Task

ATTENTION, CAUSAL_MASK, MULTI_HEAD, SINUSOIDAL, ROTARY, KV_CACHE = (Task() for _ in range(6))
TASKS = {
    "scaled_dot_product_attention": ATTENTION,
    "causal_mask": CAUSAL_MASK,
    "multi_head_attention": MULTI_HEAD,
    "sinusoidal_encoding": SINUSOIDAL,
    "rotary_encoding": ROTARY,
    "kv_cache": KV_CACHE,
}


# Scaled dot-product attention.


@ATTENTION.fails_with("scale-missing")
def does_not_scale(query, key, value, mask=None):
    scores = query @ key.mT
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return F.softmax(scores, dim=-1) @ value


@ATTENTION.fails_with("scale-wrong")
def divides_by_d(query, key, value, mask=None):
    scores = query @ key.mT / query.size(-1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-1) @ value


@ATTENTION.fails_with("scale-wrong")
def multiplies_by_the_root(query, key, value, mask=None):
    scores = query @ key.mT * query.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-1) @ value


@ATTENTION.fails_with("scale-wrong")
def divides_by_the_root_of_the_number_of_keys(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(key.size(-2))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-1) @ value


@ATTENTION.fails_with("scale-wrong")
def divides_by_the_root_of_the_size_of_a_value(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(value.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-1) @ value


@ATTENTION.fails_with("softmax-over-queries")
def normalises_the_columns(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.softmax(scores, dim=-2) @ value


@ATTENTION.fails_with("softmax-twice")
def follows_the_article(query, key, value, mask=None):
    a = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        a = a.masked_fill(~mask, float("-inf"))
    e = torch.exp(a) / torch.exp(a).sum(-1, keepdim=True)
    alpha = e.exp() / e.exp().sum(-1, keepdim=True)
    return alpha @ value


@ATTENTION.fails_with("softmax-missing")
def uses_scores_as_weights(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores @ value


@ATTENTION.fails_with("softmax-missing")
def divides_scores_by_their_sum(query, key, value, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", query, key) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores / scores.sum(-1, keepdim=True)) @ value


@ATTENTION.fails_with("values-left-out")
def returns_the_weights(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


@ATTENTION.fails_with("keys-as-values")
def hands_over_the_keys(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ key


@ATTENTION.fails_with("mask-after-softmax")
def hides_after_the_softmax(query, key, value, mask=None):
    weights = F.softmax(query @ key.mT / math.sqrt(query.size(-1)), dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return weights @ value


@ATTENTION.fails_with("mask-with-zero")
def hides_with_zero(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = torch.where(mask, scores, torch.zeros_like(scores))
    return scores.softmax(-1) @ value


@ATTENTION.fails_with("mask-inverted")
def reads_true_as_hidden(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores[mask.expand_as(scores)] = float("-inf")
    return scores.softmax(-1) @ value


@ATTENTION.fails_with("mask-ignored")
def forgets_the_mask(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value)


@ATTENTION.fails_with("mask-added")
def adds_the_mask(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return scores.softmax(-1) @ value


@ATTENTION.fails_with("raised-error")
def transposes_the_wrong_axes(query, key, value, mask=None):
    return (query @ key.transpose(0, 1) / math.sqrt(query.size(-1))).softmax(-1) @ value


@ATTENTION.passes
def calls_torch(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@ATTENTION.passes
def uses_einsum_and_a_large_negative_number(query, key, value, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", query / query.shape[-1] ** 0.5, key)
    if mask is not None:
        scores = torch.where(mask, scores, torch.tensor(-1e30, dtype=scores.dtype))
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("...qk,...kd->...qd", weights, value)


@ATTENTION.passes
def loops_over_the_queries(query, key, value, mask=None):
    rows = []
    for i in range(query.shape[-2]):
        scores = (query[..., i : i + 1, :] * key).sum(-1) / math.sqrt(key.shape[-1])
        if mask is not None:
            row = mask.expand(query.shape[-2], key.shape[-2])[i]
            scores = scores.masked_fill(~row, -math.inf)
        rows.append((scores.softmax(-1)[..., None] * value).sum(-2))
    return torch.stack(rows, dim=-2)


# The causal mask.


@CAUSAL_MASK.fails_with("transposed")
def takes_the_upper_triangle(length, past=0):
    return torch.triu(torch.ones(length, past + length, dtype=torch.bool), diagonal=past)


@CAUSAL_MASK.fails_with("inverted")
def marks_what_is_hidden(length, past=0):
    return torch.ones(length, past + length).triu(diagonal=past + 1) == 1


@CAUSAL_MASK.fails_with("diagonal-excluded")
def leaves_out_itself(length, past=0):
    i = torch.arange(length)[:, None] + past
    return torch.arange(length + past)[None, :] < i


@CAUSAL_MASK.fails_with("sees-the-next")
def sees_one_too_many(length, past=0):
    i = torch.arange(length)[:, None] + past
    return torch.arange(length + past)[None, :] <= i + 1


@CAUSAL_MASK.fails_with("sees-everything")
def hides_nothing(length, past=0):
    return torch.full((length, past + length), True)


@CAUSAL_MASK.fails_with("additive-mask")
def makes_a_mask_to_add(length, past=0):
    mask = torch.zeros(length, past + length)
    return mask.masked_fill(torch.ones_like(mask).triu(past + 1).bool(), float("-inf"))


@CAUSAL_MASK.fails_with("numbers-not-bool")
def returns_ones_and_zeros(length, past=0):
    return torch.tril(torch.ones(length, past + length), diagonal=past)


@CAUSAL_MASK.fails_with("past-ignored")
def is_square_without_the_past(length, past=0):
    return torch.ones(length, length, dtype=torch.bool).tril()


@CAUSAL_MASK.fails_with("past-hidden")
def closes_the_past(length, past=0):
    mask = torch.zeros(length, past + length, dtype=torch.bool)
    mask[:, past:] = torch.ones(length, length, dtype=torch.bool).tril()
    return mask


@CAUSAL_MASK.fails_with("counted-from-zero")
def forgets_where_the_rows_stand(length, past=0):
    return torch.ones(length, past + length, dtype=torch.bool).tril()


@CAUSAL_MASK.fails_with("rows-for-the-past")
def has_a_row_for_everyone(length, past=0):
    total = past + length
    return torch.ones(total, total, dtype=torch.bool).tril()


@CAUSAL_MASK.passes
def compares_places(length, past=0):
    i = torch.arange(past, past + length).reshape(-1, 1)
    j = torch.arange(past + length).reshape(1, -1)
    return j <= i


@CAUSAL_MASK.passes
def fills_in_loops(length, past=0):
    rows = [[j <= past + i for j in range(past + length)] for i in range(length)]
    return torch.tensor(rows)


@CAUSAL_MASK.passes
def cuts_a_triangle(length, past=0):
    return torch.ones(length, past + length).tril(past).bool()


# Multi-head attention.


def attend(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@MULTI_HEAD.fails_with("split-without-transpose")
def cuts_heads_by_view(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, heads, time, width // heads) for t in (q, k, v))
    out = attend(q, k, v, mask).transpose(1, 2).reshape(batch, time, width)
    return F.linear(out, w_out, b_out)


@MULTI_HEAD.fails_with("split-without-transpose")
def cuts_and_joins_by_view(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.reshape(batch, heads, time, width // heads) for t in (q, k, v))
    return F.linear(attend(q, k, v, mask).reshape(batch, time, width), w_out, b_out)


@MULTI_HEAD.fails_with("merge-without-transpose")
def joins_heads_by_view(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.linear(attend(q, k, v, mask).reshape(batch, time, width), w_out, b_out)


@MULTI_HEAD.fails_with("heads-interleaved")
def deals_columns_like_cards(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    out = torch.empty(batch, time, width, dtype=x.dtype)
    for h in range(heads):
        out[..., h::heads] = attend(q[..., h::heads], k[..., h::heads], v[..., h::heads], mask)
    return F.linear(out, w_out, b_out)


@MULTI_HEAD.fails_with("heads-ignored")
def has_one_head(x, w_in, b_in, w_out, b_out, heads, mask=None):
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    return F.linear(attend(q, k, v, mask), w_out, b_out)


@MULTI_HEAD.fails_with("scale-by-width")
def scales_by_the_whole_width(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT / width**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, width)
    return F.linear(out, w_out, b_out)


@MULTI_HEAD.fails_with("scale-missing")
def does_not_scale_the_heads(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, width)
    return F.linear(out, w_out, b_out)


@MULTI_HEAD.fails_with("weights-order")
def takes_keys_first(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    k, q, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.linear(attend(q, k, v, mask).transpose(1, 2).flatten(2), w_out, b_out)


@MULTI_HEAD.fails_with("weights-order")
def takes_values_second(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, v, k = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.linear(attend(q, k, v, mask).transpose(1, 2).flatten(2), w_out, b_out)


@MULTI_HEAD.fails_with("output-projection-missing")
def stops_at_the_heads(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return attend(q, k, v, mask).transpose(1, 2).flatten(2)


@MULTI_HEAD.fails_with("bias-dropped")
def drops_the_last_bias(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return attend(q, k, v, mask).transpose(1, 2).flatten(2) @ w_out.T


@MULTI_HEAD.fails_with("bias-dropped")
def drops_the_first_bias(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, k, v = (x @ w_in.T).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.linear(attend(q, k, v, mask).transpose(1, 2).flatten(2), w_out, b_out)


@MULTI_HEAD.fails_with("w_out-not-transposed")
def multiplies_w_out_from_the_wrong_side(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return attend(q, k, v, mask).transpose(1, 2).flatten(2) @ w_out + b_out


@MULTI_HEAD.fails_with("mask-ignored")
def forgets_the_mask_of_the_heads(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, _ = x.shape
    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, v = (t.view(batch, time, heads, -1).transpose(1, 2) for t in (q, k, v))
    return F.linear(attend(q, k, v, None).transpose(1, 2).flatten(2), w_out, b_out)


@MULTI_HEAD.fails_with("mask-inverted")
def hands_the_mask_on_inverted(x, w_in, b_in, w_out, b_out, heads, mask=None):
    out, _ = F.multi_head_attention_forward(
        *(x.transpose(0, 1),) * 3,
        x.shape[-1],
        heads,
        w_in,
        b_in,
        None,
        None,
        False,
        0.0,
        w_out,
        b_out,
        attn_mask=mask,
        need_weights=False,
    )
    return out.transpose(0, 1)


@MULTI_HEAD.passes
def calls_torchs_module_function(x, w_in, b_in, w_out, b_out, heads, mask=None):
    out, _ = F.multi_head_attention_forward(
        *(x.transpose(0, 1),) * 3,
        x.shape[-1],
        heads,
        w_in,
        b_in,
        None,
        None,
        False,
        0.0,
        w_out,
        b_out,
        attn_mask=None if mask is None else ~mask,
        need_weights=False,
    )
    return out.transpose(0, 1)


@MULTI_HEAD.passes
def loops_over_the_heads(x, w_in, b_in, w_out, b_out, heads, mask=None):
    width = x.shape[-1]
    d = width // heads
    out = b_out.expand(*x.shape[:-1], width)
    for h in range(heads):
        rows = [slice(third * width + h * d, third * width + (h + 1) * d) for third in range(3)]
        q, k, v = (F.linear(x, w_in[r], b_in[r]) for r in rows)
        out = out + attend(q, k, v, mask) @ w_out[:, h * d : (h + 1) * d].T
    return out


@MULTI_HEAD.passes
def uses_einsum(x, w_in, b_in, w_out, b_out, heads, mask=None):
    batch, time, width = x.shape
    qkv = torch.einsum("ntw,ow->nto", x, w_in) + b_in
    q, k, v = qkv.view(batch, time, 3, heads, width // heads).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / (width / heads) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).reshape(batch, time, width)
    return torch.einsum("ntw,ow->nto", mixed, w_out) + b_out


# The sinusoidal encoding.


def angles(length, width, base):
    t = torch.arange(length, dtype=torch.float64)[:, None]
    return t / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)


@SINUSOIDAL.fails_with("halves")
def puts_all_sines_first(length, width, base=10_000.0):
    a = angles(length, width, base)
    return torch.cat([a.sin(), a.cos()], dim=-1).float()


@SINUSOIDAL.fails_with("cosine-first")
def begins_with_the_cosine(length, width, base=10_000.0):
    a = angles(length, width, base)
    return torch.stack([a.cos(), a.sin()], dim=-1).reshape(length, width).float()


@SINUSOIDAL.fails_with("one-function")
def uses_sines_only(length, width, base=10_000.0):
    return angles(length, width, base).sin().repeat_interleave(2, dim=1).float()


@SINUSOIDAL.fails_with("own-angle-for-each-column")
def gives_each_column_its_own_angle(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    for t in range(length):
        for i in range(width):
            a = t / base ** (i / width)
            P[t, i] = math.sin(a) if i % 2 == 0 else math.cos(a)
    return P


@SINUSOIDAL.fails_with("own-angle-for-each-column")
def takes_the_column_for_the_pair(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    for t in range(length):
        for i in range(width):
            a = t / base ** (2 * i / width)
            P[t, i] = math.sin(a) if i % 2 == 0 else math.cos(a)
    return P


@SINUSOIDAL.fails_with("exponent-halved")
def forgets_the_two(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    for t in range(length):
        for k in range(width // 2):
            a = t / base ** (k / width)
            P[t, 2 * k], P[t, 2 * k + 1] = math.sin(a), math.cos(a)
    return P


@SINUSOIDAL.fails_with("exponent-by-pairs-less-one")
def copies_another_librarys_exponent(length, width, base=10_000.0):
    half = width // 2
    step = math.log(base) / max(half - 1, 1)
    a = torch.arange(length).double()[:, None] * torch.exp(-step * torch.arange(half).double())
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).float()


@SINUSOIDAL.fails_with("angle-multiplied")
def multiplies_by_the_power(length, width, base=10_000.0):
    t = torch.arange(length, dtype=torch.float64)[:, None]
    a = t * base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).float()


@SINUSOIDAL.fails_with("position-from-one")
def counts_positions_from_one(length, width, base=10_000.0):
    a = angles(length + 1, width, base)[1:]
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).float()


@SINUSOIDAL.fails_with("base-ignored")
def always_uses_ten_thousand(length, width, base=10_000.0):
    a = angles(length, width, 10_000.0)
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).float()


@SINUSOIDAL.fails_with("full-turns")
def multiplies_by_two_pi(length, width, base=10_000.0):
    a = 2 * torch.pi * angles(length, width, base)
    return torch.stack([a.sin(), a.cos()], dim=-1).flatten(1).float()


@SINUSOIDAL.passes
def fills_in_every_number(length, width, base=10_000.0):
    P = torch.empty(length, width)
    for t in range(length):
        for k in range(width // 2):
            a = t / base ** (2 * k / width)
            P[t, 2 * k], P[t, 2 * k + 1] = math.sin(a), math.cos(a)
    return P


@SINUSOIDAL.passes
def uses_logarithms_in_float32(length, width, base=10_000.0):
    P = torch.zeros(length, width)
    t = torch.arange(length).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(base) / width))
    P[:, 0::2] = torch.sin(t * frequency)
    P[:, 1::2] = torch.cos(t * frequency)
    return P


# The rotary encoding.


def turns(x, positions, base, exponent=None):
    d = x.shape[-1]
    k = torch.arange(d // 2, dtype=torch.float64)
    a = positions.double()[:, None] / base ** (2 * k / d if exponent is None else exponent(k, d))
    return a.cos(), a.sin()


@ROTARY.fails_with("pairs-by-halves")
def rotates_halves(x, positions, base=10_000.0):
    cos, sin = (torch.cat([t, t], dim=-1) for t in turns(x, positions, base))
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


@ROTARY.fails_with("halves-after-turning")
def does_not_put_the_columns_back(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


@ROTARY.fails_with("turned-backwards")
def turns_the_wrong_way(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    out = torch.empty_like(x)
    out[..., ::2] = x[..., ::2] * cos + x[..., 1::2] * sin
    out[..., 1::2] = x[..., 1::2] * cos - x[..., ::2] * sin
    return out


@ROTARY.fails_with("both-signs-equal")
def loses_the_minus(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    out = torch.empty_like(x)
    out[..., ::2] = x[..., ::2] * cos + x[..., 1::2] * sin
    out[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return out


@ROTARY.fails_with("overwritten-too-early")
def uses_the_new_value(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    x = x.clone()
    x[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    x[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
    return x


@ROTARY.fails_with("added-instead-of-turned")
def adds_the_sinusoids(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    return x + torch.stack([sin, cos], dim=-1).flatten(-2)


@ROTARY.fails_with("exponent-halved")
def forgets_the_two_in_the_exponent(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base, exponent=lambda k, d: k / d)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@ROTARY.fails_with("one-frequency")
def turns_all_pairs_alike(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base, exponent=lambda k, d: 0 * k)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@ROTARY.fails_with("positions-ignored")
def counts_rows(x, positions, base=10_000.0):
    cos, sin = turns(x, torch.arange(x.shape[-2]), base)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@ROTARY.fails_with("position-from-one")
def adds_one_to_the_positions(x, positions, base=10_000.0):
    cos, sin = turns(x, positions + 1, base)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@ROTARY.fails_with("base-ignored")
def always_turns_by_ten_thousand(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, 1e4)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@ROTARY.passes
def multiplies_complex_numbers(x, positions, base=10_000.0):
    cos, sin = turns(x, positions, base)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


@ROTARY.passes
def loops_over_pairs_with_float32_angles(x, positions, base=10_000.0):
    out = x.clone()
    for k in range(x.shape[-1] // 2):
        angle = positions.float() / base ** (2 * k / x.shape[-1])
        cos, sin = angle.cos(), angle.sin()
        out[..., 2 * k] = x[..., 2 * k] * cos - x[..., 2 * k + 1] * sin
        out[..., 2 * k + 1] = x[..., 2 * k] * sin + x[..., 2 * k + 1] * cos
    return out


# The key-value cache.


def lower(new, total):
    return torch.ones(new, total, dtype=torch.bool).tril(total - new)


@KV_CACHE.fails_with("past-ignored")
def sees_the_new_positions_only(query, key, value, cache=None):
    n = query.shape[-2]
    return attend(query, key, value, lower(n, n)), (key, value)


@KV_CACHE.fails_with("attends-to-new-only")
def stores_and_does_not_look(query, key, value, cache=None):
    n = query.shape[-2]
    output = attend(query, key, value, lower(n, n))
    if cache is not None:
        key, value = (torch.cat(pair, dim=-2) for pair in zip(cache, (key, value), strict=True))
    return output, (key, value)


@KV_CACHE.fails_with("only-the-last-piece-kept")
def returns_the_new_ones_as_the_cache(query, key, value, cache=None):
    keys, values = key, value
    if cache is not None:
        keys = torch.cat([cache[0], key], dim=-2)
        values = torch.cat([cache[1], value], dim=-2)
    mask = lower(query.shape[-2], keys.shape[-2])
    return attend(query, keys, values, mask), (key, value)


@KV_CACHE.fails_with("new-before-old")
def puts_the_new_ones_first(query, key, value, cache=None):
    keys, values = key, value
    if cache is not None:
        keys = torch.cat([key, cache[0]], dim=-2)
        values = torch.cat([value, cache[1]], dim=-2)
    mask = lower(query.shape[-2], keys.shape[-2])
    return attend(query, keys, values, mask), (keys, values)


@KV_CACHE.fails_with("no-mask-within-the-piece")
def hides_nothing_in_a_piece(query, key, value, cache=None):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=-2)
        value = torch.cat([cache[1], value], dim=-2)
    return attend(query, key, value, None), (key, value)


@KV_CACHE.fails_with("mask-counted-from-zero")
def forgets_the_past_in_the_mask(query, key, value, cache=None):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=-2)
        value = torch.cat([cache[1], value], dim=-2)
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return output, (key, value)


@KV_CACHE.fails_with("keys-and-values-swapped")
def returns_values_first(query, key, value, cache=None):
    keys, values = key, value
    if cache is not None:
        keys = torch.cat([cache[1], key], dim=-2)
        values = torch.cat([cache[0], value], dim=-2)
    mask = lower(query.shape[-2], keys.shape[-2])
    return attend(query, keys, values, mask), (values, keys)


@KV_CACHE.fails_with("cache-not-updated")
def returns_the_old_cache(query, key, value, cache=None):
    keys, values = key, value
    if cache is not None:
        keys = torch.cat([cache[0], key], dim=-2)
        values = torch.cat([cache[1], value], dim=-2)
    output = attend(query, keys, values, lower(query.shape[-2], keys.shape[-2]))
    return output, (key, value) if cache is None else cache


@KV_CACHE.fails_with("raised-error")
def returns_the_output_alone(query, key, value, cache=None):
    return attend(query, key, value, lower(query.shape[-2], key.shape[-2]))


@KV_CACHE.passes
def joins_and_masks(query, key, value, cache=None):
    if cache is not None:
        key = torch.cat([cache[0], key], dim=-2)
        value = torch.cat([cache[1], value], dim=-2)
    return attend(query, key, value, lower(query.shape[-2], key.shape[-2])), (key, value)


@KV_CACHE.passes
def computes_one_position_at_a_time(query, key, value, cache=None):
    outputs = []
    keys, values = (key[..., :0, :], value[..., :0, :]) if cache is None else cache
    for t in range(query.shape[-2]):
        keys = torch.cat([keys, key[..., t : t + 1, :]], dim=-2)
        values = torch.cat([values, value[..., t : t + 1, :]], dim=-2)
        scores = query[..., t : t + 1, :] @ keys.mT / math.sqrt(keys.shape[-1])
        outputs.append(scores.softmax(-1) @ values)
    return torch.cat(outputs, dim=-2), [keys, values]
