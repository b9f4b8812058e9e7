"""Notebook files, labs, grading, and runs without a browser."""

from __future__ import annotations

import copy
import csv
import json
import os
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from shipyard import authoring
from shipyard.authoring import (
    AuthoringError,
    CellError,
    Score,
    SeriesResult,
    TaskScore,
    sandbox,
)
from shipyard.authoring.files import EXPLORER_PLACEHOLDER, WIDGET_VIEW
from shipyard.authoring.handin import rebuild
from shipyard.authoring.series import SIGNS


def notebook_with(*outputs, source="f()"):
    return new_notebook(cells=[new_code_cell(source, outputs=list(outputs), execution_count=7)])


def normalised_outputs(*outputs):
    return authoring.normalise(notebook_with(*outputs)).cells[0].outputs


def stderr(text):
    return new_output("stream", name="stderr", text=text)


# --- Normalising ------------------------------------------------------------------------------


def test_normalising_drops_what_editors_and_runners_leave_behind():
    notebook = notebook_with()
    notebook.metadata.update(
        widgets={"state": {}}, papermill={"duration": 3.2}, language_info={"version": "3.11.7"}
    )
    notebook.cells[0].metadata.update(
        execution={"iopub.status.busy": "2031"}, papermill={"status": "completed"}, tags=[],
        collapsed=True, jupyter={"outputs_hidden": True},
    )  # fmt: skip
    result = authoring.normalise(notebook)
    assert set(result.metadata) == {"kernelspec", "language_info"}
    assert "version" not in result.metadata.language_info
    assert result.metadata.kernelspec.name == "python3"
    assert result.cells[0].metadata == {}


def test_normalising_keeps_tags_counts_and_the_original():
    notebook = notebook_with()
    notebook.cells[0].metadata.tags = ["parameters"]
    before = copy.deepcopy(notebook)
    result = authoring.normalise(notebook)
    assert result.cells[0].metadata.tags == ["parameters"]
    assert result.cells[0].execution_count == 7
    assert notebook == before


def test_a_progress_bar_on_stderr_goes_and_a_warning_stays():
    bar = "\r  0%|          | 0/9 [00:00<?, ?it/s]\r100%|##########| 9/9 [00:01<00:00, 8.9it/s]\n"
    outputs = normalised_outputs(stderr(bar), stderr("UserWarning: mind the gap\n"))
    assert [o.text for o in outputs] == ["UserWarning: mind the gap\n"]
    assert normalised_outputs(stderr(bar)) == []
    assert normalised_outputs(stderr("\r9it [00:01,  8.2it/s]")) == []


def test_after_a_carriage_return_a_line_of_stdout_starts_anew():
    parts = [new_output("stream", name="stdout", text=t) for t in ("step 1", "\rstep 2\n", "end")]
    outputs = normalised_outputs(*parts)
    assert [o.text for o in outputs] == ["step 2\nend"]


def test_a_widget_view_goes_where_an_image_stands_beside_it():
    data = {WIDGET_VIEW: {"model_id": "a1"}, "image/png": "aGk=", "text/plain": "Figure()"}
    (output,) = normalised_outputs(new_output("display_data", data))
    assert set(output.data) == {"image/png", "text/plain"}


def test_an_explorer_without_a_picture_becomes_a_note_and_a_bar_becomes_nothing():
    explorer = {WIDGET_VIEW: {"model_id": "a1"}, "text/plain": "VBox(children=(IntSlider(),))"}
    bar = {WIDGET_VIEW: {"model_id": "b2"}, "text/plain": "  0%|          | 0/9 [00:00<?, ?it/s]"}
    (output,) = normalised_outputs(
        new_output("display_data", explorer), new_output("display_data", bar)
    )
    assert output.data == {"text/plain": EXPLORER_PLACEHOLDER}


def test_memory_addresses_are_hidden():
    data = {"text/plain": "<function f at 0x7f12ab34cd56>"}
    (output,) = normalised_outputs(new_output("execute_result", data))
    assert output.data["text/plain"] == "<function f at 0x0>"


def test_errors_are_kept_for_a_reviewer_to_see():
    error = new_output("error", ename="ValueError", evalue="no", traceback=["no"])
    assert normalised_outputs(error) == [error]


def test_cell_ids_follow_from_the_cells_and_not_from_chance():
    def ids():
        cells = [new_code_cell("x"), new_code_cell("x"), new_markdown_cell("x")]
        cells[2].metadata["nbgrader"] = {"grade_id": "my task"}
        return [cell.id for cell in authoring.normalise(new_notebook(cells=cells)).cells]

    assert ids() == ids()
    assert len(set(ids())) == 3
    assert ids()[2] == "my-task"


STREAMS = st.builds(
    lambda name, text: new_output("stream", name=name, text=text),
    st.sampled_from(["stdout", "stderr"]),
    st.text(alphabet="ab1 %|\r\n/[]:its", max_size=30),
)


@given(outputs=st.lists(STREAMS, max_size=4), source=st.text(max_size=20))
def test_normalising_twice_changes_nothing_more(outputs, source):
    once = authoring.normalise(notebook_with(*outputs, source=source))
    assert authoring.to_text(authoring.normalise(once)) == authoring.to_text(once)


def test_normalise_file_with_check_says_so_and_writes_nothing(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(authoring.to_text(notebook_with(stderr("9it [00:01, 8.2it/s]"))))
    before = path.read_bytes()
    assert authoring.normalise_file(path, check=True)
    assert path.read_bytes() == before
    assert authoring.normalise_file(path)
    assert not authoring.normalise_file(path, check=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"cells": 3}', "\x00\xff"])
def test_a_file_that_is_no_notebook_gets_a_clear_message(tmp_path, text):
    path = tmp_path / "broken.ipynb"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(AuthoringError, match=r"broken\.ipynb is not a Jupyter notebook"):
        authoring.read(path)
    with pytest.raises(AuthoringError, match="does not exist"):
        authoring.read(tmp_path / "missing.ipynb")


@pytest.mark.slow
def test_two_runs_of_a_deterministic_notebook_differ_in_no_line(course, tmp_path):
    path = course.lesson(
        "01_same",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass",
        "import ipywidgets\nipywidgets.IntSlider()",
        "print",
        "(lambda: 1)",
    )
    texts = []
    for number in range(2):
        output = tmp_path / f"{number}" / "01_same.ipynb"
        authoring.run_notebook(path, output)
        texts.append(authoring.to_text(authoring.normalise(authoring.read(output))))
    assert texts[0] == texts[1]
    assert EXPLORER_PLACEHOLDER in texts[0]


# --- Labs -------------------------------------------------------------------------------------

nbgrader = pytest.importorskip("nbgrader", reason="labs need the extra `teach`")


def test_a_lab_has_stubs_for_solutions_and_keeps_what_stands_around_them(course):
    lab = authoring.generate_lab(course.solution())
    assert lab.cells[2].source == (
        'def square(x):\n    """Return x * x."""\n'
        '    raise NotImplementedError("Write this function, then run the check below.")'
    )
    assert "SOLUTION" not in authoring.to_text(lab)
    assert lab.cells[3].source == "check(square, 9)"


def test_checks_of_a_lab_are_locked_and_its_tasks_are_not(course):
    lab = authoring.generate_lab(course.solution())
    assert [cell.metadata.get("editable", True) for cell in lab.cells] == [
        False, False, True, False, True, False,
    ]  # fmt: skip
    assert not any(cell.metadata.get("deletable", True) for cell in lab.cells)


def test_the_same_solution_always_gives_the_same_bytes(course):
    path = course.solution()
    first = authoring.to_text(authoring.generate_lab(path))
    solution = authoring.read(path)
    for cell in solution.cells:
        cell.id = f"random-{id(cell)}"
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 3, [new_output("stream", text="ran")]
    course.write(path, solution)
    assert authoring.to_text(authoring.generate_lab(path)) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[2].update(source="def f(): pass"), "without ### BEGIN SOLUTION"),
        (lambda cells: cells[2].update(source="### BEGIN SOLUTION\nx = 1"), "in pairs"),
        (lambda cells: cells[2].metadata.nbgrader.update(solution=False), "give the answer away"),
        (lambda cells: cells[3].metadata.nbgrader.update(grade_id="square"), "gives no lab"),
        (lambda cells: cells.__delitem__(slice(2, None)), "a lab needs both"),
    ],
)
def test_a_solution_that_would_give_a_wrong_lab_is_refused(course, change, message):
    path = course.solution()
    solution = authoring.read(path)
    change(solution.cells)
    course.write(path, solution)
    with pytest.raises(AuthoringError, match=message):
        authoring.generate_lab(path)


def test_without_nbgrader_the_message_says_how_to_install_it(course, monkeypatch):
    path = course.solution()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AuthoringError, match=r"pip install .*\[teach\]"):
        authoring.generate_lab(path)
    with pytest.raises(AuthoringError, match=r"pip install .*\[teach\]"):
        authoring.grade(path, path.parent)


def test_an_untouched_lab_is_written_anew_when_its_solution_changes(course):
    path = course.solution()
    labs = course.root / "labs"
    assert authoring.write_lab(path, labs) == (labs / "01_tiny.ipynb", "written")
    assert authoring.write_lab(path, labs) == (labs / "01_tiny.ipynb", "unchanged")
    solution = authoring.read(path)
    solution.cells[0].source = "# Lab, second edition"
    course.write(path, solution)
    assert authoring.write_lab(path, labs) == (labs / "01_tiny.ipynb", "written")
    assert [p.name for p in labs.iterdir()] == ["01_tiny.ipynb"]


def answer(lab):
    lab.cells[2].source = "def square(x): return x ** 2"


def run_it(lab):
    lab.cells[1].outputs = [new_output("stream", text="ran")]


def forget_the_record(lab):
    del lab.metadata["shipyard"]


@pytest.mark.parametrize("touch", [answer, run_it, forget_the_record])
def test_a_lab_that_a_learner_changed_is_never_overwritten(course, touch):
    path, labs = course.solution(), course.root / "labs"
    lab_path, _ = authoring.write_lab(path, labs)
    lab = authoring.read(lab_path)
    touch(lab)
    authoring.write(lab, lab_path)
    before = lab_path.read_bytes()
    beside = labs / "01_tiny.new.ipynb"
    assert authoring.write_lab(path, labs) == (beside, "kept")
    assert lab_path.read_bytes() == before

    learner_went_on_there = authoring.read(beside)
    answer(learner_went_on_there)
    authoring.write(learner_went_on_there, beside)
    assert authoring.write_lab(path, labs) == (labs / "01_tiny.new-2.ipynb", "kept")
    assert authoring.read(beside).cells[2].source == "def square(x): return x ** 2"


def test_a_file_in_the_labs_place_that_cannot_be_read_is_kept(course):
    path, labs = course.solution(), course.root / "labs"
    labs.mkdir()
    (labs / "01_tiny.ipynb").write_text("half a noteb")
    assert authoring.write_lab(path, labs)[1] == "kept"
    assert (labs / "01_tiny.ipynb").read_text() == "half a noteb"


# --- Grading ----------------------------------------------------------------------------------


@pytest.fixture
def submission(course):
    """A function that writes a submitted lab with other sources for some cells."""
    lab = authoring.generate_lab(course.solution())

    def submit(name="submitted", **sources):
        changed = copy.deepcopy(lab)
        for cell in changed.cells:
            cell.source = sources.get(cell.id.replace("-", "_"), cell.source)
        return course.write(course.root / f"{name}.ipynb", changed)

    submit.solutions = course.root / "solutions"
    submit.lab = lab
    return submit


RIGHT = {"square": "def square(x): return x * x", "double": "def double(x): return 2 * x"}


def grade(path, submission, timeout=30):
    score = authoring.grade(path, submission.solutions, timeout)
    assert score.problem == ""
    return {task.task: (task.points, task.diagnosis) for task in score.tasks}


@pytest.mark.slow
def test_an_untouched_lab_scores_nothing_and_a_right_one_everything(submission):
    assert grade(submission(), submission) == {"square": (0, ""), "double": (0, "")}
    score = authoring.grade(submission(**RIGHT), submission.solutions)
    assert (score.points, score.max_points) == (5, 5)


@pytest.mark.slow
def test_a_wrong_answer_is_scored_with_its_diagnosis(submission):
    path = submission(square="def square(x): return 0", double=RIGHT["double"])
    assert grade(path, submission) == {"square": (0, "wrong-number"), "double": (3, "")}


@pytest.mark.slow
def test_an_edited_check_counts_for_nothing(submission):
    path = submission(square="square = 1", check_square="pass", setup="def check(*a): pass")
    assert grade(path, submission)["square"][0] == 0


@pytest.mark.slow
def test_grading_works_without_the_sandbox_and_says_so(submission):
    score = authoring.grade(submission(**RIGHT), submission.solutions, use_sandbox=False)
    assert (score.points, score.max_points) == (5, 5)
    assert "NO SANDBOX" in sandbox.describe(False)


@pytest.mark.slow
def test_the_message_says_why_an_answer_is_missing(submission):
    score = authoring.grade(submission(square="def square(x:"), submission.solutions)
    assert "The cell square raised SyntaxError" in score.tasks[0].message


@pytest.mark.slow
def test_a_warning_costs_no_points(submission):
    noisy = "import warnings\ndef double(x):\n    warnings.warn('slow')\n    return 2 * x"
    assert grade(submission(double=noisy), submission)["double"] == (3, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "trap",
    [
        "def square(x):\n    while True: pass",
        "def square(x):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
        "import os\nos._exit(1)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "square = input()",
        "raise SystemExit",
        "def square(x:",
    ],
    ids=["endless", "stubborn", "exits", "killed", "asks", "leaves", "no-python"],
)
def test_code_that_hangs_or_dies_costs_only_its_own_points(submission, trap):
    path = submission(square=trap, double=RIGHT["double"])
    assert grade(path, submission, timeout=5) == {"square": (0, ""), "double": (3, "")}


def test_deleted_and_copied_cells_are_put_right(submission, course):
    path = submission(**RIGHT)
    submitted = authoring.read(path)
    answer, check, other = (submitted.cells[i] for i in (2, 3, 4))
    unfinished, edited = copy.deepcopy(other), copy.deepcopy(check)
    unfinished.source = authoring.read(submission()).cells[4].source
    edited.source = "pass"
    submitted.cells = [answer, edited, other, unfinished]
    course.write(path, submitted)
    rebuilt = rebuild(path, submission.solutions)
    names = [cell.name for cell in rebuilt.cells]
    assert names == ["setup", "square", "square", "double", "double"]
    assert rebuilt.cells[2].source == "check(square, 9)"
    assert [cell.source for cell in rebuilt.cells if cell.kind == "answer"] == [*RIGHT.values()]


def test_a_broken_or_foreign_file_is_reported_and_not_raised(submission, course, tmp_path):
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    assert "not a Jupyter notebook" in authoring.grade(broken, submission.solutions).problem
    foreign = course.write(tmp_path / "essay.ipynb", new_notebook())
    assert "belongs to no known lab" in authoring.grade(foreign, submission.solutions).problem


def test_marks_hold_one_line_for_each_file_and_task(tmp_path):
    good = Score(tmp_path / "a.ipynb", (TaskScore("conv2d", 0, 2, "flipped-kernel", "no\nmore"),))
    authoring.write_marks(
        [good, Score(tmp_path / "b.ipynb", problem="no JSON")], tmp_path / "m.csv"
    )
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert [row["task"] for row in rows] == ["conv2d", ""]
    assert rows[0]["diagnosis"] == "flipped-kernel"
    assert rows[0]["points"] == "0"
    assert rows[1]["message"] == "no JSON"


# --- Parameters -------------------------------------------------------------------------------


def parameters_of(course):
    return authoring.known_parameters(authoring.read(course.good_lesson()))


def test_the_parameters_cell_tells_names_and_types(course):
    kinds = {name: p.kind for name, p in parameters_of(course).items()}
    assert kinds == {
        "PROFILE": str, "DEVICE": str, "SEED": int, "EPOCHS": int, "LEARNING_RATE": float,
        "VERBOSE": bool, "SIZES": tuple, "NOTE": str, "STEPS": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("EPOCHS", "3", 3),
        ("SEED", "-1", -1),
        ("LEARNING_RATE", "1e-3", 0.001),
        ("LEARNING_RATE", "1", 1.0),
        ("VERBOSE", "True", True),
        ("VERBOSE", "no", False),
        ("PROFILE", "3", "3"),
        ("SIZES", "(4, 5)", (4, 5)),
        ("STEPS", "none", None),
        ("STEPS", "0.5", 0.5),
        ("STEPS", "[1, 2]", [1, 2]),
        ("NOTE", "all", "all"),
    ],
)
def test_a_text_is_read_as_the_type_of_the_default(course, name, text, value):
    parsed = authoring.parse_parameter(parameters_of(course)[name], text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("EPOCHS", "three"), ("EPOCHS", "1.5"), ("LEARNING_RATE", ""), ("VERBOSE", "2"),
     ("SIZES", "4"), ("SIZES", "("), ("STEPS", "all")],
)  # fmt: skip
def test_a_text_of_the_wrong_type_is_refused_with_what_is_wanted(course, name, text):
    with pytest.raises(AuthoringError, match=f"{name} takes .* not '"):
        authoring.parse_parameter(parameters_of(course)[name], text)


def test_an_unknown_notebook_lists_the_known_ones(course):
    path = course.good_lesson()
    folder = path.parent
    for name in ("1", "01", "01_good", "01_good.ipynb", str(path)):
        assert authoring.find_notebook(name, folder) == path
    with pytest.raises(AuthoringError, match=r"Did you mean 01_good\? Known: 01_good"):
        authoring.find_notebook("01_god", folder)


# --- Runs -------------------------------------------------------------------------------------


def test_an_unknown_parameter_stops_the_run_before_it_begins(course, tmp_path):
    with pytest.raises(AuthoringError, match=r"no parameter 'EPOCH'. Did you mean EPOCHS"):
        authoring.run_notebook(course.good_lesson(), tmp_path / "out.ipynb", {"EPOCH": "3"})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_run_never_overwrites_the_notebook_itself(course):
    path = course.good_lesson()
    with pytest.raises(AuthoringError, match="would overwrite"):
        authoring.run_notebook(path, path)
    with pytest.raises(AuthoringError, match="would overwrite"):
        authoring.run_series([path], path.parent)


@pytest.mark.slow
def test_parameters_and_environment_reach_the_notebook(course, tmp_path):
    seen = []
    notebook = authoring.run_notebook(
        course.good_lesson(),
        tmp_path / "{braces}" / "out.ipynb",
        {"EPOCHS": "3", "LEARNING_RATE": "-0.5", "STEPS": "7"},
        environment={"PROFILE": "full", "SHIPYARD_RESULTS": str(tmp_path)},
        on_cell=lambda cell, cells: seen.append((cell, cells)),
    )
    assert "3 -0.5 False 7" in authoring.to_text(notebook)
    assert (tmp_path / "{braces}" / "out.ipynb").is_file()
    assert json.loads((tmp_path / "good.json").read_text())["profile"] == "full"
    assert seen == [(number, 5) for number in range(5)]
    assert os.environ.get("PROFILE") != "full"


@pytest.mark.slow
def test_a_cell_that_raises_is_quoted_and_what_ran_before_it_is_kept(course, tmp_path):
    path = course.lesson("02_bad", "print('be' + 'fore')", "def f(x):\n    return 1 / x\nf(0)")
    with pytest.raises(CellError) as caught:
        authoring.run_notebook(path, tmp_path / "out.ipynb")
    message = str(caught.value)
    assert "    def f(x):\n        return 1 / x\n    f(0)" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "02_bad, cell 4" in message
    assert "before" in (tmp_path / "out.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "timeout", "reason"),
    [
        ("import time\ntime.sleep(300)", 2, "ran longer than 2 seconds"),
        ("import os\nos._exit(1)", None, "The kernel ended"),
    ],
)
def test_a_cell_that_hangs_or_kills_the_kernel_is_noticed_soon(
    course, tmp_path, source, timeout, reason
):
    path = course.lesson("03_stuck", "print('be' + 'fore')", source)
    began = time.monotonic()
    with pytest.raises(CellError, match=reason) as caught:
        authoring.run_notebook(path, tmp_path / "out.ipynb", timeout=timeout)
    assert time.monotonic() - began < 60
    assert caught.value.source == source
    assert "before" in (tmp_path / "out.ipynb").read_text()


@pytest.mark.slow
def test_a_series_goes_on_after_a_failure_and_shows_everything_on_one_page(course, tmp_path):
    paths = [course.lesson("00_bad", "1 / 0"), course.good_lesson()]
    results = authoring.run_series(paths, tmp_path / "out", {"EPOCHS": "5"})
    assert [r.state for r in results] == ["failed", "passed"]
    assert len(authoring.failures(results)) == 1
    page = (tmp_path / "out" / "index.html").read_text()
    assert "1 / 0" in page
    assert "ZeroDivisionError" in page
    assert "<dt>accuracy</dt><dd>0.5124</dd>" in page
    assert "<dt>epochs</dt><dd>5</dd>" in page
    assert "curve" not in page
    assert "stand-in" in page
    for name in ("00_bad", "01_good"):
        assert f'href="{name}.html"' in page
        assert "<html" in (tmp_path / "out" / f"{name}.html").read_text()
        assert (tmp_path / "out" / f"{name}.ipynb").is_file()


@pytest.mark.slow
def test_outputs_are_saved_only_into_the_notebook_that_was_run(course, tmp_path):
    path = course.lesson("01_shown", "print('o' + 'k')")
    (result,) = authoring.run_series([path], tmp_path / "out", environment={"PROFILE": "full"})
    authoring.save_outputs(result)
    saved = authoring.read(path)
    assert saved.cells[2].outputs[0].text == "ok\n"
    assert not authoring.normalise_file(path, check=True)

    saved.cells[2].source = "print('edited meanwhile')"
    authoring.write(saved, path)
    with pytest.raises(AuthoringError, match="differs from what was run"):
        authoring.save_outputs(result)
    assert authoring.read(path).cells[2].source == "print('edited meanwhile')"


def test_outputs_of_a_failed_run_are_not_saved(course):
    with pytest.raises(AuthoringError, match="not saved"):
        authoring.save_outputs(SeriesResult(course.good_lesson(), "failed"))


def test_a_series_checks_every_parameter_before_the_first_run(course, tmp_path):
    paths = [course.good_lesson(), course.lesson("02_other", "x = 1")]
    with pytest.raises(AuthoringError, match="No notebook has the parameter 'EPOCH'"):
        authoring.run_series(paths, tmp_path / "out", {"EPOCH": "3"})
    with pytest.raises(AuthoringError, match="takes a whole number"):
        authoring.run_series(paths, tmp_path / "out", {"EPOCHS": "x"})
    assert not (tmp_path / "out").exists()


def test_the_page_escapes_what_a_notebook_says_and_links_nothing_that_is_missing(tmp_path, course):
    result = SeriesResult(
        course.good_lesson(), "failed", 1.5, error="<script>alert(1)</script>",
        output=tmp_path / "missing.ipynb", record={"metrics": {"<b>": "<i>"}, "device": "<u>"},
    )  # fmt: skip
    page = authoring.write_index([result], tmp_path, datetime(2031, 1, 1, tzinfo=UTC)).read_text()
    assert not any(tag in page for tag in ("<script", "<b>", "<i>", "<u>", "href="))
    assert "&lt;script&gt;" in page


def test_the_page_stands_alone_and_knows_every_state(tmp_path, course):
    path = course.good_lesson()
    results = [SeriesResult(path, state) for state in SIGNS]
    page = authoring.write_index(results, tmp_path, datetime(2031, 1, 1, tzinfo=UTC)).read_text()
    assert "http" not in page
    assert "src=" not in page
    assert "prefers-color-scheme: dark" in page
    for state, sign in SIGNS.items():
        assert f"{sign} {state}" in page


def test_each_run_gets_a_folder_of_its_own(tmp_path):
    first = authoring.run_folder(tmp_path)
    first.mkdir(parents=True)
    assert authoring.run_folder(tmp_path) != first
    assert first.parent == tmp_path / "runs"
