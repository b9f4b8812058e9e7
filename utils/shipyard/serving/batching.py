"""Dynamic micro-batching: requests that wait at the same time go through the model together.

requests → bounded queue → batch → one worker thread → each request gets its own rows back
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shipyard.errors import ServingError


class QueueFull(Exception):  # noqa: N818 (an answer to the caller, not a defect)
    """The queue holds as much as it may; the caller should come back later."""


@dataclass(frozen=True)
class Served:
    """The rows of one request after the model, and what was measured on their way.

    ``batch`` counts the rows that went through the model together, this request's among them.
    """

    rows: np.ndarray
    queue_seconds: float
    model_seconds: float
    batch: int


@dataclass(eq=False)
class _Waiting:
    rows: np.ndarray
    since: float
    future: asyncio.Future[Served]
    queued: bool = True


class MicroBatcher:
    """Runs ``model`` on batches of the requests that wait, in one worker thread.

    A batch starts when the worker is free and either ``largest_batch`` rows wait or the oldest
    request has waited ``longest_wait`` seconds. At 0 seconds nobody waits for company: batches
    grow by themselves under load, from the requests that arrive while the worker is busy.

    Belongs to one event loop at a time; only the model runs elsewhere.

    Args:
        model: array (n, …) → array (n, …), row by row: a row's answer depends on that row alone.
        largest_batch: rows that go through the model together at most.
        longest_wait: seconds that a request may wait for others to join it.
        longest_queue: rows that may wait; beyond them `put` refuses.

    Raises:
        ServingError: these limits do not go together.
    """

    def __init__(
        self,
        model: Callable[[np.ndarray], np.ndarray],
        *,
        largest_batch: int = 32,
        longest_wait: float = 0.0,
        longest_queue: int = 64,
    ):
        if not 1 <= largest_batch <= longest_queue or longest_wait < 0:
            raise ServingError(
                f"largest_batch is {largest_batch}, longest_queue {longest_queue} and longest_wait "
                f"{longest_wait}. Give 1 ≤ largest_batch ≤ longest_queue and longest_wait ≥ 0."
            )
        self.model = model
        self.largest_batch = largest_batch
        self.longest_wait = longest_wait
        self.longest_queue = longest_queue
        self.batches: Counter[int] = Counter()  # rows in a batch → batches of that size
        self.queued_rows = 0
        self._queue: deque[_Waiting] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        # A thread and a queue of our own: an executor's two futures would cost half as much
        # again as the two changes of thread.
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work_until_closed, name="model", daemon=True)
        self._thread.start()

    def put(self, rows: np.ndarray) -> asyncio.Future[Served]:
        """Queue the rows (n, …) of one request; the future brings them back after the model.

        A caller that no longer wants its answer cancels the future, or sets an exception: if its
        rows still wait, they never reach the model, and their place in the queue is free at once.

        Raises:
            QueueFull: the rows do not fit into the queue now.
        """
        if not 1 <= len(rows) <= self.largest_batch:
            raise ValueError(f"{len(rows)} rows; a request has 1 to {self.largest_batch}")
        if self.queued_rows + len(rows) > self.longest_queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rows, time.perf_counter(), loop.create_future())
        waiting.future.add_done_callback(lambda _: self._leave(waiting))
        self._queue.append(waiting)
        self.queued_rows += len(rows)
        self._start_batch_if_due(loop)
        return waiting.future

    def close(self) -> None:
        """End the worker thread; what it is running is finished first."""
        self._work.put(None)
        self._thread.join()

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.queued:  # its future is done before its turn came
            self._queue.remove(waiting)
            self._forget(waiting)

    def _forget(self, waiting: _Waiting) -> None:
        waiting.queued = False
        self.queued_rows -= len(waiting.rows)

    def _start_batch_if_due(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._running or not self._queue:
            return
        waited = time.perf_counter() - self._queue[0].since
        if self.queued_rows < self.largest_batch and waited < self.longest_wait:
            if self._timer is None:
                self._timer = loop.call_later(self.longest_wait - waited, self._timer_rang, loop)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take_batch()
        if not batch:
            return
        self._running = True
        self._work.put((batch, loop))

    def _timer_rang(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._start_batch_if_due(loop)

    def _take_batch(self) -> list[_Waiting]:
        batch, rows = [], 0
        while self._queue and rows + len(self._queue[0].rows) <= self.largest_batch:
            waiting = self._queue.popleft()
            self._forget(waiting)
            if not waiting.future.done():
                batch.append(waiting)
                rows += len(waiting.rows)
        return batch

    def _work_until_closed(self) -> None:
        """The worker thread."""
        while (work := self._work.get()) is not None:
            batch, loop = work
            outcomes = self._run(batch)
            with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(self._hand_out, batch, outcomes, loop)

    def _run(self, batch: list[_Waiting]) -> list[Served | Exception]:
        """What each request of the batch gets."""
        began = time.perf_counter()
        sizes = [len(waiting.rows) for waiting in batch]
        try:
            answers = self.model(np.concatenate([waiting.rows for waiting in batch]))
            parts = np.split(answers, np.cumsum(sizes)[:-1])
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # One request may have failed the others of its batch, so each is tried alone.
            return [outcome for waiting in batch for outcome in self._run([waiting])]
        seconds = time.perf_counter() - began
        self.batches[len(answers)] += 1
        return [
            Served(part, began - waiting.since, seconds, len(answers))
            for waiting, part in zip(batch, parts, strict=True)
        ]

    def _hand_out(
        self,
        batch: list[_Waiting],
        outcomes: list[Served | Exception],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._running = False
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.future.done():
                continue  # nobody waits for it any more
            if isinstance(outcome, Exception):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)
        self._start_batch_if_due(loop)
