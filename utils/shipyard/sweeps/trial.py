"""What a worker runs: one trial, in a process of its own.

The process (``python -m shipyard.sweeps.trial``) ends with its kernel as soon as nobody waits for
it any more: after Ctrl-C, a crash or a lost connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shipyard.authoring import CellError
from shipyard.authoring.files import topic_of
from shipyard.authoring.running import run_notebook
from shipyard.errors import AuthoringError

PATIENCE = 10.0  # seconds that a trial's process has to end its kernel

# The processes of this worker. Whoever closes the worker waits for them.
children: set[subprocess.Popen] = set()


class TrialDiedError(Exception):
    """The process of a trial ended without an answer."""


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """Dask task: run one trial in a process of its own and return its answer.

    Raises:
        TrialDiedError: the process was killed; the message has the last of what it said.
    """
    from distributed import get_worker

    worker = get_worker()
    task = worker.get_current_task()

    def wanted() -> bool:
        state = worker.state.tasks.get(task)
        running = state is not None and state.state in ("executing", "long-running")
        return running and worker.status.name not in ("closing", "closed", "failed")

    answer = None
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", "shipyard.sweeps.trial"], stdin=subprocess.PIPE, stderr=log,
            stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        ) as child,
    ):  # fmt: skip
        children.add(child)
        threading.Thread(target=_stop_when_unwanted, args=(child, wanted), daemon=True).start()
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            for line in child.stdout:
                message = json.loads(line)
                if "state" in message:
                    answer = message
                else:
                    worker.log_event(job["topic"], {"key": job["key"], **message})
        finally:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            status = child.wait()
            children.discard(child)
        if answer is None:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip()[-2000:]
            raise TrialDiedError(f"The process of the trial ended (status {status}). {said}")
    return answer


def _stop_when_unwanted(child: subprocess.Popen, wanted: Callable[[], bool]) -> None:
    """Close the child's input, which stops it, when the task was cancelled or the worker ends."""
    while child.poll() is None:
        if not wanted():
            with contextlib.suppress(OSError, ValueError):
                child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2 * PATIENCE)
            child.kill()
        time.sleep(0.3)


def _child() -> None:
    """The process of one trial: a job comes in on stdin, progress and the answer go to stdout.

    It stops when its stdin closes, so that it never outlives the worker.
    """
    # The kernel inherits stdout, and may print there: keep our line for ourselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_stdin, daemon=True).start()

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as folder:
        say(_execute(job, Path(folder), lambda cell, cells: say({"cell": cell, "cells": cells})))


def _stop_with_stdin() -> None:
    while os.read(0, 1):
        pass
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(PATIENCE)
    os._exit(1)


def _execute(
    job: Mapping[str, Any], folder: Path, on_cell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Run the notebook in ``folder``; state, seconds, error, record and executed notebook."""
    source, output, results = folder / f"{job['name']}.ipynb", folder / "run.ipynb", folder / "out"
    source.write_text(job["source"], encoding="utf-8")
    results.mkdir()
    answer: dict[str, Any] = {"state": "passed", "error": ""}
    began = time.perf_counter()
    try:
        run_notebook(
            source,
            output,
            job["parameters"],
            timeout=job["timeout"],
            environment={**job["environment"], "SHIPYARD_RESULTS": str(results)},
            on_cell=on_cell,
            cwd=job["cwd"] or os.getcwd(),
        )
    except CellError as error:  # the folder that its message names will be gone
        plain = CellError(error.notebook, error.cell, error.source, error.reason, None)
        answer.update(state="failed", error=str(plain))
    except AuthoringError as error:
        answer.update(state="failed", error=str(error))
    answer["seconds"] = round(time.perf_counter() - began, 2)
    answer["notebook"] = output.read_text(encoding="utf-8") if output.is_file() else ""
    answer["record"] = _record(results, job["name"])
    return answer


def _record(results: Path, name: str) -> dict[str, Any]:
    """The result file of the lesson: TOPIC.json, or the only one that there is."""
    files = sorted(results.glob("*.json"))
    named = [path for path in files if path.stem == topic_of(name)]
    for path in named or (files if len(files) == 1 else []):
        with contextlib.suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


if __name__ == "__main__":
    _child()
