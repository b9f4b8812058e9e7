"""Checks of lab 07, distributed training: the right numbers, in the right way.

A task is judged twice. First the results of all ranks are compared with one process that does
everything. Then the *method* is judged: who sent how much to whom, how often all ranks met, how
many multiplications each of them made, how many activations a stage held.

The ranks are threads that take turns (`shipyard.checks.ranks`), so a deadlock or an endless loop
ends the check with a message.
"""

from __future__ import annotations

import inspect
import math
import random
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DistributedSampler

from shipyard.checks import Case, CheckFailed, Mistake, Passed, compare, draws
from shipyard.checks.ranks import Run
from shipyard.checks.ranks import run_ranks as _run_ranks


def run_ranks(function: Callable, inputs: Sequence[Tensor]) -> Run:
    """Call ``function(x, rank, world_size, send, recv)`` once for each tensor in ``inputs``.

    Returns what the ranks returned and a table of the messages. Made for trying things out.

    Raises:
        CheckFailed: the ranks wait for each other, or one of them does not end.
    """
    return _play_ring(function, list(inputs))


# --- a task with several ranks ------------------------------------------------------------------


def _judge_ranks(
    candidate: Callable,
    *,
    signature: str,
    given: str,
    play: Callable[..., Run],
    reference: Callable,
    cases: list[Case],
    mistakes: list[Mistake],
    method: Callable[..., _Fault | None],
) -> Passed:
    """Judge a function of which every rank runs a copy.

    Args:
        signature: how one rank's call looks.
        given: "name(argument)", with the arguments of a case.
        play: ``play(function, *arguments)`` runs all ranks.
        reference: from a case's arguments to the list of what the ranks must return.
        method: ``method(run, *arguments)`` gives the fault of a run whose results are right.
    """
    name = signature.partition("(")[0]
    runs = _rehearse(candidate, signature, given, play, cases) if callable(candidate) else []

    def results_by_rank(function: Callable, *args: Any) -> dict[str, Any]:
        values = reference(*args) if function is reference else play(function, *args).results
        return {f"rank {rank}": value for rank, value in enumerate(values)}

    try:
        passed = compare(
            candidate,
            signature=given,
            reference=reference,
            cases=cases,
            mistakes=mistakes,
            tolerance=1e-10,
            use=results_by_rank,
        )
    except CheckFailed as failure:
        notes = getattr(failure.__cause__, "__notes__", [])[:1]
        if not notes or failure.diagnosis == "not-implemented":
            raise
        message = "\n".join([str(failure), *notes])
        raise CheckFailed(message, failure.diagnosis) from failure.__cause__
    runs = runs or [play(candidate, *case.copies()[0]) for case in cases]
    for case, run in zip(cases, runs, strict=True):
        fault = method(run, *case.args)
        if fault:
            raise fault.failure(name)
    return passed


def _rehearse(
    candidate: Callable, signature: str, given: str, play: Callable, cases: list[Case]
) -> list[Run]:
    """Run every case; report what keeps a run from its end, or spoils its inputs."""
    name = signature.partition("(")[0]
    _check_signature(candidate, signature)
    runs = []
    for case in cases:
        args, _ = case.copies()
        try:
            runs.append(play(candidate, *args))
        except CheckFailed as failure:
            names = given.partition("(")[2].rstrip(")").split(", ")
            call = ", ".join(map(_in_words, names, case.args))
            raise CheckFailed(
                f"{name} is not right yet. With {call} it was stopped.\n\n{failure}",
                failure.diagnosis,
            ) from failure
        except Exception:
            return []  # the comparison that follows reports it, with its line
        if not _same(case.args, args):
            raise CheckFailed(
                f"{name} changed its input. Whoever calls it still needs those values: begin "
                "with x.clone(), write x + y and not x += y, and use no method whose name ends "
                "in _. A slice of x is a view: what is written into it is written into x.",
                "changed-input",
            )
    return runs


def _check_signature(candidate: Callable, signature: str) -> None:
    names = signature.partition("(")[2].rstrip(")").split(", ")
    try:
        inspect.signature(candidate).bind(*names)
    except ValueError:  # a builtin does not tell
        pass
    except TypeError as error:
        raise CheckFailed(
            f"Your function cannot be called like this: {error}.\nThe task asks for {signature}.",
            "wrong-signature",
        ) from error


@dataclass(frozen=True)
class _Fault:
    """What is wrong with the way to a right result."""

    facts: str
    slug: str
    advice: str

    def failure(self, name: str) -> CheckFailed:
        title = f"{name} gives the right numbers, but not in the way that the task asks for."
        return CheckFailed(_message(title, self.facts, self.slug, self.advice), self.slug)


def _message(title: str, facts: str, slug: str, advice: str) -> str:
    indent = {"initial_indent": "  ", "subsequent_indent": "  "}
    advice = textwrap.fill(" ".join(advice.split()), width=92, **indent)
    return f"{title}\n\n{facts}\n\nWhat went wrong ({slug}):\n{advice}"


def _in_words(name: str, value: Any) -> str:
    return f"{len(value)} ranks" if isinstance(value, list) else f"{name}={_short(value)}"


def _short(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


# --- all-reduce as a ring -----------------------------------------------------------------------


def _play_ring(function: Callable, inputs: list[Tensor]) -> Run:
    size = len(inputs)
    return _run_ranks(
        lambda x, rank, link: function(x, rank, size, link.send, link.recv),
        [(x, rank) for rank, x in enumerate(inputs)],
    )


def _ring_method(run: Run, inputs: list[Tensor]) -> _Fault | None:
    size, n = len(inputs), inputs[0].numel()
    most, longest = 2 * (size - 1), math.ceil(n / size)
    links = {(m.src, m.dst) for m in run.messages}
    facts = (
        f"  {size} ranks, x with {n} elements. What was sent:\n{run.traffic()}\n"
        f"  A ring: each rank sends {most} messages of at most {longest} elements, all of them to "
        "its neighbour."
    )
    fault = partial(_Fault, facts)
    around = [{(r, (r + step) % size) for r in range(size)} for step in (1, -1)]
    hubs = [hub for hub in range(size) if all(hub in link for link in links)]
    sent = Counter(m.src for m in run.messages)
    biggest = max((m.elements for m in run.messages), default=0)
    if size > 1 and not links:
        return fault(
            "no-messages",
            """No rank sent anything, and yet all know the sum. They have met somewhere else, such
            as in a global variable. On real machines there is none: use send and recv.""",
        )
    if size > 2 and hubs:
        return fault(
            "through-one-rank",
            f"""Everything goes through rank {hubs[0]}: it gathers all tensors and sends the sum
            back. Its link carries {size - 1} tensors in and {size - 1} out while the other links
            wait, and with 1,000 ranks it carries 1,000. In a ring each link carries the same.""",
        )
    if len(links) == size * (size - 1) and size > 3:
        return fault(
            "all-to-all",
            """Every rank sends to every other one. In a ring a rank talks to its two neighbours
            alone: it sends to the next one, and receives from the one before.""",
        )
    if not links <= around[0] | around[1]:
        return fault(
            "not-a-ring",
            """Some messages skip over ranks. In a ring a rank sends to its neighbour alone, so
            that no two messages ever share a cable.""",
        )
    if size > 2 and not any(links <= way for way in around):
        return fault(
            "two-directions",
            """Your ring runs in both directions. Choose one: send to (rank + 1) % world_size, and
            receive from (rank - 1) % world_size, in every step of both phases.""",
        )
    if run.unread:
        return fault(
            "unread-messages",
            f"""{sum(run.unread.values())} messages were sent and never received. A rank receives
            once for each message that its neighbour sends: N − 1 in each phase.""",
        )
    if biggest > longest:
        whole = "whole-tensor-every-step" if biggest >= n else "chunks-too-large"
        return fault(
            whole,
            f"""Your messages have up to {biggest} elements. Cut x into {size} chunks, and send one
            chunk in each step: then a rank sends 2 · (N − 1) / N · n elements in all, less than
            2n for any number of ranks. With whole tensors it is (N − 1) · n, which grows with
            each rank that joins.""",
        )
    if any(count > most for count in sent.values()):
        return fault(
            "too-many-messages",
            f"""A rank sent {max(sent.values())} messages; 2 · (N − 1) = {most} are enough. After
            N − 1 steps each chunk has met all ranks: a further step sends what is known already,
            and every message costs its latency.""",
        )
    return None


def _ring_mistake(
    start: int = 0,
    second_start: int = 1,
    way: int = 1,
    add: Callable = lambda mine, got: mine + got,
    store: Callable = lambda mine, got: got,
    steps: Callable = lambda size: (size - 1, size - 1),
    split: Callable = torch.tensor_split,
    finish: Callable = lambda chunks, rank, size: torch.cat(chunks),
) -> Callable:
    """A ring with one part replaced; ``way`` is 1 to the right, −1 to the left."""

    def answer(x, rank, world_size, send, recv):
        chunks = [chunk.clone() for chunk in split(x, world_size)]
        first, second = steps(world_size)
        phases = [(first, start, add), (second, start + second_start, store)]
        for count, offset, put in phases:
            for step in range(count):
                out = (rank + way * (offset - step)) % world_size
                into = (rank + way * (offset - step - 1)) % world_size
                send(chunks[out], (rank + way) % world_size)
                chunks[into] = put(chunks[into], recv((rank - way) % world_size))
        return finish(chunks, rank, world_size)

    return answer


def _both_ways(**parts: Any) -> list[Callable]:
    return [_ring_mistake(start=s, way=way, **parts) for way in (1, -1) for s in (0, -1, 1)]


def check_ring_all_reduce(candidate: Callable) -> Passed:
    """Check ``ring_all_reduce(x, rank, world_size, send, recv)``."""

    def case(seed: int, size: int, n: int) -> Case:
        draw = draws(seed)
        return Case([draw(n) for _ in range(size)])

    def own_chunk(chunks, rank, size):
        return chunks[(rank + 1) % size]

    def neighbour_only(x, rank, world_size, send, recv):
        if world_size == 1:
            return x
        send(x, (rank + 1) % world_size)
        return x + recv((rank - 1) % world_size)

    return _judge_ranks(
        candidate,
        signature="ring_all_reduce(x, rank, world_size, send, recv)",
        given="ring_all_reduce(x_of_rank)",
        play=_play_ring,
        reference=lambda inputs: [torch.stack(inputs).sum(dim=0)] * len(inputs),
        cases=[case(1, 3, 6), case(2, 4, 10), case(3, 1, 5), case(4, 2, 7), case(5, 5, 3)],
        method=_ring_method,
        mistakes=[
            Mistake(
                "no-all-gather",
                """You stopped after the first phase. Each rank now has one finished chunk, the
                sum over all ranks, and N − 1 half-finished ones. In the second phase (all-gather)
                the finished chunks travel round the ring once more, and replace the others.""",
                *_both_ways(steps=lambda size: (size - 1, 0)),
            ),
            Mistake(
                "raw-chunks-passed-on",
                """What travels round in your second phase is no sum: it is a chunk as its rank had
                it at first. Either you add nothing in the first phase (a rank must add the chunk
                that it receives to its own), or the second begins with the wrong chunk. It must
                begin with the one into which the last message of the first phase was added: that
                is rank + 1 if the first phase began by sending chunk number rank.""",
                *_both_ways(second_start=0),
                *_both_ways(add=lambda mine, got: got),
            ),
            Mistake(
                "added-in-both-phases",
                """You add in the second phase too. There the chunk that comes in is finished: it
                replaces yours. Added, it counts some ranks twice.""",
                *_both_ways(store=lambda mine, got: mine + got),
            ),
            Mistake(
                "wrong-first-chunk",
                """Your second phase begins with the wrong chunk. It must begin with the one that
                is finished, and that is the chunk into which the last message of the first phase
                was added: rank + 1 if you began by sending chunk number rank.""",
                *[
                    _ring_mistake(start=s, second_start=second, way=way)
                    for way in (1, -1)
                    for s in (0, -1, 1)
                    for second in (-1, 2)
                ],
            ),
            Mistake(
                "one-step-short",
                """One of your phases is a step too short. A chunk must pass N − 1 links to meet
                all N ranks: range(world_size - 1).""",
                *_both_ways(steps=lambda size: (size - 1, max(0, size - 2))),
                *_both_ways(steps=lambda size: (max(0, size - 2), size - 1)),
                *_both_ways(steps=lambda size: (max(0, size - 2), max(0, size - 2))),
            ),
            Mistake(
                "one-step-too-many",
                """Your first phase is a step too long: in the last step a chunk comes home to the
                rank where it began, which is then counted twice. N − 1 steps are enough.""",
                *_both_ways(steps=lambda size: (size, size - 1)),
                *_both_ways(steps=lambda size: (size, size)),
                *_both_ways(steps=lambda size: (size, size - 1), second_start=0),
            ),
            Mistake(
                "averaged",
                """You divided by the number of ranks. All-reduce is the sum; who wants the mean
                divides afterwards (task 2).""",
                _ring_mistake(finish=lambda chunks, rank, size: torch.cat(chunks) / size),
            ),
            Mistake(
                "one-chunk-returned",
                """You returned one chunk. Put the chunks together again, in their order:
                torch.cat(chunks).""",
                _ring_mistake(finish=own_chunk),
                _ring_mistake(finish=lambda chunks, rank, size: chunks[rank]),
            ),
            Mistake(
                "chunks-in-another-order",
                """The chunks are right, but they stand in another order. Chunk c of the result is
                chunk c of x on every rank, wherever the chunk was added up.""",
                _ring_mistake(finish=lambda c, rank, size: torch.cat([*c[rank:], *c[:rank]])),
                _ring_mistake(finish=lambda c, r, size: torch.cat([*c[r + 1 :], *c[: r + 1]])),
                _ring_mistake(finish=lambda c, rank, size: torch.cat(c[::-1])),
            ),
            Mistake(
                "too-few-chunks",
                """torch.chunk can give fewer chunks than you ask for: 6 elements in 4 chunks come
                as 2 + 2 + 2. torch.tensor_split always gives as many as you ask for; some may be
                empty.""",
                _ring_mistake(split=torch.chunk),
                _ring_mistake(split=lambda x, size: list(torch.chunk(x, size))),
                _ring_mistake(split=torch.chunk, way=-1),
            ),
            Mistake(
                "tail-lost",
                """Elements at the end are lost. n // world_size elements for each chunk leave
                n % world_size over: torch.tensor_split shares those out.""",
                _ring_mistake(split=lambda x, size: x[: len(x) // size * size].chunk(size)),
                _ring_mistake(
                    split=lambda x, size: [
                        x[i * (len(x) // size) : (i + 1) * (len(x) // size)] for i in range(size)
                    ]
                ),
            ),
            Mistake(
                "one-neighbour-only",
                """You added the tensor of one neighbour. The sum goes over all ranks: what came
                in must travel on.""",
                neighbour_only,
            ),
        ],
    )


# --- averaged gradients -------------------------------------------------------------------------


def _play_average(function: Callable, grads_of_rank: list, bucket_size: int) -> Run:
    size = len(grads_of_rank)
    return _run_ranks(
        lambda grads, link: function(grads, size, link.all_reduce, bucket_size),
        [(grads,) for grads in grads_of_rank],
    )


def _count_buckets(sizes: Sequence[int], bucket_size: int) -> int:
    count, filled = 0, bucket_size + 1
    for n in sizes:
        if filled + n > bucket_size:
            count, filled = count + 1, 0
        filled += n
    return count


def _average_method(run: Run, grads_of_rank: list, bucket_size: int):
    sizes = [g.numel() for g in grads_of_rank[0]]
    calls = run.reductions[0]
    most = max(
        _count_buckets(sizes, bucket_size),
        _count_buckets(sizes[::-1], bucket_size),
        math.ceil(sum(sizes) / bucket_size),  # of one long vector, cut anywhere
    )
    facts = (
        f"  {len(grads_of_rank)} ranks, gradients with {', '.join(map(str, sizes))} elements, "
        f"bucket_size={bucket_size}.\n"
        f"  Elements in your calls of all_reduce: {', '.join(map(str, calls)) or '(no calls)'}\n"
        f"  Calls that are needed: {most}"
    )
    fault = partial(_Fault, facts)
    if not calls:
        return fault(
            "not-exchanged",
            """No rank called all_reduce, and yet all know the mean. They have met somewhere else,
            such as in a global variable. On real machines there is none.""",
        )
    if any(call > bucket_size and call not in sizes for call in calls):
        return fault(
            "bucket-too-large",
            """A bucket holds at most bucket_size elements; only a tensor that is larger by itself
            makes a larger one. Look before you add: if the tensor does not fit, send the bucket
            first. A bucket that is too large is ready too late: while its last gradients are
            still computed, the first could be on their way.""",
        )
    if len(calls) > most and len(calls) >= len(sizes):
        return fault(
            "one-call-for-each-tensor",
            """You called all_reduce for each tensor. Every call costs a latency, however small
            the tensor, and a network has hundreds of small ones. Flatten several tensors, join
            them with torch.cat, and send them in one call.""",
        )
    if len(calls) > most:
        return fault(
            "too-many-calls",
            """Your buckets are not filled. A new one begins only when the next tensor no longer
            fits.""",
        )
    if sum(calls) > sum(sizes):
        return fault(
            "sent-twice",
            """You sent more elements than there are. Empty the bucket after you sent it, and send
            it as it is: it need not be filled up with zeros.""",
        )
    return None


def check_average_gradients(candidate: Callable) -> Passed:
    """Check ``average_gradients(grads, world_size, all_reduce, bucket_size)``."""

    def case(seed: int, size: int, shapes: list[tuple], bucket_size: int) -> Case:
        draw = draws(seed)
        grads = [[draw(*shape) for shape in shapes] for _ in range(size)]
        for rank in range(0, size, 2):
            grads[rank][-1].zero_()  # such as a part that these ranks' images did not reach
        return Case(grads, bucket_size)

    def each(rule: Callable) -> Callable:
        """A rule for one tensor g, where r(g) is its all-reduce and N the number of ranks."""
        return lambda grads, N, r, bucket_size: [rule(g, N, r, grads) for g in grads]

    def buckets(grads: list, bucket_size: int) -> list[list[int]]:
        found, filled = [[]], 0
        for i, g in enumerate(grads):
            if found[-1] and filled + g.numel() > bucket_size:
                found.append([])
                filled = 0
            found[-1].append(i)
            filled += g.numel()
        return found

    def by_bucket(rule: Callable) -> Callable:
        """``rule(bucket number, number of buckets, tensors, N, r)`` gives the bucket's tensors."""

        def answer(grads, N, r, bucket_size):
            groups = buckets(grads, bucket_size)
            parts = [
                rule(i, len(groups), [grads[j] for j in group], N, r)
                for i, group in enumerate(groups)
            ]
            return [g for part in parts for g in part]

        return answer

    def same_slice(i, count, gs, N, r):
        flat = r(torch.cat([g.flatten() for g in gs])) / N
        return [flat[: g.numel()].reshape(g.shape) for g in gs]

    def mean(gs, N, r):
        return [r(g) / N for g in gs]

    return _judge_ranks(
        candidate,
        signature="average_gradients(grads, world_size, all_reduce, bucket_size)",
        given="average_gradients(grads_of_rank, bucket_size)",
        play=_play_average,
        reference=lambda grads_of_rank, bucket_size: (
            [[torch.stack(gs).mean(dim=0) for gs in zip(*grads_of_rank, strict=True)]]
            * len(grads_of_rank)
        ),
        cases=[
            case(1, 2, [(2,), (3,)], 10),
            case(2, 3, [(2, 2), (3,), (2, 3), (1,), (4,)], 7),
            case(3, 4, [(1,), (3, 4), (), (2, 2), (2,), (3,)], 6),
            case(4, 2, [(3,), (2,), (5,), (1,)], 5),
            case(5, 2, [(1,), (2,), (1,), (1,), (2,)], 7),
            case(6, 1, [(2, 3), (4,)], 4),
        ],
        method=_average_method,
        mistakes=[
            Mistake(
                "summed-not-averaged",
                """You summed. all_reduce gives the sum over the ranks, and the gradient of the
                mean loss is the mean: divide by world_size. With the sum, the learning rate
                would in effect grow with each machine that joins.""",
                each(lambda g, N, r, gs: r(g)),
            ),
            Mistake(
                "divided-twice",
                """You divided by world_size twice, before and after all_reduce. Once is right,
                at either place.""",
                each(lambda g, N, r, gs: r(g / N) / N),
            ),
            Mistake(
                "not-exchanged",
                """Each rank kept its own gradients (perhaps divided). Then each trains a model of
                its own, as in the article's listing. Call all_reduce, and use what it
                returns: it does not change its argument.""",
                each(lambda g, N, r, gs: g.clone()),
                each(lambda g, N, r, gs: g / N),
            ),
            Mistake(
                "divided-by-the-number-of-tensors",
                """You divided by the number of tensors. The mean goes over the ranks.""",
                each(lambda g, N, r, gs: r(g) / len(gs)),
                by_bucket(lambda i, count, gs, N, r: [r(g) / len(gs) for g in gs]),
                by_bucket(lambda i, count, gs, N, r: [r(g) / count for g in gs]),
            ),
            Mistake(
                "last-bucket-lost",
                """The last bucket was never sent. When the loop over the tensors ends, there is
                still a bucket that is not full: send it too.""",
                by_bucket(lambda i, k, gs, N, r: mean(gs, N, r) if i < k - 1 else []),
                by_bucket(lambda i, k, gs, N, r: mean(gs, N, r) if i < k - 1 else gs),
                by_bucket(lambda i, k, gs, N, r: mean(gs, N, r) if i < k - 1 else [None] * len(gs)),
            ),
            Mistake(
                "only-first-bucket",
                """Only the first bucket was exchanged. Every bucket needs a call of all_reduce.""",
                by_bucket(lambda i, k, gs, N, r: mean(gs, N, r) if i == 0 else gs),
                by_bucket(lambda i, k, gs, N, r: mean(gs, N, r) if i == 0 else []),
            ),
            Mistake(
                "flat-result",
                """You returned flat tensors. Give each gradient its own shape back:
                piece.reshape(g.shape).""",
                each(lambda g, N, r, gs: r(g).flatten() / N),
                by_bucket(lambda i, k, gs, N, r: [r(torch.cat([g.flatten() for g in gs])) / N]),
            ),
            Mistake(
                "same-slice-for-all",
                """All tensors of a bucket were cut from its beginning. Move on by g.numel() after
                each tensor, or let torch.split cut the whole bucket at once.""",
                by_bucket(same_slice),
            ),
            Mistake(
                "order-lost",
                """The gradients are right, but not in the order of the argument. Whoever walks
                through the buckets from the end must turn the result round again.""",
                lambda grads, N, r, bucket_size: mean(grads, N, r)[::-1],
            ),
            Mistake(
                "mean-over-elements",
                """You took the mean over the elements of a tensor. The mean goes over the ranks,
                and each element has its own.""",
                each(lambda g, N, r, gs: r(g).mean()),
                each(lambda g, N, r, gs: r(g.mean())),
                each(lambda g, N, r, gs: r(g.mean()) / N),
                each(lambda g, N, r, gs: r(g) / g.numel()),
            ),
            Mistake(
                "lower-precision",
                """You rounded the gradients on their way. That halves the bytes, and some do it,
                but it is another sum: here the gradients keep their dtype.""",
                *[
                    each(lambda g, N, r, gs, t=t: r(g.to(t)).to(g.dtype) / N)
                    for t in (torch.float32, torch.float16, torch.bfloat16)
                ],
            ),
        ],
    )


# --- shards of the data set ---------------------------------------------------------------------


def _shard(
    pick: Callable = lambda order, rank, size: order[rank::size],
    seed_of: Callable = lambda seed, epoch, rank: seed + epoch,
    even: Callable | None = None,
    shuffle: Callable | None = None,
) -> Callable:
    """torch's sharding with one part replaced."""

    def torch_shuffle(n, number):
        generator = torch.Generator().manual_seed(number)
        return torch.randperm(n, generator=generator).tolist()

    def answer(n, rank, world_size, epoch, seed=0, drop_last=False):
        order = (shuffle or torch_shuffle)(n, seed_of(seed, epoch, rank))
        order = (even or _even)(order, world_size, drop_last)
        return pick(order, rank, world_size)

    return answer


def _even(order: list, size: int, drop_last: bool) -> list:
    if drop_last:
        return order[: len(order) // size * size]
    total = math.ceil(len(order) / size) * size
    return (order * math.ceil(total / len(order)))[:total]


def _blocks(order: list, rank: int, size: int) -> list:
    share = len(order) // size
    return order[rank * share : (rank + 1) * share]


def check_shard_indices(candidate: Callable) -> Passed:
    """Check ``shard_indices(n, rank, world_size, epoch, seed=0, drop_last=False)``."""
    signature = "shard_indices(n, rank, world_size, epoch, seed=0, drop_last=False)"

    def reference(n, rank, world_size, epoch, seed=0, drop_last=False):
        sampler = DistributedSampler(
            range(n), world_size, rank, shuffle=True, seed=seed, drop_last=drop_last
        )
        sampler.set_epoch(epoch)
        return list(sampler)

    def no_padding(order, size, drop_last):
        return _even(order, size, True) if drop_last else order

    def pad_with(filler: Callable) -> Callable:
        def even(order, size, drop_last):
            missing = -len(order) % size
            whole = _even(order, size, True) if drop_last else order + filler(order, missing)
            return whole

        return _shard(even=even)

    def a_round_too_many(order, size, drop_last):
        if drop_last:
            return _even(order, size, True)
        total = (len(order) // size + 1) * size
        return (order * math.ceil(total / len(order)))[:total]

    def a_round_too_few(order, size, drop_last):
        if drop_last and len(order) % size == 0:
            return order[: len(order) - size]
        return _even(order, size, drop_last)

    def shuffled_after(n, rank, world_size, epoch, seed=0, drop_last=False):
        mine = _even(list(range(n)), world_size, drop_last)[rank::world_size]
        generator = torch.Generator().manual_seed(seed + epoch)
        return [mine[i] for i in torch.randperm(len(mine), generator=generator).tolist()]

    def python_shuffle(n, number):
        order = list(range(n))
        random.Random(number).shuffle(order)
        return order

    settings = [(8, 2, 0, {}), (7, 3, 1, {}), (10, 4, 3, {"seed": 5})]
    settings += [(10, 4, 2, {"seed": 2, "drop_last": True}), (9, 3, 4, {"drop_last": True})]
    settings += [(2, 5, 1, {"seed": 1}), (5, 1, 2, {})]
    cases = [
        Case(n, rank, size, epoch, **options)
        for n, size, epoch, options in settings
        for rank in range(size)
    ]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        if callable(candidate):
            _rehearse_alone(candidate, signature, cases)
        passed = compare(
            candidate,
            signature=signature,
            reference=reference,
            cases=cases,
            mistakes=[
                Mistake(
                    "same-shard-on-every-rank",
                    """Every rank gets the same images: your answer does not depend on rank. Then
                    N machines do the work of one, N times. Rank r takes the positions r, r + N,
                    r + 2N, … of the shuffled list.""",
                    _shard(pick=lambda order, rank, size: order[::size]),
                    _shard(pick=lambda order, rank, size: order[: len(order) // size]),
                ),
                Mistake(
                    "whole-set-on-every-rank",
                    """Every rank gets all images. One epoch then takes as long as on a single
                    machine. Rank r takes the positions r, r + N, r + 2N, … of the list.""",
                    _shard(pick=lambda order, rank, size: order),
                    _shard(even=lambda order, *_: order, pick=lambda order, rank, size: order),
                ),
                Mistake(
                    "epoch-ignored",
                    """The order is the same in each epoch: the same images meet in the same
                    batches again and again. (In torch this is the set_epoch that was forgotten.)
                    Seed the generator with seed + epoch.""",
                    _shard(seed_of=lambda seed, epoch, rank: seed),
                ),
                Mistake(
                    "seed-ignored",
                    """Your order does not depend on seed. Seed the generator with seed + epoch.""",
                    _shard(seed_of=lambda seed, epoch, rank: epoch),
                    _shard(seed_of=lambda seed, epoch, rank: 0),
                ),
                Mistake(
                    "seed-not-added",
                    """seed and epoch are put together in another way than by a sum. With
                    seed · epoch, seed 0 would give every epoch the same order.""",
                    _shard(seed_of=lambda seed, epoch, rank: seed * epoch),
                    _shard(seed_of=lambda seed, epoch, rank: seed * 1000 + epoch),
                    _shard(seed_of=lambda seed, epoch, rank: hash((seed, epoch))),
                ),
                Mistake(
                    "permutation-per-rank",
                    """Each rank shuffles in its own way, because rank is in the seed. Then the
                    shards come from different lists: some images are seen twice, others never.
                    All ranks draw the same permutation, and each takes another part of it.""",
                    _shard(seed_of=lambda seed, epoch, rank: seed + epoch + rank),
                    _shard(seed_of=lambda seed, epoch, rank: seed + epoch + rank * 1000),
                    _shard(seed_of=lambda seed, epoch, rank: seed + rank),
                ),
                Mistake(
                    "not-shuffled",
                    """You did not shuffle. A data set in the order of its classes would give
                    batches of one class. torch.randperm(n, generator=...) gives a random
                    order.""",
                    _shard(shuffle=lambda n, number: list(range(n))),
                ),
                Mistake(
                    "shuffled-inside-the-shard",
                    """You cut first and shuffled then, so a rank sees the same images in every
                    epoch. Shuffle the whole list first; then cut it.""",
                    shuffled_after,
                ),
                Mistake(
                    "contiguous-blocks",
                    """You cut the list into blocks. That shares the images fairly, but the task
                    asks for torch's order: rank r takes every N-th position, order[rank::N].""",
                    _shard(pick=_blocks),
                ),
                Mistake(
                    "unequal-lengths",
                    """Some ranks get one image more than others. They would make one step more,
                    and wait in all_reduce for ranks that have gone home. Repeat images from the
                    beginning of the list until its length is a multiple of world_size.""",
                    _shard(even=no_padding),
                    _shard(even=lambda order, *_: order),
                ),
                Mistake(
                    "tail-dropped",
                    """You dropped the images that are left over, although drop_last is False.
                    They would never be seen in this epoch. Repeat images from the beginning of
                    the list instead, so that the length becomes a multiple of world_size.""",
                    _shard(even=lambda order, size, drop_last: _even(order, size, True)),
                    _shard(pick=_blocks, even=lambda order, *_: order),
                ),
                Mistake(
                    "drop-last-ignored",
                    """You repeat images also where drop_last is True. There, cut the list to a
                    multiple of world_size before the ranks take their parts.""",
                    _shard(even=lambda order, size, drop_last: _even(order, size, False)),
                ),
                Mistake(
                    "drop-last-turned-round",
                    """drop_last works the wrong way round: True drops what is left over, False
                    fills up.""",
                    _shard(even=lambda order, size, drop_last: _even(order, size, not drop_last)),
                ),
                Mistake(
                    "filled-up-otherwise",
                    """You filled up with other images than the task says. Take them from the
                    beginning of the shuffled list, as torch does: order + order[:missing]. (The
                    last image again and again, or always image 0, would count too much.)""",
                    pad_with(lambda order, missing: [0] * missing),
                    pad_with(lambda order, missing: order[-1:] * missing),
                    pad_with(lambda order, missing: order[len(order) - missing :]),
                    pad_with(lambda order, missing: list(range(missing))),
                    pad_with(lambda order, missing: [-1] * missing),
                ),
                Mistake(
                    "filled-up-only-once",
                    """With fewer images than half the ranks, one more copy of the list is not
                    enough: order[:missing] is then too short. Repeat the list as often as it
                    takes.""",
                    pad_with(lambda order, missing: order[:missing]),
                ),
                Mistake(
                    "a-round-too-many",
                    """Where n is a multiple of world_size, nothing is missing, and you add a whole
                    round. n // world_size + 1 is not the same as ceil(n / world_size).""",
                    _shard(even=a_round_too_many),
                ),
                Mistake(
                    "a-round-too-few",
                    """Where n is a multiple of world_size, nothing is left over, and you drop a
                    whole round. Cut the list to n // world_size * world_size.""",
                    _shard(even=a_round_too_few),
                ),
                Mistake(
                    "another-generator",
                    """Your shards may be fair, but they come from another random generator. The
                    task asks for torch's order, so that it can be compared with torch:
                    torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch)).""",
                    _shard(shuffle=python_shuffle),
                    _shard(shuffle=lambda n, s: np.random.RandomState(s).permutation(n).tolist()),
                    _shard(shuffle=lambda n, s: np.random.default_rng(s).permutation(n).tolist()),
                ),
            ],
        )
        if not torch.equal(states[0], torch.get_rng_state()):
            fault = _Fault(
                "  torch's global random generator is no longer where it was before the calls.",
                "global-seed",
                """You seeded or used the generator that all of torch shares. Then every rank has
                the same dropout masks and augmentations in each epoch, and whoever asks for
                indices changes the rest of the training. Make your own: generator =
                torch.Generator(); generator.manual_seed(seed + epoch).""",
            )
            raise fault.failure("shard_indices")
        return passed
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _rehearse_alone(candidate: Callable, signature: str, cases: list[Case]) -> None:
    """Call a function that needs no ranks once for each case, and stop it if it does not end."""
    name = signature.partition("(")[0]
    for case in cases:
        args, options = case.copies()
        try:
            _run_ranks(lambda link, a=args, o=options: candidate(*a, **o), [()])
        except CheckFailed as failure:
            call = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in options.items())])
            raise CheckFailed(
                f"{name} is not right yet.\n\n  {name}({call})\n\n{failure}", failure.diagnosis
            ) from failure
        except Exception:
            return  # the comparison that follows reports it, with its line


# --- tensor parallel layers ---------------------------------------------------------------------


# torch's inner name of a matrix product → the position of its left matrix
_PRODUCTS = dict.fromkeys(("mm", "bmm", "mv", "dot"), 0)
_PRODUCTS |= dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), 1)


class _CountMultiplications(TorchDispatchMode):
    """Counts the multiplications in the matrix products of its thread."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        if name in _PRODUCTS:  # each element of the result is a sum of that many products
            self.total += result.numel() * args[_PRODUCTS[name]].shape[-1]
        return result


def _play_tensor_parallel(function: Callable, x, w1, b1, w2, b2, world_size) -> Run:
    multiplications = [0] * world_size

    def one_rank(x, w1, b1, w2, b2, rank, link):
        with _CountMultiplications() as counter:
            y = function(x, w1, b1, w2, b2, rank, world_size, link.all_reduce)
        multiplications[rank] = counter.total
        return y

    tensors = (x, w1, b1, w2, b2)
    run = _run_ranks(one_rank, [(*tensors, rank) for rank in range(world_size)])
    run.multiplications = multiplications
    return run


def _tensor_parallel_method(run: Run, x, w1, b1, w2, b2, world_size):
    batch, hidden = x.shape[0], w1.shape[0]
    wanted = batch * hidden * (w1.shape[1] + w2.shape[0]) // world_size
    wanted_elements = batch * w2.shape[0]
    calls = run.reductions[0]
    facts = (
        f"  {world_size} ranks, x {tuple(x.shape)}, w1 {tuple(w1.shape)}, w2 {tuple(w2.shape)}.\n"
        f"  Multiplications of the busiest rank: {max(run.multiplications)}; "
        f"its share: {wanted}\n"
        f"  Elements in your calls of all_reduce: {', '.join(map(str, calls)) or '(no calls)'}; "
        f"expected: {wanted_elements}"
    )
    fault = partial(_Fault, facts)
    if world_size == 1:
        return None
    if not calls:
        return fault(
            "everything-on-every-rank",
            """Every rank computed everything. The result is right, but N machines do the work of
            one, and each must hold all weights. A rank uses its own rows of w1 and its own
            columns of w2; all_reduce adds the partial results.""",
        )
    if len(calls) > 1:
        return fault(
            "too-many-all-reduces",
            """One all_reduce is enough. After the first layer nothing need be exchanged: ReLU
            works element by element, and the columns of w2 that a rank holds are just those that
            meet its own hidden units.""",
        )
    if max(run.multiplications) > wanted:
        return fault(
            "too-much-work",
            """A rank multiplied with more than its share of the weights. It may use
            hidden / world_size rows of w1, and the same columns of w2. Cut the weights before the
            product, not the result after it.""",
        )
    if calls[0] != wanted_elements:
        return fault(
            "reduced-too-much",
            """all_reduce got a tensor of another size than the result. Add up the partial results
            of the second layer, of shape (batch, out), and nothing else.""",
        )
    return None


def check_tensor_parallel_linear(candidate: Callable) -> Passed:
    """Check ``tensor_parallel_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce)``."""

    with _CountMultiplications():  # the first use imports much: not within the time limit
        torch.ones(1) * 2

    def case(seed: int, batch: int, features: int, hidden: int, out: int, size: int) -> Case:
        draw = draws(seed)
        w1, w2 = draw(hidden, features), draw(out, hidden)
        return Case(draw(batch, features), w1, draw(hidden), w2, draw(out), size)

    def reference(x, w1, b1, w2, b2, world_size):
        return [F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)] * world_size

    def part(tensor: Tensor, rank: int, size: int, dim: int = 0) -> Tensor:
        return tensor.tensor_split(size, dim=dim)[rank]

    def strided(tensor: Tensor, rank: int, size: int, dim: int = 0) -> Tensor:
        return tensor[rank::size] if dim == 0 else tensor[:, rank::size]

    def layers(
        join: Callable = lambda p, b, r, N: r(p) + b,
        cut1: Callable = part,
        cut2: Callable = part,
        bias1: Callable = part,
        activation: Callable = F.relu,
        whose: Callable = lambda rank: rank,
    ) -> Callable:
        """The two layers with one part replaced; p is the partial result, r the all-reduce."""

        def answer(x, w1, b1, w2, b2, rank, world_size, all_reduce):
            mine = (whose(rank), world_size)
            h = activation(x @ cut1(w1, *mine).T + bias1(b1, *mine))
            return join(h @ cut2(w2, *mine, 1).T, b2, all_reduce, world_size)

        return answer

    def inputs_split(x, w1, b1, w2, b2, rank, world_size, all_reduce):
        h = F.relu(part(x, rank, world_size, 1) @ part(w1, rank, world_size, 1).T + b1)
        return all_reduce(h @ w2.T) + b2

    def inputs_split_sum(x, w1, b1, w2, b2, rank, world_size, all_reduce):
        h = F.relu(part(x, rank, world_size, 1) @ part(w1, rank, world_size, 1).T + b1)
        return all_reduce(h) @ w2.T + b2

    def with_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce):
        h = F.relu(F.linear(x, part(w1, rank, world_size), b1))
        return all_reduce(h @ part(w2, rank, world_size, 1).T) + b2

    return _judge_ranks(
        candidate,
        signature="tensor_parallel_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce)",
        given="tensor_parallel_linear(x, w1, b1, w2, b2, world_size)",
        play=_play_tensor_parallel,
        reference=reference,
        cases=[
            case(1, 2, 6, 6, 6, 2),
            case(2, 3, 5, 8, 3, 2),
            case(3, 1, 7, 12, 5, 4),
            case(4, 4, 2, 6, 1, 3),
            case(5, 2, 3, 5, 4, 1),
        ],
        method=_tensor_parallel_method,
        mistakes=[
            Mistake(
                "bias-per-rank",
                """The second bias is in the result world_size times: every rank added it before
                the sum. Add it once, after all_reduce.""",
                layers(lambda p, b, r, N: r(p + b)),
            ),
            Mistake(
                "no-second-bias",
                """The second bias is missing. Add b2 once, after all_reduce.""",
                layers(lambda p, b, r, N: r(p)),
            ),
            Mistake(
                "partial-sum",
                """Each rank returned its own part of the sum. A rank has seen only its own hidden
                units: all_reduce adds the parts. It returns the sum, and does not change its
                argument.""",
                layers(lambda p, b, r, N: p + b),
                layers(lambda p, b, r, N: p),
            ),
            Mistake(
                "averaged",
                """You divided by world_size. The hidden units are shared out, so the parts are
                added: nothing has been counted twice.""",
                layers(lambda p, b, r, N: r(p) / N + b),
                layers(lambda p, b, r, N: (r(p) + b) / N),
                layers(lambda p, b, r, N: r(p + b) / N),
            ),
            Mistake(
                "same-shard-on-every-rank",
                """Every rank used the same part of the weights. Rank r takes part number r.""",
                layers(whose=lambda rank: 0),
                layers(whose=lambda rank: -1),
            ),
            Mistake(
                "activation-before-the-sum",
                """You applied ReLU to a part of a sum. ReLU(a) + ReLU(b) is not ReLU(a + b). Cut
                w1 by its rows (outputs): then each rank has some hidden units complete, and ReLU
                is right. After the second layer there is no ReLU.""",
                inputs_split,
                inputs_split_sum,
                layers(lambda p, b, r, N: r(F.relu(p)) + b),
                layers(lambda p, b, r, N: r(F.relu(p + b))),
            ),
            Mistake(
                "activation-at-the-end",
                """You applied ReLU to the result as well. It stands between the two layers
                only.""",
                layers(lambda p, b, r, N: F.relu(r(p) + b)),
            ),
            Mistake(
                "no-activation",
                """ReLU between the two layers is missing.""",
                layers(activation=lambda h: h),
            ),
            Mistake(
                "w1-cut-by-inputs",
                """You cut w1 along its inputs (columns), so it no longer fits to x. w1 has shape
                (hidden, in): a rank takes some of its rows, all of their columns.""",
                layers(cut1=lambda w, rank, N: part(w, rank, N, 1)),
                layers(cut1=lambda w, rank, N: w[:, : w.shape[1] // N]),
            ),
            Mistake(
                "w2-cut-by-outputs",
                """You cut w2 along its outputs (rows), so it no longer fits to the hidden units
                that a rank has. w2 has shape (out, hidden): a rank takes the columns that belong
                to its own hidden units.""",
                layers(cut2=lambda w, rank, N, dim: part(w, rank, N)),
                layers(cut2=lambda w, rank, N, dim: w[: w.shape[1] // N]),
            ),
            Mistake(
                "shards-do-not-match",
                """The columns of w2 are not those of the rank's own hidden units. Cut w1, b1 and w2
                in the same way: hidden unit i has row i of w1, element i of b1 and column i of
                w2.""",
                layers(cut1=strided, bias1=strided),
                layers(cut2=strided),
                layers(bias1=strided),
                layers(cut2=lambda w, rank, N, dim: part(w, N - 1 - rank, N, dim)),
                layers(bias1=lambda b, rank, N: part(b, 0, N)),
            ),
            Mistake(
                "b1-not-cut",
                """You added the whole b1. A rank has hidden / world_size hidden units, and needs
                the elements of b1 that belong to them.""",
                layers(bias1=lambda b, rank, N: b),
                with_linear,
            ),
            Mistake(
                "no-first-bias",
                """The first bias is missing (or is added on rank 0 only). Each hidden unit has its
                own element of b1, so each rank adds its part.""",
                layers(bias1=lambda b, rank, N: 0.0),
                layers(bias1=lambda b, rank, N: part(b, rank, N) * (rank == 0)),
            ),
            Mistake(
                "first-bias-shared-out",
                """You divided b1 by world_size. Each hidden unit lives on one rank only, and needs
                its whole bias.""",
                layers(bias1=lambda b, rank, N: part(b, rank, N) / N),
            ),
        ],
    )


# --- a pipeline schedule ------------------------------------------------------------------------

_SECONDS = {"F": 1, "B": 2}  # a backward pass has about twice the operations of a forward pass


def check_pipeline_schedule(candidate: Callable) -> Passed:
    """Check ``pipeline_schedule(stage, num_stages, num_microbatches)``.

    Every schedule passes that does each operation once, needs no more time than 1F1B and stores
    no more activations on any stage.
    """
    signature = "pipeline_schedule(stage, num_stages, num_microbatches)"
    settings = [(2, 3), (4, 6), (1, 2), (4, 2), (3, 8), (5, 5), (2, 1)]
    cases = [Case(stage, stages, count) for stages, count in settings for stage in range(stages)]
    if not callable(candidate):
        return compare(candidate, signature=signature, reference=list, cases=[])
    _check_signature(candidate, signature)
    _rehearse_alone(candidate, signature, cases)
    for stages, count in settings:
        try:
            lists = [candidate(stage, stages, count) for stage in range(stages)]
        except Exception:
            # the engine says what was raised, and where
            return compare(candidate, signature=signature, reference=_one_f_one_b, cases=cases)
        lists = [_operations(stage, given, count) for stage, given in enumerate(lists)]
        _judge_schedule(lists, count)
    return Passed("pipeline_schedule", len(cases))


def _one_f_one_b(stage: int, num_stages: int, num_microbatches: int) -> list[tuple[str, int]]:
    ahead = min(num_microbatches, num_stages - stage)
    operations = [("F", m) for m in range(ahead)]
    for m in range(num_microbatches):
        operations.append(("B", m))
        if m + ahead < num_microbatches:
            operations.append(("F", m + ahead))
    return operations


def _schedule_error(slug: str, where: str, advice: str) -> CheckFailed:
    title = "pipeline_schedule is not right yet."
    return CheckFailed(_message(title, where, slug, advice), slug)


def _operations(stage: int, given: Any, count: int) -> list[tuple[str, int]]:
    """The list of one stage, if it names every operation once and none before its time."""
    where = f"  stage {stage} with {count} micro-batches: {_show_list(given)}"
    fail = partial(_schedule_error, where=where)
    if given is None:
        raise fail("returned-none", advice="It returned None. Does every path end with a return?")
    is_pair = lambda op: isinstance(op, tuple | list) and len(op) == 2  # noqa: E731
    right_form = isinstance(given, list | tuple) and all(
        is_pair(op) and op[0] in ("F", "B") and isinstance(op[1], int) for op in given
    )
    if not right_form:
        raise fail(
            "wrong-form",
            advice="""Return the list of one stage: pairs such as ("F", 0) for the forward pass and
            ("B", 0) for the backward pass of micro-batch 0.""",
        )
    operations = [(kind, m) for kind, m in given]
    wanted = [(kind, m) for kind in "FB" for m in range(count)]
    strange = [op for op in operations if op not in wanted]
    if strange and sorted(operations) == sorted((kind, m + 1) for kind, m in wanted):
        raise fail("counts-from-one", advice="Micro-batches are counted from 0 to M − 1.")
    if strange:
        raise fail(
            "no-such-micro-batch",
            advice=f"""{_name(strange[0])} does not exist: there are {count} micro-batches, 0 to
            {count - 1}. With few micro-batches the warm-up is shorter: it has
            min(M, ...) forward passes.""",
        )
    twice = [op for op, times in Counter(operations).items() if times > 1]
    if twice:
        raise fail(
            "operation-twice",
            advice=f"{_name(twice[0])} is there twice. Each operation is done once on each stage.",
        )
    missing = [op for op in wanted if op not in operations]
    if missing:
        raise fail(
            "missing-operation",
            advice=f"""{", ".join(map(_name, missing))} never happens on this stage. Each stage
            does all forward and all backward passes. (When the forward passes run out, some
            backward passes are still to come: the cool-down.)""",
        )
    for m in range(count):
        if operations.index(("B", m)) < operations.index(("F", m)):
            raise fail(
                "backward-before-forward",
                advice=f"""B{m} stands before F{m}. A backward pass needs the activations that its
                forward pass stored on the same stage.""",
            )
    return operations


def _judge_schedule(lists: list[list[tuple[str, int]]], count: int) -> None:
    stages = len(lists)
    start, stuck = _simulate(lists)
    title = f"  {stages} stages, {count} micro-batches (F takes 1 unit of time, B takes 2):\n"
    if stuck:
        raise _schedule_error(
            "deadlock",
            title + "\n".join(stuck),
            """Nobody can go on: each stage that has work left waits for another. F needs the same
            F of the stage before, B needs the same B of the stage after. The last stage does B0
            right after F0; an earlier stage must send more forward passes ahead, and the first
            stage the most.""",
        )
    takes = max(t + _SECONDS[kind] for (_, kind, _), t in start.items())
    shortest = (count + stages - 1) * sum(_SECONDS.values())
    peaks = [_peak(operations) for operations in lists]
    allowed = [min(count, stages - stage) for stage in range(stages)]
    where = (
        f"{title}{_draw(lists, start, takes)}\n\n"
        f"  time: {takes} units; possible: {shortest}\n"
        f"  activations stored at most, by stage: {peaks}; needed: {allowed}"
    )
    if takes > shortest:
        if all(peak == 1 for peak in peaks):
            raise _schedule_error(
                "one-at-a-time",
                where,
                """The micro-batches go through one after the other, so only one stage works at a
                time. Let a stage begin the next forward pass while the later stages are busy:
                stage s sends P − 1 − s forward passes ahead before its first pair F, B.""",
            )
        raise _schedule_error(
            "bubble-too-large",
            where,
            """The stages wait (the dots) more than they must. A stage needs enough forward passes
            ahead to be busy until its first backward pass can begin: P − 1 − s on stage s; and it
            takes the micro-batches in their order.""",
        )
    if any(peak > enough for peak, enough in zip(peaks, allowed, strict=True)):
        if all(kind == "F" for operations in lists for kind, _ in operations[:count]):
            raise _schedule_error(
                "gpipe",
                where,
                """This is GPipe: all forward passes, then all backward passes. It is as fast as
                1F1B, but it stores the activations of all M micro-batches at once. Begin with the
                backward passes as soon as you can: each one frees an activation.""",
            )
        raise _schedule_error(
            "too-many-activations",
            where,
            """A stage runs too far ahead: it stores more activations than it needs to. Stage s
            does P − 1 − s forward passes ahead, and from then on one F, one B, so that never more
            than P − s activations are stored.""",
        )


def _simulate(lists: list[list[tuple[str, int]]]) -> tuple[dict, list[str]]:
    """Start time of each (stage, kind, micro-batch); and who waits for whom, if some never start.

    Each stage does its list in order, and each operation as soon as what it needs is there.
    """
    start: dict[tuple[int, str, int], int] = {}
    free, at = [0] * len(lists), [0] * len(lists)

    def needs(stage: int, kind: str, m: int) -> tuple[int, str, int] | None:
        other = stage - 1 if kind == "F" else stage + 1
        return (other, kind, m) if 0 <= other < len(lists) else None

    moved = True
    while moved:
        moved = False
        for stage, operations in enumerate(lists):
            while at[stage] < len(operations):
                kind, m = operations[at[stage]]
                before = needs(stage, kind, m)
                if before and before not in start:
                    break
                ready = start[before] + _SECONDS[kind] if before else 0
                start[stage, kind, m] = max(free[stage], ready)
                free[stage] = start[stage, kind, m] + _SECONDS[kind]
                at[stage] += 1
                moved = True
    stuck = []
    for stage, operations in enumerate(lists):
        if at[stage] < len(operations):
            kind, m = operations[at[stage]]
            other, *_ = needs(stage, kind, m)
            done = _show_list(operations[: at[stage]])
            stuck.append(
                f"    stage {stage}: after {done} it waits to do {kind}{m}, "
                f"until stage {other} has done {kind}{m}"
            )
    return start, stuck


def _peak(operations: list[tuple[str, int]]) -> int:
    """The largest number of micro-batches whose activations are stored at one time."""
    stored, most = 0, 0
    for kind, _ in operations:
        stored += 1 if kind == "F" else -1
        most = max(most, stored)
    return most


def _draw(lists: list, start: dict, takes: int) -> str:
    """A row for each stage, a column for each unit of time, dots where a stage waits."""
    rows = []
    for stage, operations in enumerate(lists):
        row = ["·"] * takes
        for kind, m in operations:
            for t in range(_SECONDS[kind]):
                row[start[stage, kind, m] + t] = f"{kind}{m}"
        rows.append(f"    stage {stage}  " + " ".join(cell.ljust(2) for cell in row).rstrip())
    return "\n".join(rows)


def _name(operation: tuple[str, int]) -> str:
    return "".join(map(str, operation))


def _show_list(given: Any) -> str:
    if not isinstance(given, list | tuple):
        return repr(given)
    if not given:
        return "nothing"
    return " ".join(_name(op) if isinstance(op, tuple | list) else repr(op) for op in given)
