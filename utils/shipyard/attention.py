"""Attention, position encodings and layer norm from their formulas.

`scaled_dot_product_attention` agrees with torch's function of that name,
`multi_head_attention` with ``torch.nn.MultiheadAttention`` made with ``batch_first=True``.

Shapes: a sequence is (batch, time, width). Cut into heads it is (batch, heads, time, d) with
width = heads · d. Attention has two lengths: ``queries`` positions look, ``keys`` positions are
looked at. A mask is a bool tensor that can be broadcast to (batch, heads, queries, keys); True
means "may look", as in torch's function.

Sources: A. Vaswani et al., "Attention is all you need", 2017; J. Su et al., "RoFormer: enhanced
Transformer with rotary position embedding", 2021; J. L. Ba et al., "Layer normalization", 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """A = softmax(Q Kᵀ / √d) over the keys: how much each query takes from each key.

    Args:
        query: (…, queries, d)
        key: (…, keys, d)
        mask: bool, True where a query may look. A query that may look nowhere gets zeros.

    Returns:
        (…, queries, keys); each row adds up to one.

    Raises:
        ValueError: the shapes or the type of the mask do not fit; the message names them.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; their last sizes "
            "must be equal: a score is the dot product of a query and a key."
        )
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (…, queries, keys)
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; expected torch.bool, True where a query may look.")
    # The smallest finite number instead of −∞: a row without any key would become 0 / 0.
    hidden = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return hidden.softmax(-1).masked_fill(~mask, 0.0)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(Q Kᵀ / √d) V: for each query the mean of the values, weighted by `attention_weights`.

    Args:
        query: (…, queries, d)
        key: (…, keys, d)
        value: (…, keys, d_v)
        mask: bool, True where a query may look.

    Returns:
        (…, queries, d_v)

    Raises:
        ValueError: the shapes or the type of the mask do not fit; the message names them.
    """
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; each key needs one "
            "value, so their last sizes but one must be equal."
        )
    return attention_weights(query, key, mask) @ value


def causal_mask(
    queries: int, keys: int | None = None, device: torch.device | None = None
) -> Tensor:
    """mask[i, j] = (j ≤ i + keys − queries): a position may look at itself and at earlier ones.

    The last query stands at the last key, so that with ``keys`` > ``queries`` the first
    keys − queries positions are the past, which a cache holds. ``keys`` None means ``queries``.

    Returns:
        (queries, keys), bool.

    Raises:
        ValueError: there are fewer keys than queries.
    """
    keys = queries if keys is None else keys
    if keys < queries:
        raise ValueError(
            f"{keys} keys for {queries} queries; each query must stand at one of the keys."
        )
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(lengths: Tensor, keys: int) -> Tensor:
    """mask[n, 0, 0, j] = (j < lengths[n]): nobody looks at the padding behind a sequence.

    Args:
        lengths: (batch), how many positions of each sequence count
        keys: the padded length

    Returns:
        (batch, 1, 1, keys), bool, ready to be combined with `causal_mask` by ``&``.
    """
    return (torch.arange(keys, device=lengths.device) < lengths.unsqueeze(1))[:, None, None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(batch, time, heads · d) → (batch, heads, time, d): each head gets d neighbouring columns.

    Raises:
        ValueError: the width cannot be divided by ``heads``.
    """
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"x has width {x.shape[-1]}, which {heads} heads cannot share equally.")
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, time, d) → (batch, time, heads · d): undoes `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def multi_head_attention(
    x: Tensor,
    memory: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    heads: int,
    mask: Tensor | None = None,
) -> Tensor:
    """concat(head_1, …, head_H) W_outᵀ + b_out, with head = attention(Q, K, V) of its own columns.

    Q = x W_qᵀ + b_q, K = memory W_kᵀ + b_k, V = memory W_vᵀ + b_v. With ``memory`` = ``x`` this
    is self-attention, with another sequence it is cross-attention.

    Args:
        x: (batch, queries, width), the positions that look
        memory: (batch, keys, width), the positions that are looked at
        w_in, b_in: (3 · width, width) and (3 · width): the rows of W_q, W_k, W_v in this order
        w_out, b_out: (width, width) and (width)
        mask: bool, broadcast to (batch, heads, queries, keys), True where a query may look.

    Returns:
        (batch, queries, width)

    Raises:
        ValueError: the shapes do not fit each other; the message names them.
    """
    width = x.shape[-1]
    if memory.shape[-1] != width or w_in.shape != (3 * width, width):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, memory {tuple(memory.shape)} and w_in "
            f"{tuple(w_in.shape)}; for width {width} the memory must have it too, and w_in must be "
            f"({3 * width}, {width})."
        )
    w_q, w_k, w_v = w_in.chunk(3)
    b_q, b_k, b_v = (None, None, None) if b_in is None else b_in.chunk(3)
    query = split_heads(_affine(x, w_q, b_q), heads)  # (batch, heads, queries, d)
    key = split_heads(_affine(memory, w_k, b_k), heads)  # (batch, heads, keys, d)
    value = split_heads(_affine(memory, w_v, b_v), heads)
    mixed = merge_heads(scaled_dot_product_attention(query, key, value, mask))
    return _affine(mixed, w_out, b_out)


def sinusoidal_encoding(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """P[t, 2k] = sin(t / base^(2k / width)), P[t, 2k + 1] = cos(t / base^(2k / width)).

    Returns:
        (length, width), float32: one row for each position, to be added to its embedding.

    Raises:
        ValueError: ``width`` is odd, so that a sine would be left without its cosine.
    """
    angle = _angles(torch.arange(length), width, base)  # (length, width / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def rotary_encoding(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn each pair (x_2k, x_2k+1) at position t by the angle t / base^(2k / d).

    Queries and keys are turned before their dot product, which then depends on the distance of
    the two positions alone. Pairs are neighbours, as in the paper; some libraries pair column k
    with column k + d/2, which is the same up to the order of the columns.

    Args:
        x: (…, time, d), a query or key
        positions: (time), the position of each row

    Returns:
        as x.

    Raises:
        ValueError: d is odd.
    """
    angle = _angles(positions, x.shape[-1], base).to(x)  # (time, d / 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


class KeyValueCache:
    """The keys and values of all positions so far, so that a new position computes only its own.

    ``append`` takes the new ones, (batch, heads, new, d), and returns all of them, oldest first,
    (batch, heads, past + new, d). Memory is reserved by doubling: n appends copy O(n) rows.
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new positions; return those of all positions.

        Raises:
            ValueError: batch, heads or d are not those of the earlier positions.
        """
        self._keys = self._stored(self._keys, key)
        self._values = self._stored(self._values, value)
        self.length += key.shape[-2]
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def _stored(self, store: Tensor | None, new: Tensor) -> Tensor:
        needed = self.length + new.shape[-2]
        if store is None:
            store = new.new_empty(*new.shape[:2], max(16, needed), new.shape[-1])
        if (*store.shape[:2], store.shape[-1]) != (*new.shape[:2], new.shape[-1]):
            raise ValueError(
                f"The new positions have shape {tuple(new.shape)}; the cache holds positions of "
                f"shape ({store.shape[0]}, {store.shape[1]}, …, {store.shape[-1]}). Use a new "
                "cache for each batch and each layer."
            )
        if needed > store.shape[-2]:
            grown = store.new_empty(*store.shape[:2], 2 * needed, store.shape[-1])
            grown[:, :, : self.length] = store[:, :, : self.length]
            store = grown
        store[:, :, self.length : needed] = new
        return store


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.T
    return product if bias is None else product + bias


def _angles(positions: Tensor, width: int, base: float) -> Tensor:
    """(time, width / 2) in float64: position · base^(−2k / width)."""
    if width % 2:
        raise ValueError(f"The width is {width}; it must be even, since positions turn pairs.")
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width
    return positions.double().unsqueeze(-1) * base**-exponent
