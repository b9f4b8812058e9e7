"""Checks of distributed training: the right numbers, in the right way.

A task is judged twice. First the results of all ranks are compared with one process that does
everything. Then the *method* is judged: who sent how much to whom, how often all ranks met, how
many multiplications each of them made, how many activations a stage held.

The ranks are threads that take turns (`shipyard.checks.ranks`), so a deadlock or an endless loop
ends the check with a message. What to tell whose method is at fault stands in the catalogue too,
as far as an edit of the reference makes that fault; the rest is `BEYOND_EDITS`.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shipyard.checks import Case, CheckFailed, Passed, catalogue, compare, draws, schedules
from shipyard.checks.ranks import STOPS, Run
from shipyard.checks.ranks import run_ranks as _run_ranks
from shipyard.checks.telling import refusal

# Faults of the method that no edit of a reference makes, and what to tell about them.
BEYOND_EDITS = {
    "no-messages": """No rank sent anything, and yet all know the sum. They have met somewhere
        else, such as in a global variable. On real machines there is none: use send and recv.""",
    "through-one-rank": """Everything goes through one rank: it gathers the tensors and sends the
        sum back. Its link carries N − 1 tensors in and N − 1 out while the other links wait, and
        with 1,000 ranks it carries 1,000. In a ring each link carries the same.""",
    "all-to-all": """Every rank sends to every other one. In a ring a rank talks to its two
        neighbours alone: it sends to the next one, and receives from the one before.""",
    "not-a-ring": """Your messages do not go round a ring: some skip over ranks, or a link of the
        ring is never used. Each rank sends to (rank + 1) % world_size alone, the last one to
        rank 0. Then no two messages share a cable, and no cable is idle.""",
    "tensors-cut-apart": """You cut one long vector into pieces of bucket_size elements, so that a
        tensor may lie in two buckets. A bucket holds whole tensors: when the next one no longer
        fits, it begins a new bucket.""",
    "buckets-out-of-order": """Your buckets hold other tensors than those that follow each other in
        the list. Fill them in the order of the list, or from its end: gradients become ready one
        after the other, and a bucket must wait for the last of its own.""",
}


def ring_all_reduce(x, rank, world_size, send, recv):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    chunks = list(x.clone().tensor_split(world_size))
    for step in range(world_size - 1):  # reduce-scatter
        send(chunks[(rank - step) % world_size], right)
        chunks[(rank - step - 1) % world_size] += recv(left)
    for step in range(world_size - 1):  # all-gather
        send(chunks[(rank + 1 - step) % world_size], right)
        chunks[(rank - step) % world_size] = recv(left)
    return torch.cat(chunks)


def average_gradients(grads, world_size, all_reduce, bucket_size):
    buckets, filled = [[]], 0
    for g in grads:
        if buckets[-1] and filled + g.numel() > bucket_size:
            buckets.append([])
            filled = 0
        buckets[-1].append(g)
        filled += g.numel()
    means = []
    for bucket in buckets:
        flat = torch.cat([g.flatten() for g in bucket])
        mean = all_reduce(flat) / world_size
        pieces = mean.split([g.numel() for g in bucket])
        means += [piece.reshape(g.shape) for piece, g in zip(pieces, bucket, strict=True)]
    return means


def shard_indices(n, rank, world_size, epoch, seed=0, drop_last=False):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    rounds = n // world_size if drop_last else math.ceil(n / world_size)
    order = [order[i % n] for i in range(rounds * world_size)]
    return order[rank::world_size]


def tensor_parallel_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce):
    hidden = len(w1) // world_size
    mine = slice(rank * hidden, (rank + 1) * hidden)
    h = torch.relu(x @ w1[mine].T + b1[mine])
    part = h @ w2[:, mine].T
    return all_reduce(part) + b2


def pipeline_schedule(stage, num_stages, num_microbatches):
    warm_up = min(num_stages - 1 - stage, num_microbatches)
    operations = [("F", m) for m in range(warm_up)]
    for m in range(num_microbatches - warm_up):
        operations += [("F", warm_up + m), ("B", m)]
    cool_down = range(num_microbatches - warm_up, num_microbatches)
    return operations + [("B", m) for m in cool_down]


def run_ranks(function: Callable, inputs: Sequence[Tensor]) -> Run:
    """Call ``function(x, rank, world_size, send, recv)`` once for each tensor in ``inputs``.

    Returns what the ranks returned and a table of the messages. Made for trying things out.

    Raises:
        CheckFailed: the ranks wait for each other, or one of them does not end.
    """
    return _execute_ring(function, list(inputs))


# --- a task with several ranks ------------------------------------------------------------------


BUT_NOT_SO = "gives the right numbers, but not in the way that the task asks for."
Faults = tuple[str, list[tuple[bool, str]]]  # facts; then (is it so?, slug), the first counts


def _judge_ranks(
    candidate: Callable,
    reference: Callable,
    execute: Callable[..., Run],
    truth: Callable[..., list],
    cases: list[Case],
    faults: Callable[..., Faults],
) -> Passed:
    """Judge a function of which every rank runs a copy: its results, and then its method.

    Args:
        execute: ``execute(function, *arguments of a case)`` runs all ranks.
        truth: from the arguments of a case to what the ranks must return.
        faults: ``faults(run, *arguments)`` says what may be wrong with the method.
    """
    runs: list[tuple[Run, tuple]] = []

    @functools.wraps(execute)  # its arguments' names are what a failing check shows
    def results_by_rank(function: Callable, *args: Any) -> dict[str, Any]:
        if function is reference:
            values = truth(*args)
        else:
            run = execute(function, *args)
            values = run.results
            if function is candidate:
                runs.append((run, args))
        return {f"rank {rank}": value for rank, value in enumerate(values)}

    results_by_rank.runs_here = True  # the ranks are threads of this process
    settings = {"tolerance": 1e-10, "use": results_by_rank, "small_changes": False}
    stopped = None
    try:
        passed = compare(candidate, reference=reference, cases=cases, **settings)
    except CheckFailed as failure:
        if failure.diagnosis not in STOPS:
            raise
        stopped = failure  # all results before it were right, but perhaps not the way
    runs.sort(key=lambda pair: -len(pair[0].results))  # a large world tells a ring from other ways
    for run, args in runs:
        facts, possible = faults(run, *args)
        for is_so, slug in possible:
            if is_so:
                raise _fault(reference, slug, facts, f"{reference.__name__} {BUT_NOT_SO}")
    if stopped:
        raise stopped
    return passed


def _fault(reference: Callable, slug: str, facts: str, title: str = "") -> CheckFailed:
    """What is wrong, with the advice of the catalogue, and then the facts."""
    known = {entry.slug: entry.advice for entry in catalogue.entries(reference)}
    return refusal(slug, known.get(slug) or BEYOND_EDITS[slug], facts, title)


# --- all-reduce as a ring -----------------------------------------------------------------------


def _execute_ring(function: Callable, x_of_rank: list[Tensor]) -> Run:
    size = len(x_of_rank)
    return _run_ranks(
        lambda x, rank, link: function(x, rank, size, link.send, link.recv),
        [(x, rank) for rank, x in enumerate(x_of_rank)],
    )


def _ring_faults(run: Run, x_of_rank: list[Tensor]) -> Faults:
    size, n = len(x_of_rank), x_of_rank[0].numel()
    most, longest = 2 * (size - 1), math.ceil(n / size)
    facts = (
        f"  {size} ranks, x with {n} elements. What was sent:\n{run.traffic(8)}\n"
        f"  A ring: each rank sends {most} messages of at most {longest} elements, all of them to "
        "its neighbour."
    )
    if size == 1:
        return facts, []
    links = {(m.src, m.dst) for m in run.messages}
    right = {(rank, (rank + 1) % size) for rank in range(size)}
    left = {(b, a) for a, b in right}
    is_ring = links <= right | left and (right <= links or left <= links)
    hub = size > 2 and any(all(rank in link for link in links) for rank in range(size))
    sent = Counter(m.src for m in run.messages)
    biggest = max((m.elements for m in run.messages), default=0)
    return facts, [
        (not links, "no-messages"),
        (hub, "through-one-rank"),
        (size > 3 and len(links) == size * (size - 1), "all-to-all"),
        (not is_ring, "not-a-ring"),
        (links not in (right, left), "two-directions"),
        (bool(run.unread), "unread-messages"),
        (biggest > longest and biggest >= n, "whole-tensor-every-step"),
        (biggest > longest, "chunks-too-large"),
        (max(sent.values(), default=0) > most, "too-many-messages"),
    ]


def check_ring_all_reduce(candidate: Callable) -> Passed:
    """Check ``ring_all_reduce(x, rank, world_size, send, recv)``."""

    def case(seed: int, size: int, n: int) -> Case:
        draw = draws(seed)
        return Case([draw(n) for _ in range(size)])

    sizes = [(3, 7), (5, 13), (2, 6), (4, 3), (1, 5)]
    return _judge_ranks(
        candidate,
        ring_all_reduce,
        _execute_ring,
        truth=lambda x_of_rank: [torch.stack(x_of_rank).sum(dim=0)] * len(x_of_rank),
        cases=[case(seed, *size) for seed, size in enumerate(sizes, 1)],
        faults=_ring_faults,
    )


# --- averaged gradients -------------------------------------------------------------------------


def _execute_average(function: Callable, grads_of_rank: list, bucket_size: int) -> Run:
    size = len(grads_of_rank)
    return _run_ranks(
        lambda grads, link: function(grads, size, link.all_reduce, bucket_size),
        [(grads,) for grads in grads_of_rank],
    )


def _buckets(sizes: Sequence[int], bucket_size: int) -> list[int]:
    """The elements in each bucket that is filled with tensors of these sizes, in their order."""
    buckets = [0]
    for n in sizes:
        if buckets[-1] and buckets[-1] + n > bucket_size:
            buckets.append(0)
        buckets[-1] += n
    return buckets


def _average_faults(run: Run, grads_of_rank: list, bucket_size: int) -> Faults:
    sizes = [g.numel() for g in grads_of_rank[0]]
    calls = run.reductions[0]
    ways = _buckets(sizes, bucket_size), _buckets(sizes[::-1], bucket_size)
    numbers = [", ".join(map(str, row)) or "no calls" for row in (sizes, calls, *ways)]
    facts = (
        f"  {len(grads_of_rank)} ranks, gradients with {numbers[0]} elements, "
        f"bucket_size={bucket_size}.\n"
        f"  Elements in your calls of all_reduce: {numbers[1]}\n"
        f"  Buckets from the first tensor to the last: {numbers[2]}\n"
        f"  or from the last to the first: {numbers[3]}"
    )
    if len(grads_of_rank) == 1 and not calls:
        return facts, []  # one rank alone is its own mean
    too_many = len(calls) > max(map(len, ways))
    right = sorted(calls) in map(sorted, ways)
    ends = set(accumulate(calls))
    whole = ends <= set(accumulate(sizes)) or ends <= set(accumulate(sizes[::-1]))
    return facts, [
        (not calls, "not-exchanged"),
        (0 in calls, "empty-call"),
        (sum(calls) > sum(sizes), "sent-twice"),
        (any(n > bucket_size and n not in sizes for n in calls), "bucket-too-large"),
        (too_many and len(calls) >= len(sizes), "one-call-for-each-tensor"),
        (not right and set(calls[:-1]) == {bucket_size}, "tensors-cut-apart"),
        (too_many and whole, "too-many-calls"),
        (not right, "buckets-out-of-order"),
    ]


def check_average_gradients(candidate: Callable) -> Passed:
    """Check ``average_gradients(grads, world_size, all_reduce, bucket_size)``."""

    def case(seed: int, size: int, shapes: list[tuple], bucket_size: int) -> Case:
        draw = draws(seed)
        grads = [[draw(*shape) for shape in shapes] for _ in range(size)]
        for rank in range(0, size, 2):
            grads[rank][-1].zero_()  # such as a part that these ranks' images did not reach
        return Case(grads, bucket_size)

    def truth(grads_of_rank: list, bucket_size: int) -> list:
        means = [torch.stack(gs).mean(dim=0) for gs in zip(*grads_of_rank, strict=True)]
        return [means] * len(grads_of_rank)

    return _judge_ranks(
        candidate,
        average_gradients,
        _execute_average,
        truth,
        cases=[
            case(2, 4, [(2, 2), (3,), (2, 3), (1,), (4,)], 7),
            case(1, 2, [(2,), (3,)], 10),
            case(3, 3, [(1,), (3, 4), (), (2, 2), (2,), (3,)], 6),
            case(5, 2, [(9,), (2,), (1, 3), (4,), (1,), (2,)], 7),
            case(6, 1, [(2, 3), (4,)], 4),
        ],
        faults=_average_faults,
    )


# --- shards of the data set ---------------------------------------------------------------------


def check_shard_indices(candidate: Callable) -> Passed:
    """Check ``shard_indices(n, rank, world_size, epoch, seed=0, drop_last=False)``."""
    settings = [(7, 3, 1, {}), (8, 2, 0, {}), (10, 4, 3, {"seed": 5})]
    settings += [(10, 4, 2, {"seed": 2, "drop_last": True}), (9, 3, 4, {"drop_last": True})]
    settings += [(2, 5, 1, {"seed": 1}), (5, 1, 2, {})]

    def in_time(function: Callable, n, rank, world_size, epoch, **options) -> Any:
        call = lambda: function(n, rank, world_size, epoch, **options)  # noqa: E731
        return _in_time(call) if function is candidate else call()

    in_time.runs_here = True
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        passed = compare(
            candidate,
            reference=shard_indices,
            cases=[
                Case(n, rank, size, epoch, **options)
                for n, size, epoch, options in settings
                for rank in range(size)
            ],
            use=in_time,
            forbidden={
                "DistributedSampler.__init__": """You let torch's DistributedSampler do it. It is
                what you are building here: torch.randperm, the length, and a slice."""
            },
        )
        if not torch.equal(before, torch.get_rng_state()):
            facts = "  torch's global random generator is no longer where it was before the calls."
            raise _fault(shard_indices, "global-seed", facts, f"shard_indices {BUT_NOT_SO}")
    return passed


def _in_time(call: Callable) -> Any:
    """What ``call()`` returns.

    Raises:
        CheckFailed: it does not end.
    """
    return _run_ranks(lambda link: call(), [()]).results[0]


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
        elif name == "mul" and all(isinstance(a, Tensor) for a in args[:2]):
            larger = result.numel() > max(a.numel() for a in args[:2])
            self.total += result.numel() if larger else 0  # a product written as x[:, None] * w
        return result


def _execute_tensor_parallel(function: Callable, x, w1, b1, w2, b2, world_size) -> Run:
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


def _tensor_parallel_faults(run: Run, x, w1, b1, w2, b2, world_size) -> Faults:
    batch, hidden = x.shape[0], w1.shape[0]
    wanted = batch * hidden * (w1.shape[1] + w2.shape[0]) // world_size
    elements = batch * w2.shape[0]
    calls = run.reductions[0]
    facts = (
        f"  {world_size} ranks, x {tuple(x.shape)}, w1 {tuple(w1.shape)}, w2 {tuple(w2.shape)}.\n"
        f"  Multiplications of the busiest rank: {max(run.multiplications)}; "
        f"its share: {wanted}\n"
        f"  Elements in your calls of all_reduce: {', '.join(map(str, calls)) or 'no calls'}; "
        f"expected: {elements}"
    )
    if world_size == 1:
        return facts, []
    return facts, [
        (not calls, "everything-on-every-rank"),
        (len(calls) > 1, "too-many-all-reduces"),
        (max(run.multiplications) > wanted, "too-much-work"),
        (calls != [elements], "reduced-too-much"),
    ]


def check_tensor_parallel_linear(candidate: Callable) -> Passed:
    """Check ``tensor_parallel_linear(x, w1, b1, w2, b2, rank, world_size, all_reduce)``."""

    with _CountMultiplications():  # the first use imports much: not within the time limit
        torch.ones(1) * 2

    def case(seed: int, batch: int, features: int, hidden: int, out: int, size: int) -> Case:
        draw = draws(seed)
        w1, w2 = draw(hidden, features), draw(out, hidden)
        return Case(draw(batch, features), w1, draw(hidden), w2, draw(out), size)

    def truth(x, w1, b1, w2, b2, world_size):
        return [torch.relu(x @ w1.T + b1) @ w2.T + b2] * world_size

    # square weights first
    sizes = [(2, 6, 6, 6, 2), (3, 5, 8, 3, 2), (4, 2, 6, 1, 3), (1, 7, 12, 5, 4), (2, 3, 5, 4, 1)]
    return _judge_ranks(
        candidate,
        tensor_parallel_linear,
        _execute_tensor_parallel,
        truth,
        cases=[case(seed, *size) for seed, size in enumerate(sizes, 1)],
        faults=_tensor_parallel_faults,
    )


# --- a pipeline schedule ------------------------------------------------------------------------


def check_pipeline_schedule(candidate: Callable) -> Passed:
    """Check ``pipeline_schedule(stage, num_stages, num_microbatches)``.

    Every schedule passes that does each operation once, needs no more time than 1F1B and stores
    no more activations on any stage.
    """
    seen = {}

    def all_stages(function: Callable, num_stages: int, num_microbatches: int) -> str | None:
        stages = range(num_stages)
        lists = _in_time(lambda: [function(s, num_stages, num_microbatches) for s in stages])
        if None in lists:
            return None
        if function is candidate:
            seen[num_stages, num_microbatches] = repr(lists)
        if found := schedules.fault(lists, num_microbatches):
            raise _fault(pipeline_schedule, *found)
        return "a good schedule"

    all_stages.runs_here = True
    settings = [(3, 4), (2, 3), (4, 6), (1, 2), (4, 2), (3, 8), (5, 5), (2, 1)]
    cases = [Case(*sizes) for sizes in settings]
    passed = compare(
        candidate, reference=pipeline_schedule, cases=cases, use=all_stages, small_changes=False
    )
    for (stages, count), lists in reversed(seen.items()):
        if repr([candidate(stage, stages, count) for stage in range(stages)]) != lists:
            raise CheckFailed(
                "pipeline_schedule is not right yet: called again with the same arguments, it gave "
                "another answer.\nDoes it change a variable from outside, or use random numbers?",
                "unsteady",
            )
    return passed
