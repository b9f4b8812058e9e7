"""The process of one learner: ``python -m shipyard.authoring.learner SECONDS sandbox|open``.

It runs the cells that it is sent and serves the functions that they define (see
`shipyard.remote`). It also runs a check as the learner would, for the words of the check:
they are told to the learner, and earn nothing. All that it says is an answer or a claim.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, BinaryIO

from shipyard.authoring import sandbox, wire
from shipyard.remote import Served, warm_up


def main() -> None:
    """Serve until the other side hangs up."""
    source, sink = _private_streams()
    shell = make_shell()
    warm_up()
    sandboxed = sys.argv[2] == "sandbox"
    sandbox.restrict(sandboxed, int(sys.argv[1]))
    desk = _Desk(shell, source, sink)
    desk.send({"ready": True})
    threading.Thread(target=desk.read, daemon=True).start()
    desk.work()


def make_shell() -> Any:
    """An IPython that keeps no history; magics, plots and ``await`` work as in a notebook."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    settings = Config()
    settings.HistoryManager.enabled = False
    return InteractiveShell.instance(config=settings)


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of this process; what a learner's code reads and prints goes to nobody."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    return source, sink


class _Desk:
    """Takes requests: cells and checks one by one, calls of functions at once.

    The ranks of a distributed task call each other's turn, so that several calls can be open.
    """

    def __init__(self, shell: Any, source: BinaryIO, sink: BinaryIO):
        self.shell, self.source, self.sink = shell, source, sink
        self.served, self.lock = Served(), threading.Lock()
        self.cells: queue.Queue = queue.Queue()
        self.returned: dict[int, queue.Queue] = {}

    def send(self, message: dict) -> None:
        with self.lock:
            wire.send(self.sink, message)

    def read(self) -> None:
        """Hand out what comes; a closed pipe ends the process."""
        try:
            while (message := wire.receive(self.source)) is not None:
                number = message["call"]
                if "returned" in message:
                    self.returned[number].put(message["returned"])
                elif message["do"] == "call":
                    threading.Thread(target=self.serve, args=(message,), daemon=True).start()
                else:
                    self.cells.put(message)
        finally:
            os._exit(0)

    def work(self) -> None:
        """Cells, checks and whole evaluations: in the main thread, as in a notebook."""
        while True:
            self.serve(self.cells.get())

    def serve(self, message: dict) -> None:
        number = message["call"]
        self.returned[number] = queue.Queue()

        def call_back(place: int, given: Any) -> Any:
            self.send({"call": number, "back": place, "given": given})
            return self.returned[number].get()

        self.send({"call": number, **self.answer(message, call_back)})

    def answer(self, message: dict, call_back: Any) -> dict:
        if message["do"] == "cell":
            return run_cell(self.shell, message["source"])
        if message["do"] == "names":
            known = {n: self.shell.user_ns[n] for n in message["names"] if n in self.shell.user_ns}
            return {"value": self.served.encode(known)}
        return self.served.answer(message, call_back)


def run_cell(shell: Any, source: str) -> dict:
    """Run one cell; the reply says what it raised, with the diagnosis where a check knows it."""
    result = shell.run_cell(source, store_history=False)
    error = result.error_before_exec or result.error_in_exec
    if error is None:
        return {"value": None}
    try:
        words = f"{type(error).__name__}: {error}"
        return {"raised": words[:4000], "diagnosis": str(getattr(error, "diagnosis", ""))[:100]}
    except BaseException as failure:  # an exception may be of the learner's own making
        return {"raised": type(failure).__name__, "diagnosis": ""}


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, json.JSONDecodeError):
        os._exit(1)
