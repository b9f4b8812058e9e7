"""The lessons as files, and as programs that run with other parameters than the committed ones."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from shipyard import authoring
from shipyard.authoring.files import topic_of

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALL = [p for folder in ("notebooks", "solutions", "labs") for p in (ROOT / folder).glob("*.ipynb")]
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize(
    "path", sorted(ALL), ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stdout_of(notebook):
    outputs = (output for cell in code_cells(notebook) for output in cell.outputs)
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def alt_texts(notebook):
    """What the figures say in words: the plain text of each display with a picture."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "<img " in output.get("data", {}).get("text/html", ""):
                yield output.data["text/plain"]


@each_notebook
def test_a_committed_notebook_is_in_the_committed_form(path):
    assert not authoring.normalise_file(path, check=True), f"run: shipyard normalise {path.name}"


@each_lesson
def test_the_parameters_cell_holds_only_literals_and_environment_defaults(path):
    notebook = authoring.read(path)
    (cell,) = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", ())]
    assert all(isinstance(s, ast.Assign | ast.AnnAssign) for s in ast.parse(cell.source).body)
    known = authoring.known_parameters(notebook)
    assert {"PROFILE", "DEVICE", "SEED"} <= set(known)
    for parameter in known.values():
        from_environment = re.fullmatch(
            rf"(int\(|float\()?os\.environ\.get\('{parameter.name}', '\w+'\)\)?", parameter.default
        )
        if not from_environment:
            ast.literal_eval(parameter.default)


@each_lesson
def test_committed_outputs_come_from_one_full_run_without_an_error(path):
    notebook = authoring.read(path)
    errors = [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"]
    assert not errors
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run all cells, from the top, in a new kernel"
    assert f"Lesson {topic_of(path.stem)} · profile full" in stdout_of(notebook)


@each_lesson
def test_committed_outputs_come_from_the_real_images(path):
    text = stdout_of(authoring.read(path)) + "".join(alt_texts(authoring.read(path)))
    assert "(stand-in data)" not in text


@pytest.mark.slow(minutes=1)
@each_lesson
def test_a_lesson_runs_on_another_device_and_calls_stand_in_data_by_its_name(
    path, tmp_path, other_device
):
    known = authoring.known_parameters(authoring.read(path))
    with_data = "DATASET" in known
    parameters = {"SEED": "1", "PROFILE": "fast", "DEVICE": other_device}
    notebook = authoring.run_notebook(
        path,
        tmp_path / path.name,
        parameters | ({"DATASET": "stand-in"} if with_data else {}),
        timeout=300,
        environment={"SHIPYARD_RESULTS": str(tmp_path)},
    )
    record = json.loads((tmp_path / f"{topic_of(path.stem)}.json").read_text())
    assert (record["seed"], record["profile"], record["device"]) == (1, "fast", other_device)
    assert record["metrics"]
    assert ("stand-in" in record["dataset"]) == with_data
    if with_data:
        assert "stand-in" in stdout_of(notebook)
        assert any("stand-in" in alt for alt in alt_texts(notebook)), "no figure says stand-in"
