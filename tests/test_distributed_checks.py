"""Ranks that take turns in one process, and the bounds that its checks demand."""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DistributedSampler

from shipyard.checks import CheckFailed, distributed, ranks, schedules
from shipyard.checks.ranks import run_ranks
from wrong_answers import distributed as bank


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert not left


def world(size, n=1):
    return [(torch.full((n,), float(rank)), rank) for rank in range(size)]


def failure_of(function, size=3, **settings):
    with pytest.raises(CheckFailed) as caught:
        run_ranks(function, world(size), **settings)
    return caught.value


# --- Messages -------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_are_counted_on_their_link():
    def talk(x, rank, link):
        if rank == 0:
            for value in range(3):
                link.send(torch.full((4,), float(value)), 1)
            return None
        return [link.recv(0)[0].item() for _ in range(3)]

    run = run_ranks(talk, world(2))
    assert run.results[1] == [0, 1, 2]
    assert [(m.src, m.dst, m.elements, m.bytes) for m in run.messages] == [(0, 1, 4, 16)] * 3
    assert "0 → 1" in run.traffic()
    assert not run.unread


def test_a_message_is_a_copy_made_when_it_is_sent():
    def change_after_sending(x, rank, link):
        if rank == 0:
            link.send(x, 1)
            x += 100
            return x
        return link.recv(0)

    run = run_ranks(change_after_sending, world(2))
    assert run.results[1].item() == 0


def test_what_nobody_receives_is_reported():
    run = run_ranks(lambda x, rank, link: link.send(x, 1) if rank == 0 else None, world(2))
    assert run.unread == {(0, 1): 1}
    assert "1 from 0 to 1, never received" in repr(run)


def test_two_runs_are_the_same_in_every_message():
    def gossip(x, rank, link):
        for step in range(1, 5):
            link.send(x + step, (rank + step) % 5)
            x = x + link.recv((rank - step) % 5)
        return x

    first, second = (run_ranks(gossip, world(5)) for _ in range(2))
    assert first.messages == second.messages
    assert [t.tolist() for t in first.results] == [t.tolist() for t in second.results]


def test_all_reduce_sums_and_leaves_its_argument_alone():
    def total(x, rank, link):
        return link.all_reduce(x), x

    run = run_ranks(total, world(4, n=3))
    for rank, (got, own) in enumerate(run.results):
        assert got.tolist() == [6, 6, 6]
        assert own.tolist() == [rank] * 3
    assert run.reductions == [[3]] * 4


def test_the_runs_of_a_notebook_show_results_and_messages():
    run = distributed.run_ranks(bank.goes_round_to_the_right, [torch.ones(6)] * 3)
    assert "rank 2: float32 tensor of shape (6,): [3, 3, 3, 3, 3, 3]" in repr(run)
    assert repr(run).count("→") == 4


# --- What would hang ------------------------------------------------------------------------


def test_a_deadlock_ends_at_once_and_says_who_waits_for_whom():
    start = time.monotonic()
    failure = failure_of(lambda x, rank, link: link.recv((rank + 1) % 3), limit=60)
    assert time.monotonic() - start < 5
    assert failure.diagnosis == "deadlock"
    for rank in range(3):
        assert f"rank {rank} waits in recv({(rank + 1) % 3})" in str(failure)
    assert "let each rank send first" in str(failure)


def test_waiting_for_a_rank_that_has_finished_ends_at_once():
    failure = failure_of(lambda x, rank, link: link.recv(0) if rank else None, limit=60)
    assert failure.diagnosis == "waits-for-a-finished-rank"
    assert "rank 2 waits in recv(0), but rank 0 has finished" in str(failure)


def test_an_all_reduce_that_some_do_not_call_names_them():
    failure = failure_of(lambda x, rank, link: link.all_reduce(x) if rank == 1 else x, limit=60)
    assert failure.diagnosis == "ranks-disagree"
    assert "its call number 1 for rank 0, 2" in str(failure)


def test_an_all_reduce_with_different_shapes_shows_them():
    failure = failure_of(lambda x, rank, link: link.all_reduce(torch.ones(rank + 1)))
    assert failure.diagnosis == "ranks-disagree"
    assert "rank 2: float32 tensor of shape (3,)" in str(failure)


def test_an_endless_loop_is_stopped_and_its_line_is_shown():
    def spin(x, rank, link):
        while rank == 1:
            x = x + 1

    start = time.monotonic()
    failure = failure_of(spin, limit=0.3)
    assert time.monotonic() - start < 5
    assert failure.diagnosis == "time-out"
    assert "Rank 1 of 3 was still busy" in str(failure)
    assert "x = x + 1" in str(failure) or "while rank == 1" in str(failure)


def test_the_limit_of_a_check_is_the_one_of_the_module(monkeypatch):
    monkeypatch.setattr(ranks, "TIME_LIMIT", 0.2)
    with pytest.raises(CheckFailed, match=r"busy after 0\.2 seconds") as caught:
        distributed.check_ring_all_reduce(bank.never_counts_its_steps)
    assert caught.value.diagnosis == "time-out"


def test_a_dead_rank_ends_the_others_at_once_with_its_own_traceback():
    def die(x, rank, link):
        if rank == 2:
            raise KeyError("no such image")
        return link.recv((rank + 1) % 3)

    start = time.monotonic()
    with pytest.raises(KeyError, match="no such image") as caught:
        run_ranks(die, world(3), limit=60)
    assert time.monotonic() - start < 5
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert 'raise KeyError("no such image")' in lines
    assert caught.value.__notes__ == ["It happened in rank 2 of 3."]


def test_a_check_says_in_which_rank_it_happened():
    with pytest.raises(CheckFailed, match=r"disk full[^$]*rank 2 of 3") as caught:
        distributed.check_ring_all_reduce(bank.one_rank_dies)
    assert isinstance(caught.value.__cause__, ValueError)


def test_exit_in_a_rank_does_not_end_the_notebook():
    def leave(x, rank, link):
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit was raised: 3"):
        run_ranks(leave, world(2))


def test_a_rank_that_catches_everything_is_ended_too():
    def stubborn(x, rank, link):
        try:
            return link.recv((rank + 1) % 3)
        except BaseException:
            return x

    assert failure_of(stubborn, limit=60).diagnosis == "deadlock"


def test_a_thread_that_nothing_stops_is_spoken_of():
    def blocked(x, rank, link):
        time.sleep(2 if rank == 1 else 0)  # one long call: no exception can reach it

    failure = failure_of(blocked, limit=0.2)
    assert failure.diagnosis == "time-out"
    assert "The thread of rank 1 could not be stopped" in str(failure)
    time.sleep(1)


def test_a_loop_that_catches_every_exception_is_stopped_all_the_same():
    def stubborn(x, rank, link):
        while True:
            try:
                x = x + 1
            except BaseException:
                x = x - 1

    failure = failure_of(stubborn, limit=0.2)
    assert failure.diagnosis == "time-out"
    assert "could not be stopped" not in str(failure)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_many_runs_in_a_row_end(size):
    for _ in range(40):
        run = run_ranks(lambda x, rank, link: link.all_reduce(x), world(size))
        assert run.results[0].item() == sum(range(size))


# --- The bounds that the checks demand ------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        distributed.ring_all_reduce,
        distributed.average_gradients,
        distributed.tensor_parallel_linear,
        distributed.pipeline_schedule,
        distributed.shard_indices,
    ],
)
def test_each_reference_passes_its_own_check(task):
    check = getattr(distributed, f"check_{task.__name__}")
    check(lambda *args, **options: task(*args, **options))


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shards_are_those_of_torch(drop_last):
    for n, size, seed, epoch in itertools.product([1, 6, 7, 10], [1, 3, 4], [0, 5], [0, 2]):
        for rank in range(size):
            sampler = DistributedSampler(range(n), size, rank, seed=seed, drop_last=drop_last)
            sampler.set_epoch(epoch)
            shard = distributed.shard_indices(n, rank, size, epoch, seed, drop_last)
            assert shard == list(sampler)


def test_a_fault_on_many_links_is_told_in_a_screenful():
    with pytest.raises(CheckFailed) as caught:
        distributed.check_ring_all_reduce(bank.sends_everything_to_everyone)
    assert "… and 12 links more" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 25


def test_multiplications_without_a_matrix_product_are_counted_too():
    x, w = torch.ones(2, 3), torch.ones(5, 3)
    with distributed._CountMultiplications() as counter:
        (x[:, None] * w).sum(-1)
        x * (x > 0)  # a mask is no product with weights
    assert counter.total == 2 * 5 * 3


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_ring_sends_what_the_formula_says(size):
    n = 8 * size
    run = distributed.run_ranks(bank.goes_round_to_the_right, [torch.ones(n)] * size)
    for rank in range(size):
        sent = [m for m in run.messages if m.src == rank]
        assert len(sent) == 2 * (size - 1)
        assert sum(m.bytes for m in sent) == 2 * (size - 1) * n // size * 4
        assert {m.dst for m in sent} == {(rank + 1) % size}


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_1f1b_reaches_the_time_and_the_memory_that_the_check_asks_for(stages, count):
    lists = [bank.warms_up_then_pairs_then_cools_down(s, stages, count) for s in range(stages)]
    start, stuck = schedules.simulate(lists)
    assert not stuck
    ends = [t + schedules.SECONDS[kind] for (_, kind, _), t in start.items()]
    assert max(ends) == (count + stages - 1) * 3
    assert [schedules.peak(ops) for ops in lists] == [min(count, stages - s) for s in range(stages)]


def test_the_simulated_times_keep_every_dependency_and_never_overlap():
    lists = [bank.warms_up_then_pairs_then_cools_down(s, 4, 6) for s in range(4)]
    start, _ = schedules.simulate(lists)
    end = {key: t + schedules.SECONDS[key[1]] for key, t in start.items()}
    assert len(start) == 4 * 6 * 2
    for (stage, kind, m), t in start.items():
        before = {"F": (stage - 1, "F", m), "B": (stage + 1, "B", m)}[kind]
        assert t >= end.get(before, 0)
        if kind == "B":
            assert t >= end[stage, "F", m]
    for stage in range(4):
        spans = sorted((start[key], end[key]) for key in start if key[0] == stage)
        assert all(a_end <= b for (_, a_end), (b, _) in pairwise(spans))


def test_a_gpipe_schedule_takes_as_long_and_is_drawn_in_the_message():
    with pytest.raises(CheckFailed) as caught:
        distributed.check_pipeline_schedule(bank.does_all_forward_first)
    message = str(caught.value)
    assert "stage 1  ·  F0 F1 F2 F3 ·  ·  ·  B0 B0 B1 B1 B2 B2 B3 B3" in message
    assert "time: 18 units; possible: 18" in message
    assert "by stage: [4, 4, 4]; needed: [3, 2, 1]" in message


def test_matrix_products_are_counted_however_they_are_written():
    x, w = torch.ones(2, 3), torch.ones(5, 3)
    forms = [
        lambda: x @ w.T,
        lambda: torch.nn.functional.linear(x, w),
        lambda: torch.nn.functional.linear(x, w, torch.ones(5)),
        lambda: torch.einsum("bi,oi->bo", x, w),
        lambda: torch.stack([w @ row for row in x]),
    ]
    for form in forms:
        with distributed._CountMultiplications() as counter:
            form()
        assert counter.total == 2 * 5 * 3


def test_checking_shards_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    distributed.check_shard_indices(bank.counts_round_with_modulo)
    with pytest.raises(CheckFailed):
        distributed.check_shard_indices(bank.seeds_all_of_torch)
    assert torch.equal(torch.get_rng_state(), before)


def test_tasks_1_and_2_work_together():
    def step(x, rank, world_size, send, recv):
        def all_reduce(tensor):
            return bank.goes_round_to_the_right(tensor, rank, world_size, send, recv)

        return bank.fills_buckets_greedily([x[:4], x[4:]], world_size, all_reduce, 10)

    run = distributed.run_ranks(step, [torch.full((6,), float(rank)) for rank in range(4)])
    assert [g.tolist() for g in run.results[3]] == [[1.5] * 4, [1.5] * 2]
