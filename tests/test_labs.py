"""The labs: what is generated, what is checked, and that the checks reward the right work."""

from __future__ import annotations

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from shipyard import authoring

pytest.importorskip("nbgrader", reason="labs need the extra `teach`")

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
by_name = pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)


def subject_of(solution):
    return authoring.read(solution).metadata["shipyard"]["subject"]


def graded_cells(solution):
    return [c for c in authoring.read(solution).cells if c.metadata["nbgrader"]["grade"]]


def tasks_of(solution):
    """Names of the checks that the graded cells of a solution call."""
    calls = re.findall(r"\bcheck_(\w+)\(", "\n".join(c.source for c in graded_cells(solution)))
    return sorted(set(calls))


def bank_of(solution):
    return importlib.import_module(f"wrong_answers.{subject_of(solution)}")


def test_every_lab_comes_from_a_solution():
    assert SOLUTIONS
    assert {path.name for path in (ROOT / "labs").glob("*.ipynb")} == {p.name for p in SOLUTIONS}


@by_name
def test_a_lab_is_exactly_what_its_solution_gives(solution):
    lab = ROOT / "labs" / solution.name
    wanted = authoring.to_text(authoring.generate_lab(solution))
    assert lab.read_text(encoding="utf-8") == wanted, "out of date: run `make labs`"


@by_name
def test_no_lab_gives_its_answers_away(solution):
    text = authoring.to_text(authoring.generate_lab(solution))
    assert "BEGIN SOLUTION" not in text
    assert "HIDDEN TEST" not in text


@by_name
def test_every_check_that_a_solution_calls_exists_and_every_check_is_called(solution):
    module = importlib.import_module(f"shipyard.checks.{subject_of(solution)}")
    existing = {name.removeprefix("check_") for name in vars(module) if name.startswith("check_")}
    assert set(tasks_of(solution)) == existing


@by_name
def test_every_task_has_its_bank_of_wrong_answers(solution):
    assert set(tasks_of(solution)) == set(bank_of(solution).TASKS)


@by_name
def test_every_task_has_a_ladder_of_three_hints(solution):
    notebook = authoring.read(solution)
    tasks = [c for c in notebook.cells if c.metadata["nbgrader"]["solution"]]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("<details") == text.count("</details>") == 3 * len(tasks)


@pytest.mark.slow
@by_name
def test_the_solution_scores_full_marks_where_there_is_another_device(solution, other_device):
    score = authoring.grade(solution, solution.parent, timeout=60)
    lost = {task.task: task.message for task in score.tasks if task.points < task.max_points}
    assert not lost
    assert score.points == score.max_points > 0


@pytest.mark.slow
@by_name
def test_a_lab_with_one_wrong_answer_scores_nothing_and_each_check_says_why(
    solution, tmp_path, monkeypatch
):
    first, *others = tasks_of(solution)
    name, (_, diagnosis) = next(iter(bank_of(solution).TASKS[first].wrong.items()))
    lab = authoring.read(ROOT / "labs" / solution.name)
    (cell,) = [c for c in lab.cells if c.metadata["nbgrader"]["grade_id"] == first]
    bank = f"from {bank_of(solution).__name__} import TASKS"
    cell.source = f"{bank}\n{first}, _ = TASKS[{first!r}].wrong[{name!r}]"
    authoring.write(lab, tmp_path / solution.name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    score = authoring.grade(tmp_path / solution.name, solution.parent, timeout=60)
    assert score.problem == ""
    assert (score.points, score.max_points > 0) == (0, True)
    said = {task.task: task.diagnosis for task in score.tasks}
    assert said == {first: diagnosis, **dict.fromkeys(others, "not-implemented")}


@pytest.mark.slow
def test_nbgrader_itself_makes_validates_and_grades_the_labs(tmp_path):
    """With the commands and the configuration of docs/teaching.md, and without a warning."""
    solution, said = SOLUTIONS[0], []
    scripts = sysconfig.get_path("scripts")  # nbgrader calls alembic by name
    activated = os.environ | {"PATH": os.pathsep.join((scripts, os.environ["PATH"]))}

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=activated, capture_output=True, text=True)
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, said[-1]

    def put(notebook, *folders):
        folder = tmp_path.joinpath(*folders, "shipyard")
        folder.mkdir(parents=True)
        return shutil.copy(notebook, folder)

    shutil.copy(ROOT / "docs" / "nbgrader_config.py", tmp_path)
    put(solution, "source")
    nbgrader("generate_assignment", "shipyard")
    released = authoring.read(tmp_path / "release" / "shipyard" / solution.name)
    lab = authoring.read(ROOT / "labs" / solution.name)
    assert [cell.source for cell in released.cells] == [cell.source for cell in lab.cells]
    right = put(solution, "submitted", "right")
    put(ROOT / "labs" / solution.name, "submitted", "untouched")
    nbgrader("autograde", "shipyard")
    nbgrader("validate", right)
    assert "Success! Your notebook passes all the tests." in said[-1]
    nbgrader("export", "--to", "grades.csv")
    rows = csv.DictReader((tmp_path / "grades.csv").open())
    points = {row["student_id"]: (row["score"], row["max_score"]) for row in rows}
    (_, most) = points["right"]
    assert points == {"right": (most, most), "untouched": ("0.0", most)}
    assert "WARNING" not in "".join(said)
