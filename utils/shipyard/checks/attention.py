"""Checks of attention: references, and the cases to try them on. Nothing here is torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import Case, CheckFailed, check
from shipyard.checks.differences import describe

TORCHS_OWN = dict.fromkeys(
    ("scaled_dot_product_attention", "multi_head_attention_forward", "MultiheadAttention.forward"),
    """That is what you are building. Write the steps yourself: scores, mask, softmax and values.
    Your own functions of earlier tasks may be called.""",
)


def scaled_dot_product_attention(query, key, value, mask=None):
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return weights @ value


def causal_mask(length, past=0):
    looking = torch.arange(past, past + length)
    seen = torch.arange(past + length)
    return seen <= looking[:, None]


def causal_mask_by_triangle(length, past=0):
    return torch.ones(length, past + length, dtype=torch.bool).tril(diagonal=past)


def multi_head_attention(x, w_in, b_in, w_out, b_out, heads, mask=None):
    parts = (x @ w_in.T + b_in).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    mixed = scaled_dot_product_attention(q, k, v, mask)
    return mixed.transpose(1, 2).flatten(2) @ w_out.T + b_out


def multi_head_attention_by_loop(x, w_in, b_in, w_out, b_out, heads, mask=None):
    query, key, value = (x @ w_in.T + b_in).chunk(3, dim=-1)
    d = x.shape[-1] // heads
    mixed = []
    for head in range(heads):
        columns = slice(head * d, (head + 1) * d)
        q, k, v = query[..., columns], key[..., columns], value[..., columns]
        mixed.append(scaled_dot_product_attention(q, k, v, mask))
    return torch.cat(mixed, dim=-1) @ w_out.T + b_out


def sinusoidal_encoding(length, width, base=10000.0):
    t = torch.arange(length, dtype=torch.float64)[:, None]
    k = torch.arange(width // 2, dtype=torch.float64)
    angle = t / base ** (2 * k / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def rotary_encoding(x, positions, base=10000.0):
    width = x.shape[-1]
    t = positions.double()[:, None]
    k = torch.arange(width // 2, dtype=torch.float64)
    angle = t / base ** (2 * k / width)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned_even = even * angle.cos() - odd * angle.sin()
    turned_odd = even * angle.sin() + odd * angle.cos()
    return torch.stack([turned_even, turned_odd], dim=-1).flatten(-2)


def kv_cache(query, key, value, cache=None):
    keys, values = key, value
    if cache is not None:
        keys = torch.cat([cache[0], key], dim=-2)
        values = torch.cat([cache[1], value], dim=-2)
    new, total = query.shape[-2], keys.shape[-2]
    mask = causal_mask(new, past=total - new)
    return scaled_dot_product_attention(query, keys, values, mask), (keys, values)


@check(scaled_dot_product_attention, seed=31, tolerance=1e-10, forbidden=TORCHS_OWN)
def check_scaled_dot_product_attention(draw):
    """In the mask True means: may look."""
    few = torch.tensor([[True, False, True, False, False]])
    lengths = torch.tensor([4, 2])[:, None, None, None]  # of two sequences, padded to 5 keys
    return [
        Case(draw(3, 2), draw(5, 2), draw(5, 2)),
        Case(draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 3)),
        Case(2 * draw(2, 3, 4, 8), draw(2, 3, 7, 8), draw(2, 3, 7, 5)),
        Case(draw(2, 4), draw(5, 4), draw(5, 4), mask=few),
        Case(draw(2, 2, 5, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4), mask=causal_mask(5)),
        Case(draw(2, 3, 4, 6), draw(2, 3, 5, 6), draw(2, 3, 5, 6), torch.arange(5) < lengths),
        Case(10 * draw(3, 4), 15 * draw(5, 4), draw(5, 4), mask=few),  # scores of some hundreds
        Case(draw(1, 1, 1, 1), draw(1, 1, 1, 1), draw(1, 1, 1, 4)),
    ]


@check(causal_mask, forms=(causal_mask_by_triangle,))
def check_causal_mask():
    """Bool (length, past + length), True: may look."""
    return [Case(3), Case(3, past=2), Case(4, past=7), Case(2, 2), Case(1, past=3), Case(1)]


@check(
    multi_head_attention,
    seed=33,
    tolerance=1e-10,
    forms=(multi_head_attention_by_loop,),
    forbidden=TORCHS_OWN,
)
def check_multi_head_attention(draw):

    def case(batch, time, width, heads, **options):
        weights = (draw(3 * width, width), draw(3 * width), draw(width, width), draw(width))
        return Case(draw(batch, time, width), *(w / 2 for w in weights), heads, **options)

    back = torch.arange(6)[:, None] - torch.arange(6)
    return [
        case(2, 3, 4, 2),
        case(3, 4, 6, 3),
        case(2, 5, 6, 1),
        case(2, 5, 12, 2),
        case(2, 6, 8, 2, mask=(back >= 0) & (back <= 2)),
        case(1, 1, 8, 4),
    ]


@check(sinusoidal_encoding, tolerance=2e-5)  # float32 angles of up to 60 radians
def check_sinusoidal_encoding():
    """Float32 (length, width)."""
    return [
        Case(3, 4),
        Case(3, 4, base=50.0),  # a table kept from the case before does not fit
        Case(9, 10, 700.0), Case(60, 16), Case(7, 2), Case(1, 4),
    ]  # fmt: skip


@check(rotary_encoding, seed=35, tolerance=1e-5)  # angles may be computed in float32
def check_rotary_encoding(draw):
    """Pairs of neighbouring columns."""
    return [
        Case(draw(3, 4), torch.arange(3)),
        Case(draw(2, 3, 6), torch.tensor([7, 2, 30])),
        Case(draw(2, 3, 5, 8), torch.arange(3, 8)),
        Case(draw(2, 3, 5, 8), torch.arange(3, 8), base=100.0),
        Case(draw(2, 3, 5, 8), torch.tensor([9, 0, 2, 4, 1]), 100.0),
        Case(draw(1, 1, 1, 2), torch.tensor([1])),
    ]


def _feed(
    function: Callable, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[int]
) -> tuple:
    """What comes of two texts fed in turn; they have the first piece in common.

    The later pieces of the second text are those of the first with its columns reversed.
    """
    texts = (query, key, value), tuple(t.flip(-1) for t in (query, key, value))

    def call(text, number, *cache):
        start = sum(pieces[:number])
        answer = function(*(t[..., start : start + pieces[number], :] for t in text), *cache)
        match answer:
            case [Tensor(), [Tensor(), Tensor()]]:
                return answer
        raise CheckFailed(
            f"It does not return a pair (output, cache), but\n  {_shown(answer)}.\n"
            "The cache is a pair of tensors: (all keys so far, all values so far). Let every\n"
            "path end with return output, (keys, values).",
            "not-a-pair",
        )

    output, first = call(texts[0], 0)
    before = [t.clone() for t in first]
    outputs, caches = ([output], [output]), [first, first]
    for number in range(1, len(pieces)):
        for i, text in enumerate(texts):
            output, caches[i] = call(text, number, caches[i])
            outputs[i].append(output)
    joined = [torch.cat(parts, dim=-2) for parts in outputs]
    kept = len(first) == 2 and all(map(torch.equal, before, first))
    handed_in = "is as it was returned" if kept else "was changed by a later call"
    return handed_in, joined[0], *caches[0], joined[1], caches[1]


def _shown(value: Any) -> str:
    parts = map(_shown, value) if isinstance(value, tuple | list) else ()
    return f"({', '.join(parts)})" if parts else describe(value)


@check(
    kv_cache,
    seed=37,
    tolerance=1e-10,
    forbidden=TORCHS_OWN,
    use=_feed,
    outputs=(
        "the first cache", "the joined outputs", "the cached keys", "the cached values",
        "the second text's outputs", "the second text's cache",
    ),
)  # fmt: skip
def check_kv_cache(draw):
    """A text is fed in pieces, and each returned cache handed to the next call. In turn with
    it goes a second text that has the first piece in common, and so the first cache."""

    def case(batch, heads, d, pieces):
        shape = (batch, heads, sum(pieces), d)
        return Case(draw(*shape), draw(*shape), draw(*shape), pieces)

    return [
        case(2, 3, 2, [1, 1, 1]),
        case(2, 2, 3, [3, 2, 4]),
        case(3, 2, 4, [5, 1]),
        case(1, 1, 2, [1]),
    ]
