"""Grading: run hand-ins against the solution's own checks, and count the points."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from shipyard.authoring import sandbox
from shipyard.authoring.labs import require_nbgrader

TIMEOUT = 30.0
PACKAGE = Path(__file__).resolve().parents[1]
ABSOLUTE = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:\\|/)(?:[^\s:'\"]*[/\\])")


@dataclass(frozen=True)
class TaskScore:
    """Points for one task; ``diagnosis`` names the mistake where the check knows it."""

    task: str
    points: float
    max_points: float
    diagnosis: str = ""
    message: str = ""


@dataclass(frozen=True)
class Score:
    """The result of one submitted file; ``problem`` says why nothing could be graded."""

    path: Path
    tasks: tuple[TaskScore, ...] = field(default=())
    problem: str = ""
    lab: str = ""
    note: str = ""

    @property
    def points(self) -> float:
        """Points of all tasks together."""
        return sum(task.points for task in self.tasks)

    @property
    def max_points(self) -> float:
        """The most points that this lab can give."""
        return sum(task.max_points for task in self.tasks)


def grade(
    path: Path | str, solutions: Path | str, timeout: float = TIMEOUT, use_sandbox: bool = True
) -> Score:
    """Run the lab at ``path`` in processes of its own and score it; its faults are in the score.

    Only the text of the answer cells is taken from the hand-in. A cell that runs longer than
    ``timeout`` seconds, or ends its process, counts as failed; the rest is graded. The learner's
    code runs under bubblewrap where that is there (`shipyard.authoring.sandbox`).

    Raises:
        AuthoringError: nbgrader is not installed.
    """
    require_nbgrader()
    path = Path(path)
    request = {
        "path": str(path.resolve()),
        "solutions": str(Path(solutions).resolve()),
        "timeout": timeout,
        "sandbox": use_sandbox and sandbox.is_available(),
    }
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]  # this very Shipyard
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
                   "PYTHONPATH": os.pathsep.join(filter(None, paths))}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "shipyard.authoring.judge"], env=environment, encoding="utf-8",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process, _running(process):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()  # and left open: the judge ends when this process does
        answer = process.stdout.read()
    try:
        verdict = json.loads(answer)
    except ValueError:
        return Score(path, problem="It could not be graded: the process that judged it ended.")
    tasks = tuple(TaskScore(**task) for task in verdict.pop("tasks", ()))
    return Score(path, tasks, **verdict)


_processes: set[subprocess.Popen] = set()


class _running:  # noqa: N801  (reads as a verb)
    """Remember a process, so that `stop` can end it."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def __enter__(self) -> None:
        _processes.add(self.process)

    def __exit__(self, *exception: object) -> None:
        _processes.discard(self.process)
        self.process.kill()


def grade_all(
    paths: Sequence[Path],
    solutions: Path,
    records: Path | None = None,
    timeout: float = TIMEOUT,
    jobs: int | None = None,
    on_done: Callable[[Score], None] = lambda score: None,
) -> list[Score]:
    """Grade many hand-ins, ``jobs`` at once (by default one for each core).

    ``records`` is a folder that keeps each score, so that a run that was killed goes on: a
    hand-in is graded again only where it, its solution, a check or the time limit has changed.
    """
    require_nbgrader()
    basis = _digest_of_the_checks(solutions, timeout)
    lock = threading.Lock()

    def one(path: Path) -> Score:
        record = records and records / f"{_digest(basis, path)}.json"
        score = record and _read_record(record, path)
        if not score:
            score = grade(path, solutions, timeout)
            if record and not score.problem:
                _write_record(record, score)
        with lock:
            on_done(score)
        return score

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        try:
            return list(pool.map(one, paths))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_processes):
                process.kill()
            raise


def _digest_of_the_checks(solutions: Path, timeout: float) -> str:
    """What a score depends on beside the hand-in: solutions, checks, the grader, the limits."""
    files = [*solutions.glob("*.ipynb"), *PACKAGE.glob("authoring/*.py")]
    files += [path for path in PACKAGE.glob("checks/**/*") if path.suffix in (".py", ".md")]
    digest = hashlib.sha256(f"{timeout} {sandbox.is_available()}".encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(basis: str, path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(basis.encode() + path.name.encode() + b"\0" + content).hexdigest()[:32]


def _read_record(record: Path, path: Path) -> Score | None:
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        tasks = tuple(TaskScore(**task) for task in kept.pop("tasks"))
        return Score(**{**kept, "path": path, "tasks": tasks})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(record: Path, score: Score) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    unfinished.write_text(json.dumps({**asdict(score), "path": ""}), encoding="utf-8")
    unfinished.replace(record)


def with_short_names(scores: Iterable[Score]) -> list[Score]:
    """The scores with paths from the files' common folder on, and no other folder in a message."""
    scores = list(scores)
    whole = [Path(os.path.abspath(score.path)) for score in scores]
    common = os.path.commonpath([path.parent for path in whole]) if whole else ""
    return [
        replace(
            score,
            path=path.relative_to(common),
            problem=ABSOLUTE.sub("", score.problem),
            tasks=tuple(replace(t, message=ABSOLUTE.sub("", t.message)) for t in score.tasks),
        )
        for score, path in zip(scores, whole, strict=True)
    ]


def write_marks(scores: Iterable[Score], path: Path | str) -> None:
    """Write one CSV line for each file and task, and no path but from the files' common folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "lab", "task", "points", "max_points", "diagnosis", "message"])
        for score in with_short_names(scores):
            table.writerows([_harmless(text) for text in row] for row in _rows(score))


def _rows(score: Score) -> Iterator[list[str]]:
    name = score.path.as_posix()
    for task in score.tasks:
        points = [f"{task.points:g}", f"{task.max_points:g}"]
        yield [name, score.lab, task.task, *points, task.diagnosis, task.message.split("\n")[0]]
    if score.problem:
        yield [name, "", "", "", "", "not graded", score.problem]


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text
