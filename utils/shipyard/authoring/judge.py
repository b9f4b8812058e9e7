"""The process that judges one hand-in: ``python -m shipyard.authoring.judge < request > verdict``.

The learner's code runs in another process (`shipyard.authoring.learner`). Each check is run twice:

- **out here**, by the solution's own cells, with functions that are only reached through a pipe
  (`shipyard.remote`). This verdict gives the points, and no learner's code is near it;
- **in there**, as the learner ran it in the notebook, after the first. It gives the words, and it
  can take points away: it sees what cannot be seen through a pipe, such as a changed input.

A cell or a check that runs too long, or ends its process, fails alone: a new process goes on
without it. Where cells have raised before, it goes on without these first, and tries again.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from shipyard.authoring import handin, sandbox, wire
from shipyard.authoring.learner import make_shell, run_cell
from shipyard.errors import AuthoringError
from shipyard.remote import decode, encode, read_reply

START_SECONDS = 120  # a cold disk reads PyTorch slowly
CELLS_WORTH = 5  # a hand-in may take so many times the seconds of one cell


class Stopped(BaseException):
    """The learner's process was ended, or ended itself; no check may catch this."""


class Learner:
    """The learner's process, as seen from here."""

    def __init__(self, sandboxed: bool, timeout: float, budget: float):
        self.timeout, self.stopped, self.number = timeout, "", 0
        self.open: dict[int, queue.Queue] = {}
        self.sending = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        mode = "sandbox" if sandboxed else "open"
        arguments = ["-m", "shipyard.authoring.learner", str(int(budget) + START_SECONDS), mode]
        environment = sandbox.environment()
        if not sandboxed:
            environment["HOME"] = self.folder.name
        self.process = subprocess.Popen(
            sandbox.command(arguments, sandboxed), env=environment, cwd=self.folder.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.give(START_SECONDS)
        if wire.receive(self.process.stdout) is None:
            self.end()
            raise AuthoringError("The learner's process did not start.")
        threading.Thread(target=self.read, daemon=True).start()

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process and what it started, as far as the system can tell."""
        if hasattr(os, "killpg") and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def give(self, seconds: float | None = None) -> None:
        """The time for one cell begins."""
        self.deadline = time.monotonic() + (self.timeout if seconds is None else seconds)

    def read(self) -> None:
        """Sort replies by the call that they belong to; the queues are short, so floods wait."""
        while (message := wire.receive(self.process.stdout)) is not None:
            waiting = self.open.get(message.get("call"))
            if waiting is not None:
                waiting.put(message)
        self.stop("ended its process, or sent what is no answer")

    def stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason

    def ask(self, request: dict, lent: list | tuple = ()) -> dict:
        """Send a request, serve its calls of the functions in ``lent``, and return the reply.

        Raises:
            Stopped: the time is over, or the process has ended.
        """
        with self.sending:
            self.number += 1
            number = self.number
        self.open[number] = queue.Queue(maxsize=2)
        self.send({"call": number, **request})
        while True:
            message = self.wait(number)
            if "back" not in message:
                del self.open[number]
                return message
            try:
                args, options = decode(message["given"], lambda _: None)
                function = lent[message["back"]]
            except Exception as error:
                raise ValueError("a call that cannot be read") from error
            self.send({"call": number, "returned": encode(function(*args, **options), _not_kept)})

    def send(self, message: dict) -> None:
        try:
            with self.sending:
                wire.send(self.process.stdin, message)
        except OSError:
            self.stop("ended its process")

    def wait(self, number: int) -> dict:
        while True:
            try:  # in short steps: a check may end its thread in between
                return self.open[number].get(timeout=0.05)
            except queue.Empty:
                if time.monotonic() > self.deadline:
                    self.stop(f"ran longer than {self.timeout:g} seconds")
                if self.stopped:
                    raise Stopped(self.stopped) from None


def _not_kept(value: Any) -> dict:
    raise TypeError(f"a {type(value).__name__} cannot be sent to another process")


class Judge:
    """Runs the cells of one hand-in and collects the verdicts on its tasks."""

    def __init__(self, cells: tuple[handin.Cell, ...], sandboxed: bool, timeout: float):
        self.cells, self.sandboxed, self.timeout = cells, sandboxed, timeout
        self.shell = make_shell()
        self.skipped: dict[int, str] = {}  # cells that the next process goes on without
        self.faults: dict[int, str] = {}  # answer cells that raised
        self.verdicts: dict[int, dict] = {}
        self.ran: set[int] = set()  # locked cells, which run once out here
        self.names: list[str] = []
        self.end_of_time = time.monotonic() + CELLS_WORTH * timeout + START_SECONDS

    def verdict(self) -> list[dict]:
        """Points, diagnosis and message of every task."""
        while not self.pass_through():
            pass
        return [
            {"task": cell.name, "max_points": cell.points, **self.verdicts[index]}
            for index, cell in enumerate(self.cells)
            if cell.kind in ("check", "by-hand")
        ]

    def pass_through(self) -> bool:
        """One life of the learner's process; True where it came to the end of the notebook."""
        self.names = []
        with Learner(self.sandboxed, self.timeout, CELLS_WORTH * self.timeout) as learner:
            for index, cell in enumerate(self.cells):
                if index in self.skipped or index in self.verdicts:
                    continue
                if time.monotonic() > self.end_of_time:
                    learner.stop(f"all of it together ran longer than {CELLS_WORTH} cells may")
                    self.give_up(learner.stopped)
                    return True
                learner.give()
                with suppress(Stopped):
                    self.take(index, cell, learner)
                if not learner.stopped:
                    continue
                suspects = self.faults.keys() - self.skipped.keys() - {index}
                if suspects:  # what a cell left behind as it raised may end the process later
                    self.skipped |= {i: self.faults[i] for i in suspects}
                else:
                    self.skipped[index] = learner.stopped
                    if cell.kind == "check":
                        self.verdicts[index] = _lost(f"The code {learner.stopped}.")
                return False
        return True

    def give_up(self, reason: str) -> None:
        for index, cell in enumerate(self.cells):
            if cell.kind in ("check", "by-hand"):
                self.verdicts.setdefault(index, _lost(f"Not run: {reason}."))

    def take(self, index: int, cell: handin.Cell, learner: Learner) -> None:
        if cell.kind == "by-hand":
            self.verdicts[index] = _lost("This answer is marked by hand.")
        elif cell.kind == "check":
            self.verdicts[index] = self.check(cell, learner)
        else:
            reply = learner.ask({"do": "cell", "source": cell.source})
            if cell.kind == "answer" and "raised" in reply:
                self.faults[index] = f"raised {str(reply['raised'])[:500]}"
            self.names += cell.defines
            if cell.kind == "locked" and index not in self.ran:
                self.ran.add(index)
                self.fetch(learner)
                run_cell(self.shell, cell.source)

    def fetch(self, learner: Learner) -> None:
        """What the answers define, under its names: data as it is, functions as remote ones."""
        for name in self.names:
            self.shell.user_ns.pop(name, None)
        reply = learner.ask({"do": "names", "names": self.names})
        try:
            found = read_reply(reply, learner.ask)
            self.shell.user_ns.update({n: found[n] for n in self.names if n in found})
        except Exception:
            return  # then the check misses them, and says so

    def check(self, cell: handin.Cell, learner: Learner) -> dict:
        self.fetch(learner)
        outside = run_cell(self.shell, cell.source)
        if learner.stopped:
            raise Stopped(learner.stopped)
        learner.give()
        inside = learner.ask({"do": "cell", "source": cell.source})
        claim = inside.get("raised")
        if claim is not None:
            words = str(claim)[:4000]
            if words.startswith("NameError"):
                words += self.why_missing()
            return _lost(words, str(inside.get("diagnosis", ""))[:100])
        if "raised" in outside:
            return _lost(
                "The check passed beside the learner's code and not away from it, where only "
                f"answers count. Look at this answer.\n{outside['raised']}",
                "not-confirmed",
            )
        return {"points": cell.points, "diagnosis": "", "message": ""}

    def why_missing(self) -> str:
        """What became of the answer cells that defined nothing, one in each line."""
        faults = {**self.faults, **self.skipped}
        return "".join(f"\nThe cell {self.cells[i].name} {why}" for i, why in faults.items())


def _lost(message: str, diagnosis: str = "") -> dict:
    return {"points": 0.0, "diagnosis": diagnosis, "message": message}


def judge(request: dict) -> dict:
    """The whole verdict on a hand-in, or its problem."""
    try:
        found = handin.rebuild(Path(request["path"]), Path(request["solutions"]))
        tasks = Judge(found.cells, request["sandbox"], request["timeout"]).verdict()
    except AuthoringError as error:
        return {"problem": str(error)}
    except Exception as error:  # whatever is wrong with this file, the others are graded
        return {"problem": f"It could not be graded ({type(error).__name__}: {error})."}
    return {"lab": found.lab, "tasks": tasks, "note": found.note}


def main() -> None:
    """Read the request, write the verdict; end where the one who asked has ended."""
    request = json.loads(sys.stdin.readline())
    verdict = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # locked cells print
    os.dup2(nothing, 2)
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    json.dump(judge(request), verdict)
    verdict.flush()
    os._exit(0)  # threads of a check may be left


def _end_with_the_asker() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
