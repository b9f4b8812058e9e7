"""Grading: run a submitted lab against the solution's own checks, and count the points."""

from __future__ import annotations

import ast
import copy
import csv
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shipyard.authoring.files import AuthoringError, read
from shipyard.authoring.labs import require_nbgrader
from shipyard.authoring.running import QUIET_KERNEL

if TYPE_CHECKING:
    from nbformat import NotebookNode

ANSI = re.compile(r"\x1b\[[0-9;]*m")


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

    @property
    def points(self) -> float:
        """Points of all tasks together."""
        return sum(task.points for task in self.tasks)

    @property
    def max_points(self) -> float:
        """The most points that this lab can give."""
        return sum(task.max_points for task in self.tasks)


def grade(path: Path | str, solutions: Path | str, timeout: float = 60) -> Score:
    """Run the lab at ``path`` in a kernel of its own and score it; its faults are in the score.

    The locked cells, checks among them, are taken from the solution, so that an edited check
    counts for nothing and a deleted one comes back. A cell that runs longer than ``timeout``
    seconds, or kills the kernel, counts as failed; the rest is graded in a new kernel.

    The learner's code runs **unsandboxed**, with your rights.

    Raises:
        AuthoringError: nbgrader is not installed.
    """
    path = Path(path)
    require_nbgrader()
    try:
        submission = read(path)
        solution = _find_solution(submission, path, Path(solutions))
        notebook = with_locked_cells(submission, read(solution))
        diagnoses = _execute(notebook, path.resolve().parent, timeout)
    except AuthoringError as error:
        return Score(path, problem=str(error))
    return Score(path, tuple(_task_scores(notebook, diagnoses)))


def with_locked_cells(submission: NotebookNode, solution: NotebookNode) -> NotebookNode:
    """A copy of ``submission`` in which every locked cell is the solution's own."""
    from nbgrader.utils import is_locked

    graded = copy.deepcopy(submission)
    locked = {_grade_id(cell): cell for cell in solution.cells if is_locked(cell)}
    seen: set[str] = set()
    for index, cell in enumerate(graded.cells):
        name = _grade_id(cell)
        if name in seen:  # a copied cell is the learner's own, whatever its name says
            del cell.metadata["nbgrader"]
        elif name in locked:
            graded.cells[index] = copy.deepcopy(locked[name])
        if name:
            seen.add(name)
    before = ""
    for cell in solution.cells:
        name = _grade_id(cell)
        if name in locked and name not in seen:
            graded.cells.insert(_place(graded, before, cell), copy.deepcopy(cell))
            seen.add(name)
        before = name or before
    return graded


def _place(notebook: NotebookNode, before: str, cell: NotebookNode) -> int:
    """Where a missing locked cell goes: after its neighbour; else a check last, a setup first."""
    from nbgrader.utils import is_grade

    for index, other in enumerate(notebook.cells):
        if before and _grade_id(other) == before:
            return index + 1
    return len(notebook.cells) if is_grade(cell) else 0


def _grade_id(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def _find_solution(submission: NotebookNode, path: Path, solutions: Path) -> Path:
    """The solution of a submitted lab: the one that it names, else the one with its checks."""
    known = {solution.stem: solution for solution in sorted(solutions.glob("*.ipynb"))}
    if not known:
        raise AuthoringError(f"{solutions} holds no solution notebooks to grade against.")
    named = submission.metadata.get("shipyard", {}).get("solution", "")
    if named in known:
        return known[named]
    names = {_grade_id(cell) for cell in submission.cells} - {""}
    for stem, solution in known.items():
        checks = {
            _grade_id(cell)
            for cell in read(solution).cells
            if cell.metadata.get("nbgrader", {}).get("grade")
        }
        if checks & names or path.stem.startswith(stem):
            return solution
    raise AuthoringError(
        f"{path.name} belongs to no known lab: it names none and holds none of their checks. "
        f"Known: {', '.join(known)}."
    )


def _execute(notebook: NotebookNode, folder: Path, timeout: float) -> dict[int, str]:
    """Run every cell, errors or not; return the diagnosis of each failed check by its index."""
    stopped: dict[int, str] = {}
    while True:
        stop, diagnoses = _execute_once(notebook, folder, timeout, stopped)
        if stop is None:
            return diagnoses
        index, reason = stop
        stopped[index] = reason


def _execute_once(
    notebook: NotebookNode, folder: Path, timeout: float, stopped: dict[int, str]
) -> tuple[tuple[int, str] | None, dict[int, str]]:
    """One kernel's life. ``stopped`` cells are left out; the first return value adds one."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat.v4 import new_output

    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", allow_errors=True,
        shutdown_kernel="immediate", extra_arguments=QUIET_KERNEL,
    )  # fmt: skip
    client.log.setLevel("CRITICAL")  # a learner's endless loop is news for the table, not the log
    client.reset_execution_trackers()
    diagnoses: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as results, client.setup_kernel(
        cwd=str(folder), env=_environment(results)
    ):  # fmt: skip
        for index, cell in enumerate(notebook.cells):
            if index in stopped:
                cell.outputs = [new_output("error", ename="Stopped", evalue=stopped[index])]
                continue
            try:
                client.execute_cell(cell, index)
            except CellTimeoutError:
                return (index, f"ran longer than {timeout:g} seconds"), {}
            except DeadKernelError:
                return (index, "ended the kernel"), {}
            if _error(cell) and _grade_id(cell):
                diagnoses[index] = _diagnosis(client)
    return None, diagnoses


def _environment(results: str) -> dict[str, str]:
    return {**os.environ, "SHIPYARD_RESULTS": results, "MPLBACKEND": "agg"}


def _diagnosis(client) -> str:
    """Ask the kernel for the slug of the error that it raised last."""
    question = "getattr(__import__('sys').last_value, 'diagnosis', None) or ''"
    reply = client.wait_for_reply(
        client.kc.execute("", silent=True, user_expressions={"slug": question})
    )
    answer = reply["content"].get("user_expressions", {}).get("slug", {}) if reply else {}
    text = answer.get("data", {}).get("text/plain", "''")
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return ""


def _error(cell: NotebookNode) -> NotebookNode | None:
    return next((o for o in cell.get("outputs", ()) if o.output_type == "error"), None)


def _task_scores(notebook: NotebookNode, diagnoses: dict[int, str]) -> Iterable[TaskScore]:
    from nbgrader.utils import determine_grade, is_grade

    for index, cell in enumerate(notebook.cells):
        if not is_grade(cell):
            continue
        error = _error(cell)
        # nbgrader takes any text on stderr for a failure; a warning is none.
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        points, max_points = determine_grade(cell)
        message = ""
        if error is not None:
            message = f"{error.ename}: {ANSI.sub('', error.evalue)}".strip()
        yield TaskScore(
            task=_grade_id(cell).removeprefix("check-"),
            points=points or 0.0,
            max_points=max_points,
            diagnosis=diagnoses.get(index, ""),
            message=message,
        )


def write_marks(scores: Iterable[Score], path: Path | str) -> None:
    """Write one CSV line for each file and task: file, task, points, max_points, diagnosis."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "task", "points", "max_points", "diagnosis", "message"])
        for score in scores:
            for task in score.tasks:
                first_line = task.message.split("\n")[0]
                table.writerow(
                    [score.path, task.task, f"{task.points:g}", f"{task.max_points:g}",
                     task.diagnosis, first_line]
                )  # fmt: skip
            if score.problem:
                table.writerow([score.path, "", "", "", "not graded", score.problem])
