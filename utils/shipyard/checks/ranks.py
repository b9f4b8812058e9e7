"""Ranks in one process: a thread for each, and messages that are counted.

    run = run_ranks(function, [arguments of rank 0, arguments of rank 1, ...])

``function`` gets the arguments of its rank and a `Link`, through which it talks to the others.
The ranks take turns. Only one works at a time, until it must wait for a message or is done, so
that a run is the same each time. No run hangs:

- If nobody can go on, the run ends at once, and the message says who waits for whom.
- If one rank raises, all others end, and its own exception is what comes out.
- If one rank works longer than `TIME_LIMIT`, the message shows the line where it is.

The threads that are left are ended: one that waits by an exception inside its wait, one that
works by an exception that Python raises between two of its operations. Where neither helps, such
as inside one long call, the message says that the thread is still at work.
"""

from __future__ import annotations

import ctypes
import reprlib
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shipyard.checks import CheckFailed
from shipyard.checks.differences import describe

STUCK = {
    "deadlock": "All receive before anyone has sent: let each rank send first, then receive.",
    "messages": "Each of them waits for a message that the other sends later, or never. Count the "
    "calls in each phase: as many recv as send, and each send before its recv.",
    "waits-for-a-finished-rank": "Count again: for each recv(src) on one rank there must be a send "
    "to it on rank src. A rank that has finished sends no more.",
    "ranks-disagree": "all_reduce ends when every rank has called it. All ranks must make the same "
    "number of calls: no call inside an if that is true on some ranks only.",
}
STOPS = (*STUCK, "time-out", "not-a-tensor", "no-such-rank")  # diagnoses of a run without an end
TIME_LIMIT = 3.0  # seconds; a run of a lab takes milliseconds
_LIBRARIES = (str(Path(__file__).parent), str(Path(torch.__file__).parent), threading.__file__)


@dataclass(frozen=True)
class Message:
    """One tensor on its way from rank ``src`` to rank ``dst``."""

    src: int
    dst: int
    elements: int
    bytes: int


@dataclass
class Run:
    """What the ranks returned, and what they said to each other.

    ``results[rank]``, ``messages`` in the order of sending, ``reductions[rank]`` with the number
    of elements in each of its all_reduce calls, ``unread`` as a count of messages by (src, dst);
    ``multiplications[rank]`` where the caller counted them.
    """

    results: list
    messages: list[Message]
    reductions: list[list[int]]
    unread: Counter
    multiplications: list[int] = field(default_factory=list)

    def traffic(self, most: int | None = None) -> str:
        """A table: messages, elements and bytes on each link that was used, or on ``most``."""
        lines = ["    from → to   messages   elements   bytes"]
        links = sorted({(m.src, m.dst) for m in self.messages})
        for src, dst in links[:most]:
            sent = [m for m in self.messages if (m.src, m.dst) == (src, dst)]
            elements, size = sum(m.elements for m in sent), sum(m.bytes for m in sent)
            lines.append(f"    {src:>4} → {dst:<4} {len(sent):>8} {elements:>10} {size:>7}")
        if len(links) >= len(lines):
            lines.append(f"    … and {len(links) - len(lines) + 1} links more")
        return "\n".join(lines) if links else "    (no messages)"

    def __repr__(self) -> str:
        shown = [describe(v) if isinstance(v, Tensor) else reprlib.repr(v) for v in self.results]
        results = [f"    rank {rank}: {text}" for rank, text in enumerate(shown)]
        unread = [f"    {n} from {a} to {b}, never received" for (a, b), n in self.unread.items()]
        return "\n".join(["results", *results, "messages", self.traffic(), *unread])


def run_ranks(function: Callable, arguments: Sequence[tuple], limit: float | None = None) -> Run:
    """Call ``function(*arguments[rank], link)`` once for each rank, and wait for all.

    ``limit`` is in seconds, `TIME_LIMIT` by default.

    Raises:
        CheckFailed: the ranks wait for each other, take too long, or misuse their link.
        Exception: what the first rank to fail raised; a note says which rank it was.
    """
    return _World(len(arguments)).run(function, arguments, TIME_LIMIT if limit is None else limit)


@dataclass(frozen=True)
class Link:
    """What one rank can do: ``send(tensor, dst)``, ``recv(src)`` and ``all_reduce(tensor)``."""

    send: Callable[[Tensor, int], None]
    recv: Callable[[int], Tensor]
    all_reduce: Callable[[Tensor], Tensor]


class _Ended(SystemExit):
    """Ends a rank's thread without a word: threads let SystemExit pass in silence."""


@dataclass
class _Rank:
    thread: threading.Thread | None = None
    done: bool = False
    result: Any = None
    ready: Callable[[], bool] = lambda: True  # whether it could go on
    waits_for: int | None = None  # a rank, or None: for all of them
    reason: str = "has not begun"
    reductions: list[Tensor] = field(default_factory=list)


class _World:
    def __init__(self, size: int):
        self.ranks = [_Rank() for _ in range(size)]
        self.mail: dict[tuple[int, int], list[Tensor]] = {}
        self.messages: list[Message] = []
        self.changed = threading.Condition()
        self.turn = 0
        self.over = False
        self.told: set[int] = set()  # the ranks that know it
        self.asleep: set[int] = set()  # those that caught the news, and came back
        self.failure: Exception | None = None

    # --- a run, from the outside ---

    def run(self, function: Callable, arguments: Sequence[tuple], limit: float) -> Run:
        for number, rank in enumerate(self.ranks):
            work = (number, function, arguments[number])
            rank.thread = threading.Thread(
                target=self.live, args=work, name=f"rank {number}", daemon=True
            )
        try:
            for rank in self.ranks:
                rank.thread.start()
            with self.changed:
                if not self.changed.wait_for(lambda: self.over, limit):
                    self.end(self.too_slow(limit))
        finally:
            with self.changed:
                self.end()
            self.end_threads()
        if self.failure:
            self.tell_who_is_left(self.failure)
            raise self.failure
        return Run(
            [rank.result for rank in self.ranks],
            self.messages,
            [[t.numel() for t in rank.reductions] for rank in self.ranks],
            Counter({pair: len(queue) for pair, queue in self.mail.items() if queue}),
        )

    def live(self, number: int, function: Callable, arguments: tuple) -> None:
        """The life of one rank, in its own thread."""
        rank = self.ranks[number]
        try:
            with self.changed:
                self.wait_for_turn(number)
            rank.result = function(*arguments, self.link(number))
        except _Ended:
            return
        except BaseException as error:
            if not isinstance(error, Exception):  # exit() must not end the notebook
                error = RuntimeError(f"{type(error).__name__} was raised: {error}")
            if len(self.ranks) > 1:
                error.add_note(f"It happened in rank {number} of {len(self.ranks)}.")
            with self.changed:
                self.end(error)
            return
        with self.changed:
            rank.done = True
            self.pass_turn()

    def end(self, failure: Exception | None = None) -> None:
        """Nobody works on; the first failure is the one that counts."""
        if not self.over:
            self.over, self.failure = True, failure
            self.changed.notify_all()

    def end_threads(self) -> None:
        patience = time.monotonic() + 1.0
        for rank in self.ranks:
            if rank.thread.ident is None:
                continue
            rank.thread.join(0.2)  # one that waits sees that all is over
            while rank.thread.is_alive() and time.monotonic() < patience:
                identity = ctypes.c_ulong(rank.thread.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(_Ended))
                rank.thread.join(0.05)

    def tell_who_is_left(self, failure: Exception) -> None:
        left = [n for n, rank in enumerate(self.ranks) if rank.thread.is_alive()]
        busy = [str(number) for number in left if number not in self.asleep]
        if busy and isinstance(failure, CheckFailed):
            who = f"of rank {', '.join(busy)} " if len(self.ranks) > 1 else ""
            failure.args = (
                f"{failure}\nThe thread {who}could not be stopped (it is inside one long call, or "
                "catches every exception).\nWhile it works on, it may slow down all else: restart "
                "the kernel before you go on.",
            )

    # --- taking turns; all of this with the lock held ---

    def wait_for_turn(self, number: int) -> None:
        self.changed.wait_for(lambda: self.over or self.turn == number)
        while number in self.told:  # its `except:` caught the end: let it sleep, not run on
            self.asleep.add(number)
            self.changed.wait()
        if self.over:
            self.told.add(number)
            raise _Ended

    def wait(self, number: int, ready: Callable[[], bool], waits_for: int | None, reason: str):
        """Let others work until ``ready()``."""
        rank = self.ranks[number]
        rank.ready, rank.waits_for, rank.reason = ready, waits_for, reason
        if not ready():
            self.pass_turn()
        self.wait_for_turn(number)

    def pass_turn(self) -> None:
        """To the next rank that can go on. If there is none, all is done, or nobody ever will."""
        size = len(self.ranks)
        order = [(self.turn + step) % size for step in range(1, size + 1)]
        unfinished = [number for number in order if not self.ranks[number].done]
        able = [number for number in unfinished if self.ranks[number].ready()]
        if able:
            self.turn = able[0]
            self.changed.notify_all()
        else:
            self.end(self.stuck(sorted(unfinished)) if unfinished else None)

    # --- what a rank can do ---

    def link(self, number: int) -> Link:
        def send(tensor: Tensor, dst: int) -> None:
            self.check_tensor("send", tensor, "send(tensor, dst)")
            self.check_rank("send", dst, number)
            with self.changed:
                self.wait_for_turn(number)
                copy = tensor.detach().clone()
                self.mail.setdefault((number, int(dst)), []).append(copy)
                size = copy.numel() * copy.element_size()
                self.messages.append(Message(number, int(dst), copy.numel(), size))

        def recv(src: int) -> Tensor:
            self.check_rank("recv", src, number)
            with self.changed:
                queue = self.mail.setdefault((int(src), number), [])
                self.wait(number, lambda: bool(queue), int(src), f"recv({src})")
                return queue.pop(0)

        def all_reduce(tensor: Tensor) -> Tensor:
            self.check_tensor("all_reduce", tensor, "all_reduce(tensor)")
            mine = self.ranks[number].reductions
            call = len(mine)
            with self.changed:
                mine.append(tensor.detach().clone())
                everyone = [rank.reductions for rank in self.ranks]
                all_called = lambda: all(len(theirs) > call for theirs in everyone)  # noqa: E731
                self.wait(number, all_called, None, f"all_reduce, its call number {call + 1}")
                return self.total([theirs[call] for theirs in everyone], call)

        return Link(send, recv, all_reduce)

    def total(self, parts: list[Tensor], call: int) -> Tensor:
        shapes = [tuple(part.shape) for part in parts]
        if len(set(shapes)) > 1 or len({part.dtype for part in parts}) > 1:
            rows = "\n".join(f"    rank {r}: {describe(part)}" for r, part in enumerate(parts))
            raise CheckFailed(
                f"The ranks gave different tensors to all_reduce, in their call number {call + 1}:"
                f"\n{rows}\nAll ranks must make the same calls, in the same order, with the same "
                "shapes. Decide nothing by the values that a rank happens to have.",
                "ranks-disagree",
            )
        return torch.stack(parts).sum(dim=0)

    def check_tensor(self, name: str, tensor: Any, form: str) -> None:
        if not isinstance(tensor, Tensor):
            raise CheckFailed(
                f"{name} got {describe(tensor)} in the place of the tensor.\nIt is called as "
                f"{form}.",
                "not-a-tensor",
            )

    def check_rank(self, name: str, other: Any, own: int) -> None:
        size = len(self.ranks)
        is_rank = isinstance(other, int) and 0 <= other < size and other != own
        if not is_rank:
            reason = "that is itself" if other == own else f"the ranks are 0 to {size - 1}"
            if not isinstance(other, int):
                reason = "a rank is an int"
            raise CheckFailed(
                f"Rank {own} of {size} called {name} with rank {reprlib.repr(other)}, but "
                f"{reason}.\nIn a ring the last rank's neighbour is rank 0: "
                "(rank + 1) % world_size. A world of one rank sends nothing.",
                "no-such-rank",
            )

    # --- why a run did not end ---

    def stuck(self, unfinished: list[int]) -> CheckFailed:
        """Who waits for whom."""
        rows, slug = [], "deadlock"
        calls = [len(rank.reductions) for rank in self.ranks]
        for number, rank in enumerate(self.ranks):
            row = f"    rank {number} waits in {rank.reason}"
            if rank.done:
                row = f"    rank {number} has finished"
            elif rank.waits_for is None:
                slug = "ranks-disagree"
                missing = [str(n) for n, count in enumerate(calls) if count < calls[number]]
                row += f" for rank {', '.join(missing)}"
            elif self.ranks[rank.waits_for].done:
                slug = slug if slug == "ranks-disagree" else "waits-for-a-finished-rank"
                row += f", but rank {rank.waits_for} has finished"
            rows.append(row)
        where = _current_line(self.ranks[unfinished[0]].thread)
        text = "\n".join(["Nobody can go on, so this would run for ever (a deadlock):", *rows])
        text += f"\n{where and f'Rank {unfinished[0]} is {where}'}".rstrip()
        advice = STUCK["messages" if slug == "deadlock" and self.messages else slug]
        return CheckFailed(f"{textwrap.fill(advice, 92)}\n{text}", slug)

    def too_slow(self, limit: float) -> CheckFailed:
        where = _current_line(self.ranks[self.turn].thread)
        who = f"Rank {self.turn} of {len(self.ranks)}" if len(self.ranks) > 1 else "Your function"
        return CheckFailed(
            f"{who} was still busy after {limit:g} seconds; a right answer takes milliseconds.\n"
            f"It was stopped {where or 'while it worked.'}\nDoes a loop never end?",
            "time-out",
        )


def _current_line(thread: threading.Thread) -> str:
    """The line of the learner's code that a thread is at."""
    frame = sys._current_frames().get(thread.ident)
    stack = traceback.extract_stack(frame) if frame else []
    lines = [f for f in stack if f.line and not f.filename.startswith(_LIBRARIES)]
    return f"at line {lines[-1].lineno} of your code:\n    {lines[-1].line}" if lines else ""
