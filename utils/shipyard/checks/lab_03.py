"""Checks of lab 03, attention. ``F.scaled_dot_product_attention`` is the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shipyard.checks import Case, Mistake, Passed, compare, draws


def check_scaled_dot_product_attention(candidate: Callable) -> Passed:
    """Check ``scaled_dot_product_attention(query, key, value, mask=None)``; True: may look."""

    def formula(
        scale=lambda q, k: 1 / math.sqrt(q.shape[-1]),
        hide=lambda scores, mask: scores.masked_fill(~mask, -math.inf),
        normalise=lambda scores: scores.softmax(-1),
        hide_after=lambda weights, mask: weights,
        mix=lambda weights, k, v: weights @ v,
    ):
        """Attention with one part replaced."""

        def answer(query, key, value, mask=None):
            scores = query @ key.transpose(-2, -1) * scale(query, key)
            if mask is None:
                return mix(normalise(scores), key, value)
            return mix(hide_after(normalise(hide(scores, mask)), mask), key, value)

        return answer

    def not_hidden(scores, mask):
        return scores

    draw = draws(31)
    few, all_but_one = torch.tensor([[True, False, True]]), torch.ones(4, 6, dtype=torch.bool)
    all_but_one[:, 2] = False
    return compare(
        candidate,
        signature="scaled_dot_product_attention(query, key, value, mask=None)",
        reference=_attention,
        cases=[
            Case(draw(1, 2), draw(3, 2), draw(3, 2)),
            Case(draw(2, 5, 3), draw(2, 5, 3), draw(2, 5, 3)),
            Case(2 * draw(2, 3, 4, 8), draw(2, 3, 6, 8), draw(2, 3, 6, 5)),
            Case(draw(1, 1, 1, 1), draw(1, 1, 1, 1), draw(1, 1, 1, 4)),
            Case(draw(2, 4), draw(3, 4), draw(3, 4), mask=few),
            Case(draw(2, 3, 4, 8), draw(2, 3, 6, 8), draw(2, 3, 6, 8), mask=all_but_one),
            Case(draw(2, 2, 5, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4), mask=_lower(5)),
        ],
        mistakes=[
            Mistake(
                "scale-missing",
                """The factor 1/√d is missing. A dot product of d products of random numbers has
                variance d: without the factor the scores grow with d, softmax gives nearly all
                the weight to one key, and its gradient is nearly zero.""",
                formula(scale=lambda q, k: 1),
            ),
            Mistake(
                "scale-wrong",
                """The scores are scaled, but not by 1/√d, where d is the last size of query and
                key. It is the root (the standard deviation of a score, not its variance), it
                divides, and neither the number of keys nor the size of a value plays a part.""",
                formula(scale=lambda q, k: 1 / q.shape[-1]),
                formula(scale=lambda q, k: math.sqrt(q.shape[-1])),
                formula(scale=lambda q, k: 1 / math.sqrt(k.shape[-2])),
                formula(scale=lambda q, k: 1 / math.sqrt(q.shape[-2])),
                lambda query, key, value, mask=None: formula(
                    scale=lambda q, k: 1 / math.sqrt(value.shape[-1])
                )(query, key, value, mask),
            ),
            Mistake(
                "softmax-over-queries",
                """You took the softmax over the queries. Each query spreads one unit of attention
                over the keys, so the sum over the last axis of the scores must be 1: dim=-1.""",
                formula(normalise=lambda scores: scores.softmax(-2)),
            ),
            Mistake(
                "softmax-twice",
                """Softmax is applied twice. The first one already gives weights between 0 and 1
                that add up to 1. The second sees such small differences that its weights are
                nearly equal: every query gets about the mean of all values.""",
                formula(normalise=lambda scores: scores.softmax(-1).softmax(-1)),
            ),
            Mistake(
                "softmax-missing",
                """The scores are used as weights as they are. Softmax makes them positive and
                makes each row add up to 1, so that the result is a weighted mean of the
                values.""",
                formula(normalise=lambda scores: scores),
                formula(normalise=lambda scores: scores / scores.sum(-1, keepdim=True)),
            ),
            Mistake(
                "values-left-out",
                """You returned the attention weights. They say how much each query takes from
                each key; what it takes are the values. The result is weights @ value.""",
                formula(mix=lambda weights, k, v: weights),
            ),
            Mistake(
                "keys-as-values",
                """You mixed the keys. A key is the label that a query is compared with; what is
                handed over is the value behind it: weights @ value.""",
                formula(mix=lambda weights, k, v: weights @ k),
            ),
            Mistake(
                "mask-after-softmax",
                """The mask acts after the softmax. The weights of the hidden keys are gone then,
                but they were counted in the sum, so a row adds up to less than 1. Hide the scores
                before the softmax: −∞ becomes a weight of exactly 0.""",
                formula(hide=not_hidden, hide_after=lambda weights, mask: weights * mask),
            ),
            Mistake(
                "mask-with-zero",
                """Hidden scores are set to 0. Zero is an ordinary score: exp(0) = 1, so these keys
                still get weight. Only −∞ gives a weight of exactly 0.""",
                formula(hide=lambda scores, mask: scores * mask),
            ),
            Mistake(
                "mask-inverted",
                """The mask works the wrong way round. Here, as in torch, True means that a query
                may look at a key, so the scores where the mask is False become −∞.""",
                formula(hide=lambda scores, mask: scores.masked_fill(mask, -math.inf)),
            ),
            Mistake(
                "mask-ignored",
                """The mask changes nothing. Where it is False the score must become −∞ before the
                softmax.""",
                formula(hide=not_hidden),
            ),
            Mistake(
                "mask-added",
                """You added the mask to the scores. Added, True counts as 1: it only prefers some
                keys a little. A bool mask says yes or no, so use masked_fill with −∞.""",
                formula(hide=lambda scores, mask: scores + mask),
            ),
        ],
    )


def check_causal_mask(candidate: Callable) -> Passed:
    """Check ``causal_mask(length, past=0)``: bool (length, past + length), True: may look."""

    def reference(length, past=0):
        places = torch.arange(past + length)
        return places <= places[past:, None]

    return compare(
        candidate,
        signature="causal_mask(length, past=0)",
        reference=reference,
        cases=[
            Case(1),
            Case(2),
            Case(5),
            Case(1, past=3),
            Case(3, past=2),
            Case(4, past=7),
        ],
        mistakes=[
            Mistake(
                "transposed",
                """The triangle is on the wrong side: each position sees itself and the *future*.
                Row i is the position that looks, column j the one that is looked at; j ≤ i is the
                lower triangle.""",
                lambda length, past=0: torch.ones(length, length).triu().bool(),
                lambda length, past=0: torch.ones(length, past + length).triu(past).bool(),
            ),
            Mistake(
                "inverted",
                """True and False have changed places. Here, as in torch's attention, True means
                that a position may look. (In torch's MultiheadAttention True means the
                opposite, which is where this often comes from.)""",
                lambda length, past=0: ~reference(length, past),
                lambda length, past=0: ~reference(length),
            ),
            Mistake(
                "diagonal-excluded",
                """A position cannot see itself. The first position then sees nothing at all, and
                its softmax has nothing to add up: 0 / 0. The diagonal belongs to the mask.""",
                lambda length, past=0: torch.ones(length, past + length).tril(past - 1).bool(),
                lambda length, past=0: torch.ones(length, length).tril(-1).bool(),
            ),
            Mistake(
                "sees-the-next",
                """Each position sees one position too many: the next one, which is just what it
                must predict. In training the loss falls to nearly zero; on new text the model
                is useless.""",
                lambda length, past=0: torch.ones(length, past + length).tril(past + 1).bool(),
                lambda length, past=0: torch.ones(length, length).tril(1).bool(),
            ),
            Mistake(
                "sees-everything",
                """Nothing is hidden: every position sees the whole sequence, the future
                included.""",
                lambda length, past=0: torch.ones(length, past + length).bool(),
            ),
            Mistake(
                "additive-mask",
                """You made a mask of numbers, 0 and −∞, to be added to the scores. That works too,
                but this task asks for a bool mask: True where a position may look.""",
                lambda length, past=0: torch.full((length, past + length), -math.inf).triu(1),
                lambda length, past=0: torch.full((length, past + length), -math.inf).triu(
                    past + 1
                ),
            ),
            Mistake(
                "numbers-not-bool",
                """The pattern is right, but its type is not bool. A mask of numbers is *added* to
                the scores by torch's attention. End with .bool(), or compare with <=.""",
                lambda length, past=0: torch.ones(length, past + length).tril(past),
                lambda length, past=0: torch.ones(length, past + length).tril(past).long(),
                lambda length, past=0: torch.ones(length, past + length).tril(past).double(),
            ),
            Mistake(
                "past-ignored",
                """The columns of the past are missing. There are past + length positions to look
                at: those that came before, and the new ones.""",
                lambda length, past=0: reference(length),
            ),
            Mistake(
                "past-hidden",
                """The past is there, and hidden. Every new position may look at all positions of
                the past: the first `past` columns are True.""",
                lambda length, past=0: F.pad(reference(length), (past, 0)),
            ),
            Mistake(
                "counted-from-zero",
                """The new positions are counted from 0. Row i is position past + i: with a past of
                3, the first new position may look at columns 0 to 3.""",
                lambda length, past=0: torch.ones(length, past + length).tril().bool(),
            ),
            Mistake(
                "rows-for-the-past",
                """There is a row for each position of the past, too. Those positions are done:
                only the `length` new ones look. Keep the last `length` rows.""",
                lambda length, past=0: reference(past + length),
            ),
        ],
    )


def check_multi_head_attention(candidate: Callable) -> Passed:
    """Check ``multi_head_attention(x, w_in, b_in, w_out, b_out, heads, mask=None)``."""

    def formula(
        split=lambda x, heads: x.unflatten(-1, (heads, -1)).transpose(1, 2),
        merge=lambda x: x.transpose(1, 2).flatten(2),
        order="qkv",
        attend=lambda q, k, v, mask, width: _attention(q, k, v, mask),
        project_in=F.linear,
        project_out=F.linear,
    ):
        """Multi-head self-attention with one part replaced."""

        def answer(x, w_in, b_in, w_out, b_out, heads, mask=None):
            parts = project_in(x, w_in, b_in).chunk(3, dim=-1)
            part = dict(zip(order, parts, strict=True))
            q, k, v = (split(part[name], heads) for name in "qkv")
            return project_out(merge(attend(q, k, v, mask, x.shape[-1])), w_out, b_out)

        return answer

    def of_all_columns(q, k, v, mask, width):
        return _attention(q * math.sqrt(q.shape[-1] / width), k, v, mask)

    def without_scale(q, k, v, mask, width):
        return _attention(q * math.sqrt(q.shape[-1]), k, v, mask)

    draw = draws(33)

    def case(batch, time, width, heads, **options):
        weights = (draw(3 * width, width), draw(3 * width), draw(width, width), draw(width))
        return Case(draw(batch, time, width), *(w / 2 for w in weights), heads, **options)

    def no_bias(x, weight, bias):
        return F.linear(x, weight)

    places = torch.arange(6)
    neighbours = (places - places[:, None]).abs() <= 1

    def not_transposed(x, weight, bias):
        return x @ weight + bias

    def reshaped(x, heads):
        return x.reshape(x.shape[0], heads, x.shape[1], -1)

    def straight(x):
        return x.reshape(x.shape[0], x.shape[2], -1)

    return compare(
        candidate,
        signature="multi_head_attention(x, w_in, b_in, w_out, b_out, heads, mask=None)",
        reference=formula(),
        cases=[
            case(1, 2, 4, 2),
            case(2, 5, 6, 1),
            case(3, 4, 6, 3),
            case(2, 5, 12, 2),
            case(1, 1, 8, 4),
            case(2, 6, 8, 2, mask=neighbours),
        ],
        mistakes=[
            Mistake(
                "split-without-transpose",
                """The heads are cut out by a reshape alone. A reshape goes through memory in
                order, so one "head" gets all columns of a few positions. First cut the last axis,
                (batch, time, heads, d), then exchange time and heads: .transpose(1, 2).""",
                formula(split=reshaped),
                formula(split=reshaped, merge=straight),
                formula(
                    split=reshaped, merge=lambda x: x.reshape(x.shape[0], -1, x[0, :, 0].numel())
                ),
            ),
            Mistake(
                "merge-without-transpose",
                """The heads are put together by a reshape alone. Their axis stands before the time
                axis: exchange the two first, .transpose(1, 2), then join heads and d.""",
                formula(merge=straight),
            ),
            Mistake(
                "heads-interleaved",
                """Each head got every heads-th column. As in torch, head h gets d *neighbouring*
                columns, h·d to (h + 1)·d: cut the width into (heads, d), in this order.""",
                formula(split=lambda x, heads: x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)),
                formula(
                    split=lambda x, heads: x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2),
                    merge=lambda x: x.permute(0, 2, 3, 1).flatten(2),
                ),
            ),
            Mistake(
                "heads-ignored",
                """You computed one head over the whole width. Each head has its own columns, its
                own scores and its own softmax, so that different heads can look at different
                places.""",
                formula(split=lambda x, heads: x[:, None], merge=lambda x: x[:, 0]),
            ),
            Mistake(
                "scale-by-width",
                """The scores are divided by the root of the whole width. A head has d = width /
                heads columns, and its scores are sums of d products: divide by √d.""",
                formula(attend=of_all_columns),
            ),
            Mistake(
                "scale-missing",
                """The factor 1/√d is missing, where d = width / heads is the width of one head.""",
                formula(attend=without_scale),
            ),
            Mistake(
                "weights-order",
                """Queries, keys and values are taken from the wrong rows of w_in. As in torch, the
                first third of the rows makes the queries, the second the keys, the third the
                values.""",
                *(formula(order=order) for order in ("kqv", "vkq", "qvk", "kvq", "vqk")),
            ),
            Mistake(
                "output-projection-missing",
                """The last step is missing. The heads stand side by side, unmixed; w_out and b_out
                let them talk to each other.""",
                formula(project_out=lambda x, weight, bias: x),
            ),
            Mistake(
                "bias-dropped",
                """A bias is missing. There are two: b_in, added to queries, keys and values, and
                b_out, added at the end.""",
                formula(project_in=no_bias),
                formula(project_out=no_bias),
                formula(project_in=no_bias, project_out=no_bias),
            ),
            Mistake(
                "w_out-not-transposed",
                """w_out is multiplied from the wrong side. torch keeps a weight as (out, in): it
                is x @ w_out.T, or F.linear(x, w_out, b_out).""",
                formula(project_out=not_transposed),
            ),
            Mistake(
                "mask-ignored",
                """The mask changes nothing. Hand it on to each head's attention.""",
                formula(attend=lambda q, k, v, mask, width: _attention(q, k, v)),
            ),
            Mistake(
                "mask-inverted",
                """The mask works the wrong way round: True means that a position may look.""",
                formula(
                    attend=lambda q, k, v, mask, width: _attention(
                        q, k, v, None if mask is None else ~mask
                    )
                ),
            ),
        ],
    )


def check_sinusoidal_encoding(candidate: Callable) -> Passed:
    """Check ``sinusoidal_encoding(length, width, base=10000.0)``: float32 (length, width)."""

    def formula(
        first=0,
        exponent=lambda columns, width: columns // 2 * 2 / width,
        angle=lambda t, power: t / power,
        even=torch.sin,
        odd=torch.cos,
        arrange=lambda x: x,
    ):
        """The encoding with one part replaced."""

        def answer(length, width, base=10_000.0):
            t = torch.arange(first, first + length, dtype=torch.float64)[:, None]
            columns = torch.arange(width, dtype=torch.float64)
            angles = angle(t, base ** exponent(columns, width))
            values = torch.where(columns % 2 == 0, even(angles), odd(angles))
            return arrange(values).float()

        return answer

    def halves(x):
        return torch.cat([x[:, 0::2], x[:, 1::2]], dim=1)

    return compare(
        candidate,
        signature="sinusoidal_encoding(length, width, base=10000.0)",
        reference=formula(),
        tolerance=1e-4,  # float32 angles of up to 60 radians
        cases=[
            Case(1, 4),
            Case(3, 2),
            Case(5, 6),
            Case(40, 8),
            Case(60, 16, base=100.0),
        ],
        mistakes=[
            Mistake(
                "halves",
                """All sines come first, then all cosines. In the paper they take turns: column 2k
                is a sine, column 2k + 1 the cosine of the same angle. (Some libraries use
                halves; it works as well, but it is another encoding.)""",
                formula(arrange=halves),
            ),
            Mistake(
                "cosine-first",
                """Sine and cosine have changed places. The even columns are sines: at position 0
                they are 0, and the odd ones are 1.""",
                formula(even=torch.cos, odd=torch.sin),
            ),
            Mistake(
                "one-function",
                """All columns use the same function. A sine alone cannot tell on which side of its
                crest it is; with the cosine beside it, the pair is a point on a circle.""",
                formula(odd=torch.sin),
                formula(even=torch.cos),
            ),
            Mistake(
                "own-angle-for-each-column",
                """The cosine has another angle than the sine beside it. Columns 2k and 2k + 1 are
                one pair and share the exponent 2k / width.""",
                formula(exponent=lambda columns, width: columns / width),
                formula(exponent=lambda columns, width: 2 * columns / width),
            ),
            Mistake(
                "exponent-halved",
                """The exponent is k / width instead of 2k / width. The slowest column then turns
                at base^(−1/2) instead of about base^(−1), so far positions look alike too
                early.""",
                formula(exponent=lambda columns, width: columns // 2 / width),
            ),
            Mistake(
                "exponent-by-pairs-less-one",
                """Your slowest column turns at exactly 1 / base: the exponent is k / (pairs − 1).
                In the paper it is 2k / width.""",
                formula(
                    exponent=lambda columns, width: columns // 2 / max(width // 2 - 1, 1),
                ),
            ),
            Mistake(
                "angle-multiplied",
                """The angle is t · base^(2k / width): it grows with k, up to thousands of turns
                from one position to the next. It is t *divided* by that power.""",
                formula(angle=lambda t, power: t * power),
            ),
            Mistake(
                "position-from-one",
                """The positions are counted from 1. The first position is 0: sines 0, cosines
                1.""",
                formula(first=1),
            ),
            Mistake(
                "base-ignored",
                """Your base is always 10000; use the argument.""",
                lambda length, width, base=10_000.0: formula()(length, width),
            ),
            Mistake(
                "full-turns",
                """You multiplied the angle by 2π. The paper's positions are radians as they
                are.""",
                formula(angle=lambda t, power: 2 * math.pi * t / power),
            ),
        ],
    )


def check_rotary_encoding(candidate: Callable) -> Passed:
    """Check ``rotary_encoding(x, positions, base=10000.0)``, pairs of neighbouring columns."""

    def formula(
        exponent=lambda k, d: 2 * k / d,
        place=lambda positions, x: positions,
        sign=1,
        split=lambda x: (x[..., 0::2], x[..., 1::2]),
        join=lambda a, b: torch.stack([a, b], dim=-1).flatten(-2),
        turn=lambda a, b, cos, sin: (a * cos - b * sin, a * sin + b * cos),
    ):
        """The rotation with one part replaced."""

        def answer(x, positions, base=10_000.0):
            d = x.shape[-1]
            frequency = base ** -exponent(torch.arange(d // 2, dtype=torch.float64), d)
            angle = sign * place(positions, x).double()[:, None] * frequency
            return join(*turn(*split(x), angle.cos(), angle.sin()))

        return answer

    def by_halves(x):
        return x.chunk(2, dim=-1)

    def side_by_side(a, b):
        return torch.cat([a, b], dim=-1)

    draw = draws(35)
    return compare(
        candidate,
        signature="rotary_encoding(x, positions, base=10000.0)",
        reference=formula(),
        tolerance=1e-5,  # angles may be computed in float32
        cases=[
            Case(draw(1, 1, 1, 2), torch.tensor([1])),
            Case(draw(1, 1, 2, 4), torch.tensor([0, 1])),
            Case(draw(2, 3, 4, 8), torch.arange(4)),
            Case(draw(2, 1, 3, 6), torch.tensor([7, 2, 30])),
            Case(draw(1, 2, 5, 8), torch.arange(3, 8), base=100.0),
        ],
        mistakes=[
            Mistake(
                "pairs-by-halves",
                """You turned column k together with column k + d/2, as some libraries do. This
                task asks for the paper's pairs: neighbours, columns 2k and 2k + 1.""",
                formula(split=by_halves, join=side_by_side),
            ),
            Mistake(
                "halves-after-turning",
                """The pairs are turned rightly, but put back in another order: first all even
                columns, then all odd ones. Each result belongs where its column was.""",
                formula(join=side_by_side),
            ),
            Mistake(
                "turned-backwards",
                """The pairs turn the wrong way. By the angle a, (x, y) becomes
                (x cos a − y sin a, x sin a + y cos a): the minus stands in the first line.""",
                formula(sign=-1),
            ),
            Mistake(
                "both-signs-equal",
                """Both lines have the same sign before the sine. Then it is no rotation: the
                length of a pair changes, and so do the scores.""",
                formula(turn=lambda a, b, cos, sin: (a * cos + b * sin, a * sin + b * cos)),
                formula(turn=lambda a, b, cos, sin: (a * cos - b * sin, -a * sin + b * cos)),
                formula(turn=lambda a, b, cos, sin: (a * cos - b * sin, b * cos - a * sin)),
            ),
            Mistake(
                "overwritten-too-early",
                """The second line uses the new value of the first one. Both lines need the old
                pair: compute both, then store.""",
                formula(
                    turn=lambda a, b, cos, sin: (
                        a * cos - b * sin,
                        (a * cos - b * sin) * sin + b * cos,
                    )
                ),
            ),
            Mistake(
                "added-instead-of-turned",
                """You added sines and cosines to x. That is the sinusoidal encoding. Rotary
                encoding multiplies: it turns each pair, and adds nothing.""",
                formula(turn=lambda a, b, cos, sin: (a + sin, b + cos)),
                formula(turn=lambda a, b, cos, sin: (a + cos, b + sin)),
            ),
            Mistake(
                "exponent-halved",
                """The exponent is k / d instead of 2k / d, so the slow pairs turn too fast.""",
                formula(exponent=lambda k, d: k / d),
            ),
            Mistake(
                "one-frequency",
                """Every pair turns at the same speed. Pair k turns at base^(−2k / d): the first
                pairs tell near positions apart, the last ones far positions.""",
                formula(exponent=lambda k, d: 0 * k),
            ),
            Mistake(
                "positions-ignored",
                """You counted the rows, 0, 1, 2, …, instead of using `positions`. With a cache the
                first new row is not position 0.""",
                formula(place=lambda positions, x: torch.arange(x.shape[-2])),
            ),
            Mistake(
                "position-from-one",
                """Each position is one too large.""",
                formula(place=lambda positions, x: positions + 1),
            ),
            Mistake(
                "base-ignored",
                """Your base is always 10000; use the argument.""",
                lambda x, positions, base=10_000.0: formula()(x, positions),
            ),
        ],
    )


def check_kv_cache(candidate: Callable) -> Passed:
    """Check ``kv_cache(query, key, value, cache=None)`` -> (output, cache), piece by piece.

    The check feeds a sequence in pieces, hands each returned cache to the next call, and joins
    the outputs: they must be those of causal attention over the whole sequence.
    """

    def feed(function, query, key, value, pieces):
        cache, outputs = None, []
        for part in range(len(pieces)):
            new = slice(sum(pieces[:part]), sum(pieces[: part + 1]))
            arguments = (query[..., new, :], key[..., new, :], value[..., new, :], cache)
            result = function(*arguments)
            if not (isinstance(result, tuple | list) and len(result) == 2):
                raise TypeError(
                    "kv_cache must return two things, (output, cache), where cache is the pair "
                    "(all keys so far, all values so far)."
                )
            output, cache = result
            outputs.append(output)
        keys, values = cache
        return torch.cat(outputs, dim=-2), keys, values

    def formula(
        join=lambda old, new: torch.cat([old, new], dim=-2),
        store=lambda old, new, joined: joined,
        mask=lambda new, total: _lower(total)[total - new :],
    ):
        """One call with one part replaced."""

        def answer(query, key, value, cache=None):
            keys, values = key, value
            if cache is not None:
                keys, values = join(cache[0], key), join(cache[1], value)
            visible = mask(query.shape[-2], keys.shape[-2])
            kept = (store(cache, key, keys), store(cache, value, values))
            return _attention(query, keys, values, visible), kept

        return answer

    def stale(query, key, value, cache=None):
        output, joined = formula()(query, key, value, cache)
        return output, joined if cache is None else cache

    def swapped(query, key, value, cache=None):
        output, (keys, values) = formula()(query, key, value, cache)
        return output, (values, keys)

    def stored_swapped(query, key, value, cache=None):
        output, (keys, values) = formula()(query, key, value, cache and cache[::-1])
        return output, (values, keys)

    draw = draws(37)

    def case(batch, heads, d, pieces):
        shape = (batch, heads, sum(pieces), d)
        return Case(draw(*shape), draw(*shape), draw(*shape), pieces)

    return compare(
        candidate,
        signature="kv_cache(query, key, value, cache=None)",
        reference=formula(),
        use=feed,
        outputs=("the joined outputs", "the cached keys", "the cached values"),
        cases=[
            case(1, 1, 2, [1]),
            case(1, 1, 2, [1, 1]),
            case(2, 3, 4, [1, 1, 1, 1]),
            case(1, 2, 4, [4, 1, 1]),
            case(2, 2, 3, [3, 2, 4]),
        ],
        mistakes=[
            Mistake(
                "past-ignored",
                """The new positions see only themselves. Put the cached keys and values before
                the new ones, and attend to all of them.""",
                formula(join=lambda old, new: new, store=lambda old, new, joined: joined),
            ),
            Mistake(
                "attends-to-new-only",
                """The cache grows as it should, but the attention uses only the new keys and
                values. The past is stored and never looked at.""",
                lambda query, key, value, cache=None: (
                    _attention(query, key, value, _lower(query.shape[-2])),
                    formula()(query, key, value, cache)[1],
                ),
            ),
            Mistake(
                "cache-not-updated",
                """The cache that you return lacks the new keys and values, so the next call will
                not know them.""",
                stale,
            ),
            Mistake(
                "only-the-last-piece-kept",
                """You return only the new keys and values as the cache. After the next call
                everything older is lost. Return all of them, old and new.""",
                formula(store=lambda old, new, joined: new),
            ),
            Mistake(
                "new-before-old",
                """The new positions stand before the old ones. The cache is in order of time:
                torch.cat([old, new], dim=-2).""",
                formula(join=lambda old, new: torch.cat([new, old], dim=-2)),
                formula(
                    join=lambda old, new: torch.cat([new, old], dim=-2), mask=lambda n, t: None
                ),
            ),
            Mistake(
                "no-mask-within-the-piece",
                """When a piece holds several positions, its first ones see its later ones. The
                past is open to all, but within the piece the causal mask still holds.""",
                formula(mask=lambda new, total: None),
            ),
            Mistake(
                "mask-counted-from-zero",
                """The mask forgets the past: your first new position sees only the first key. It
                stands at position past, so it sees keys 0 to past: tril(diagonal=past).""",
                formula(mask=lambda new, total: torch.ones(new, total, dtype=torch.bool).tril()),
            ),
            Mistake(
                "keys-and-values-swapped",
                """Keys and values have changed places in the cache. It is the pair
                (keys, values).""",
                swapped,
                stored_swapped,
            ),
        ],
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _lower(size: int) -> Tensor:
    """The lower triangle with its diagonal: True where a position may look."""
    return torch.ones(size, size, dtype=torch.bool).tril()
