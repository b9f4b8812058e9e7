"""serving.batching: who goes together, who is refused, and that company changes no answer."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipyard.serving import MicroBatcher, QueueFull, ServingError


def rows(*values):
    return np.array(values, dtype=np.float32)[:, np.newaxis]


class Model:
    """Squares; notes the batches it saw; waits for ``go``, or takes ``seconds`` for a batch."""

    def __init__(self, seconds=0.0, go=None, fails_at=None):
        self.seen, self.seconds, self.go, self.fails_at = [], seconds, go, fails_at

    def __call__(self, batch):
        self.seen.append(batch.ravel().tolist())
        if self.go is not None:
            assert self.go.wait(20)
        time.sleep(self.seconds)
        if self.fails_at is not None and self.fails_at in batch:
            raise ValueError(f"cannot square {self.fails_at}")
        return batch**2


def run(scenario, model, **limits):
    """The outcome of ``scenario(batcher)`` on a loop of its own."""
    batcher = MicroBatcher(model, **limits)
    try:
        return asyncio.run(scenario(batcher))
    finally:
        batcher.close()


def test_what_arrives_while_the_worker_is_busy_forms_the_next_batch():
    go = threading.Event()
    model = Model(go=go)

    async def scenario(batcher):
        first = batcher.put(rows(1))
        others = [batcher.put(rows(value)) for value in (2, 3, 4)]
        go.set()
        return await asyncio.gather(first, *others), dict(batcher.batches)

    served, batches = run(scenario, model, largest_batch=8)
    assert model.seen == [[1], [2, 3, 4]]
    assert batches == {1: 1, 3: 1}
    assert [s.rows.item() for s in served] == [1, 4, 9, 16]
    assert [s.batch for s in served] == [1, 3, 3, 3]


def test_a_batch_starts_when_it_is_full_and_else_when_the_oldest_has_waited():
    model = Model()

    async def scenario(batcher):
        began = time.perf_counter()
        await asyncio.gather(*(batcher.put(rows(value)) for value in (1, 2, 3)))
        full = time.perf_counter() - began
        served = await batcher.put(rows(4))
        return full, served.queue_seconds

    full, lonely = run(scenario, model, largest_batch=3, longest_wait=0.4)
    assert model.seen == [[1, 2, 3], [4]]
    assert full < 0.4 <= lonely + 0.02


def test_a_lone_request_waits_for_nobody_unless_told_to():
    async def scenario(batcher):
        return await batcher.put(rows(1))

    assert run(scenario, Model()).queue_seconds < 0.3


def test_requests_are_never_split_nor_overtaken():
    go = threading.Event()
    model = Model(go=go)

    async def scenario(batcher):
        futures = [batcher.put(rows(*r)) for r in ([0], [1, 2], [3, 4, 5], [6])]
        go.set()
        return await asyncio.gather(*futures)

    run(scenario, model, largest_batch=4)
    assert model.seen == [[0], [1, 2], [3, 4, 5, 6]]


def test_a_full_queue_refuses_at_once_and_recovers():
    go = threading.Event()

    async def scenario(batcher):
        accepted = [batcher.put(rows(0))]
        accepted += [batcher.put(rows(i)) for i in range(4)]
        with pytest.raises(QueueFull):
            batcher.put(rows(9))
        accepted[1].cancel()  # whoever leaves makes room
        await asyncio.sleep(0)
        accepted.append(batcher.put(rows(5)))
        with pytest.raises(QueueFull):
            batcher.put(rows(9))
        go.set()
        answers = await asyncio.gather(*accepted, return_exceptions=True)
        return answers, batcher.queued_rows

    model = Model(go=go)
    answers, left = run(scenario, model, largest_batch=4, longest_queue=4)
    assert model.seen == [[0], [1, 2, 3, 5]], "a request that left never reaches the model"
    assert isinstance(answers[1], asyncio.CancelledError)
    assert left == 0


def test_a_request_that_the_model_cannot_answer_fails_alone():
    go = threading.Event()

    async def scenario(batcher):
        futures = [batcher.put(rows(value)) for value in (0, 1, 2, 3)]
        go.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    served = run(scenario, Model(go=go, fails_at=2), largest_batch=8)
    assert [s.rows.item() for s in (*served[:2], served[3])] == [0, 1, 9]
    assert "cannot square 2" in str(served[2])


@pytest.mark.parametrize(
    "limits", [{"largest_batch": 0}, {"largest_batch": 9, "longest_queue": 8}, {"longest_wait": -1}]
)
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ServingError, match="largest_batch ≤ longest_queue"):
        MicroBatcher(Model(), **limits)


ARRIVALS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([0, 0, 0.001, 0.003])), max_size=25
)


@settings(max_examples=40)
@given(ARRIVALS, st.integers(5, 9), st.sampled_from([0.0, 0.002]), st.data())
def test_whoever_waits_together_each_gets_the_answer_to_its_own_rows(arrivals, largest, wait, data):
    """Any arrivals, sizes and departures: nothing is lost, mixed up, split or over the limit."""
    leaving = data.draw(st.sets(st.integers(0, 24)))

    async def one(batcher, number, count):
        question = rows(*(10 * number + i for i in range(count)))
        future = batcher.put(question)
        if number in leaving:
            future.cancel()
            return
        np.testing.assert_array_equal((await future).rows, question**2)

    async def scenario(batcher):
        tasks = []
        for number, (count, pause) in enumerate(arrivals):
            tasks.append(asyncio.create_task(one(batcher, number, count)))
            await asyncio.sleep(pause)
        await asyncio.gather(*tasks)
        assert batcher.queued_rows == 0

    model = Model(seconds=0.001)
    run(scenario, model, largest_batch=largest, longest_wait=wait, longest_queue=1000)
    assert all(len(batch) <= largest for batch in model.seen)
