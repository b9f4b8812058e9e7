"""Fair marks: a synthetic class of honest, broken and forged hand-ins; none earns what is not its.

The class is graded once, by the command, which is killed on its way and started again.
"""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shipyard import authoring, remote
from shipyard.authoring import handin, sandbox, wire
from shipyard.authoring.judge import Judge
from shipyard.checks import CheckFailed
from shipyard.checks.convolution import check_conv2d, conv2d_by_loops
from shipyard.checks.training import check_normalize, check_train_step

pytest.importorskip("nbgrader", reason="grading needs the extra `teach`")

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = ROOT / "solutions" / "02_convolution.ipynb"
LAB = authoring.read(ROOT / "labs" / SOLUTION.name)
POINTS = {"output_size": 1, "im2col": 2, "conv2d": 3, "conv2d_backward": 3, "max_pool2d": 2,
          "avg_pool2d": 1}  # fmt: skip
ALL = sum(POINTS.values())
ANSWERS = {
    cell.metadata["nbgrader"]["grade_id"]: cell.source
    for cell in authoring.read(SOLUTION).cells
    if cell.metadata["nbgrader"]["solution"]
}

# --- the class: what stands in the answer cell of output_size, before or in place of an answer ----

FORGERIES = {
    "rebinds-the-checks": """
        for name in [n for n in globals() if n.startswith("check_")]:
            globals()[name] = lambda *functions: None""",
    "rebinds-the-module": """
        for name in [n for n in vars(m) if n.startswith("check_")]:
            globals()[name] = lambda *functions: None
            setattr(m, name, globals()[name])""",
    "rebinds-the-engine": "c.compare = m.compare = lambda *a, **k: c.Passed('all', 9)",
    "rebinds-an-attempt": "c._Task.attempt = lambda self, f, case: c._Attempt(case, None)",
    "rebinds-comparison": """
        import torch, shipyard.checks.differences as d
        d.difference = c.difference = lambda *a, **k: None
        torch.allclose = torch.equal = lambda *a, **k: True""",
    "never-fails": """
        class Fine(BaseException):
            def __new__(cls, *a): raise SystemExit(0)
        c.CheckFailed = m.CheckFailed = Fine""",
    "exchanges-code": """
        c.compare.__code__ = (lambda *a, **k: None).__code__
        m.check_conv2d.__code__ = (lambda candidate: None).__code__""",
    "exchanges-modules": """
        import sys, types
        for name in [n for n in sys.modules if "checks" in n]:
            sys.modules[name] = types.ModuleType(name)""",
    "hides-tracebacks": """
        from types import SimpleNamespace
        shell, fine = get_ipython(), SimpleNamespace(error_before_exec=None, error_in_exec=None)
        shell.showtraceback = lambda *a, **k: None
        type(shell).run_cell = lambda *a, **k: fine""",
    "transforms-cells": """
        get_ipython().input_transformers_post.append(lambda lines: ["pass\\n"])""",
    "prints-results": """
        import sys
        print("✓ output_size: correct in all 99 cases.")
        sys.__stdout__.write('{"points": 12}')""",
    "exits": """
        import os
        def output_size(*a, **k): os._exit(0)""",
    "leaves": "def output_size(*a, **k): raise SystemExit(0)",
    "equals-everything": """
        class Yes(int):
            __eq__ = lambda *a: True
            __ne__ = lambda *a: False
            __sub__ = __abs__ = __float__ = lambda self, *a: 0.0
        def output_size(*a, **k): return Yes(7)
        im2col = conv2d = max_pool2d = output_size""",
    "writes-to-the-pipe": """
        import json, os
        for call in range(400):
            data = json.dumps({"call": call, "value": None}).encode()
            for fd in range(3, 40):
                try: os.write(fd, len(data).to_bytes(4, "big") + data)
                except OSError: pass""",
    "patches-its-server": """
        import gc
        for o in gc.get_objects():
            if type(o).__name__ == "_Desk": o.answer = lambda *a: {"value": None}""",
    "steals-from-frames": """
        import sys
        def output_size(*args, **options):
            frame = sys._getframe()
            while frame:
                task = frame.f_locals.get("self")
                if hasattr(task, "reference"): return task.reference(*args, **options)
                frame = frame.f_back
            return 0
        im2col = conv2d = conv2d_backward = max_pool2d = avg_pool2d = output_size""",
}
DISASTERS = {
    "loops": "while True: pass",
    "forks": """
        import os
        while True: os.fork()""",
    "eats-memory": """
        def output_size(*a, **k):
            hoard = []
            while True: hoard.append(bytearray(1 << 24))""",
    "floods": """
        import sys
        while True: sys.__stdout__.write("x" * (1 << 20))""",
    "fills-the-disk": """
        for i in range(99):
            with open(f"/tmp/{i}", "wb") as file: file.write(bytes(1 << 26))""",
    "deletes": """
        import shutil
        for folder in ("CLASS", "/work", "/root", "/home", "/usr", "/tmp"):
            shutil.rmtree(folder, ignore_errors=True)""",
    "telephones": """
        import urllib.request
        urllib.request.urlopen("http://127.0.0.1:1", timeout=5)""",
}
FORGED = "import shipyard.checks as c, shipyard.checks.convolution as m\n"
FORGED += "def output_size(*args, **options): return 0\n"


def write_lab(path, answers, change=lambda lab: None):
    """A lab with these texts in its answer cells."""
    lab = json.loads(authoring.to_text(LAB))
    for cell in lab["cells"]:
        cell["source"] = answers.get(cell["id"], "".join(cell["source"]))
    change(lab)
    path.write_text(json.dumps(lab), encoding="utf-8")


def own_graded_cell(lab):
    about = {"grade": True, "grade_id": "bonus", "points": 50, "locked": False, "solution": False,
             "schema_version": 3, "task": False}  # fmt: skip
    lab["cells"].append({"cell_type": "code", "id": "bonus", "source": "1", "outputs": [],
                         "execution_count": None, "metadata": {"nbgrader": about}})  # fmt: skip


def no_metadata(lab):
    for number, cell in enumerate(lab["cells"]):
        cell.update(id=str(number), metadata={})


def broken_metadata(lab):
    for number, cell in enumerate(lab["cells"]):
        cell["metadata"]["nbgrader"] = ["a list", "a text", 3][number % 3]
    lab["metadata"]["shipyard"] = "a text"


def copied_answer(lab):
    (place,) = [i for i, cell in enumerate(lab["cells"]) if cell["id"] == "conv2d"]
    lab["cells"].insert(place, {**lab["cells"][place], "id": "x", "source": "conv2d = None"})


def make_class(folder):
    """Write the hand-ins; return the points that each has earned (None: not graded)."""
    flipped = "def conv2d(x, weight, *args, **options):\n"
    flipped += "    return F.conv2d(x, weight.flip(2, 3), *args, **options)"
    earned = {
        "honest": ALL,
        "wrong": ALL - 3,
        "empty": 0,
        "bonus": 0,
        "own-metadata": ALL,
        "02_convolution-by-name": ALL,
        "copied": ALL,
        "no-json": None,
        "no-notebook": None,
    }
    write_lab(folder / "honest.ipynb", ANSWERS)
    write_lab(folder / "wrong.ipynb", {**ANSWERS, "conv2d": flipped})
    write_lab(folder / "empty.ipynb", {})
    write_lab(folder / "bonus.ipynb", {}, own_graded_cell)
    write_lab(folder / "own-metadata.ipynb", ANSWERS, no_metadata)
    write_lab(folder / "02_convolution-by-name.ipynb", ANSWERS, broken_metadata)
    write_lab(folder / "copied.ipynb", ANSWERS, copied_answer)
    (folder / "no-json.ipynb").write_bytes(b"\x00{[")
    (folder / "no-notebook.ipynb").write_text('{"cells": {"a": ["b"]}, "nbformat": 4}')
    for name, text in FORGERIES.items():
        write_lab(folder / f"{name}.ipynb", {"output_size": FORGED + textwrap.dedent(text)})
        earned[name] = 0
    for name, text in DISASTERS.items():  # conv2d needs output_size too
        trap = textwrap.dedent(text).replace("CLASS", str(folder))
        write_lab(folder / f"{name}.ipynb", {**ANSWERS, "output_size": trap})
        earned[name] = ALL - POINTS["output_size"] - POINTS["conv2d"]
    return earned


def points_by_file(path):
    """The points of each file in the table of marks; None where it was not graded."""
    found = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        name = row["file"].removesuffix(".ipynb")
        if row["diagnosis"] == "not graded":
            found[name] = None
        else:
            assert float(row["max_points"]) == POINTS[row["task"]]
            found[name] = found.get(name, 0) + float(row["points"])
    return found


@pytest.mark.slow(minutes=5)
@pytest.mark.skipif(not sandbox.is_available(), reason="needs bubblewrap: some would do harm")
def test_in_a_class_nobody_earns_what_is_not_theirs_and_nobody_loses_what_is(tmp_path):
    folder, output = tmp_path / "class", tmp_path / "marks"
    folder.mkdir()
    earned = make_class(folder)
    command = [sys.executable, "-m", "shipyard.cli", "grade", *sorted(folder.glob("*.ipynb")),
               "--output", output, "--timeout", "20"]  # fmt: skip

    def records():
        return {path: path.stat().st_mtime_ns for path in (output / "records").glob("*.json")}

    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while len(records()) < 3 and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    before = records()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    resource = pytest.importorskip("resource")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{len(earned)} hand-ins: {time.monotonic() - started:.0f} s, "
          f"{used.ru_utime + used.ru_stime:.0f} s of processors")  # fmt: skip

    assert points_by_file(output / "marks.csv") == earned
    after = records()
    assert 3 <= len(before) < len(after)
    assert {path: after[path] for path in before} == before, "a finished file was graded again"
    assert {path.stem for path in folder.iterdir()} == set(earned), "a hand-in was deleted"

    page = (output / "feedback" / "wrong.ipynb.html").read_text(encoding="utf-8")
    assert "flipped-kernel" in page
    assert f"{ALL - 3} of {ALL} points" in page
    index = (output / "index.html").read_text(encoding="utf-8")
    assert "feedback/honest.ipynb.html" in index
    solved = sum(points in (ALL, ALL - 3, ALL - 4) for points in earned.values())
    assert f"{solved} of {len(earned) - 2}" in index, "of the files with im2col"
    assert str(tmp_path) not in (output / "marks.csv").read_text(encoding="utf-8")


# --- the parts ----------------------------------------------------------------------------------


def elsewhere(*functions):
    """These functions as the check sees them from another process; all passes through JSON."""
    served = remote.Served()

    def ask(request, lent):
        def call_back(place, given):
            args, options = remote.decode(json.loads(json.dumps(given)), lambda _: None)
            return remote.encode(lent[place](*args, **options), served.keep)

        return json.loads(json.dumps(served.answer(json.loads(json.dumps(request)), call_back)))

    return [remote.Remote(served.keep(function)["kept"], ask) for function in functions]


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, float("inf"), 2 + 1j, "✓", (1, [2.5, {"a": (None,)}]), np.float32(0.5),
     np.arange(6).reshape(2, 3), torch.randn(2, 0, 3), torch.ones(()), torch.ones(3).bfloat16(),
     torch.arange(6).reshape(2, 3).T, torch.tensor([True, False]), {3: torch.ones(1, 2)}],
    ids=repr,
)  # fmt: skip
def test_a_value_travels_unchanged(value):
    text = json.dumps(remote.encode(value, None))
    again = remote.decode(json.loads(text), None)
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    "value",
    [{"tensor": ["float32", [10**9, 10**9], ""]}, {"tensor": ["float32", [-1], "AAAA"]},
     {"array": ["|O", [1], "AAAAAAAAAAA="]}, {"pickle": ["x", [], ""]}, {"tuple": 3}, {}],
    ids=repr,
)  # fmt: skip
def test_a_forged_value_is_an_answer_that_cannot_be_read(value):
    with pytest.raises(remote.Raised, match="cannot be read"):
        remote.read_reply({"value": value}, None)


def train_step(model, images, labels, optimizer):
    model.train()
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    ("check", "right"), [(check_conv2d, conv2d_by_loops), (check_train_step, train_step)]
)
def test_a_check_judges_a_function_in_another_process(check, right):
    assert check(*elsewhere(right)) == check(right)
    with pytest.raises(CheckFailed):
        check(*elsewhere(lambda *args, **options: 0.5))


def test_a_function_that_looks_for_the_reference_in_the_frames_finds_none():
    def steals(*args, **options):
        frame = sys._getframe()
        while frame and not hasattr(frame.f_locals.get("self"), "reference"):
            frame = frame.f_back
        return frame.f_locals["self"].reference(*args, **options)

    assert check_normalize(steals), "in the same process it is found"
    served = remote.Served()
    number = served.keep(steals)["kept"]
    reply = served.answer({"do": "call", "number": number, "given": [[3, 2], {"dict": []}]}, None)
    assert reply["error"][0] == "AttributeError"


def test_messages_end_where_they_are_too_long_or_none(tmp_path):
    path = tmp_path / "pipe"
    with path.open("wb") as stream:
        wire.send(stream, {"call": 1})
        stream.write((wire.LIMIT + 1).to_bytes(4, "big"))
    with path.open("rb") as stream:
        assert wire.receive(stream) == {"call": 1}
        assert wire.receive(stream) is None
    for data in (b"\x00\x00", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x01{"):
        path.write_bytes(data)
        assert wire.receive(path.open("rb")) is None


@pytest.mark.parametrize(
    ("change", "own"), [(no_metadata, 0), (broken_metadata, 0), (own_graded_cell, 1)]
)
def test_a_rebuilt_hand_in_holds_the_solutions_cells_and_the_learners_answers(
    tmp_path, change, own
):
    path = tmp_path / "02_convolution_me.ipynb"
    write_lab(path, ANSWERS, change)
    found = handin.rebuild(path, SOLUTION.parent)
    points = {cell.name: cell.points for cell in found.cells if cell.kind == "check"}
    assert points == POINTS
    assert {c.name: c.source for c in found.cells if c.kind == "answer"} == ANSWERS
    assert re.findall(r"of your own: (\d)", found.note) == [str(own)] * bool(own)


def test_a_hand_in_with_no_time_left_loses_only_what_was_not_run():
    cells = (handin.Cell("check", "a", "", 1.0), handin.Cell("check", "b", "", 2.0))
    judge = Judge(cells, False, 1.0)
    judge.verdicts[0] = {"points": 1.0, "diagnosis": "", "message": ""}
    judge.give_up("too slow")
    assert [verdict["points"] for verdict in judge.verdict()] == [1.0, 0.0]


def test_marks_hold_no_folder_and_no_formula(tmp_path):
    message = f"FileNotFoundError: {tmp_path}/a/b.txt"
    task = authoring.TaskScore("t", 0, 1, "=cmd|'/c calc'!A0", message)
    scores = [authoring.Score(tmp_path / name / "a.ipynb", (task,), lab="l") for name in "xy"]
    authoring.write_marks(scores, tmp_path / "marks.csv")
    rows = list(csv.DictReader((tmp_path / "marks.csv").open()))
    assert [row["file"] for row in rows] == ["x/a.ipynb", "y/a.ipynb"]
    assert rows[0]["message"] == "FileNotFoundError: b.txt"
    assert rows[0]["diagnosis"].startswith("'=")


def test_statistics_count_the_solved_and_name_the_commonest_mistake():
    def score(*task):
        return authoring.Score(Path("a"), (authoring.TaskScore("t", *task),), lab="l")

    scores = [score(1, 1), score(0, 1, "x"), score(0, 1, "y"), score(0, 1, "y")]
    (row,) = authoring.task_statistics([*scores, authoring.Score(Path("b"), problem="no JSON")])
    assert (row.lab, row.task, row.files, row.solved) == ("l", "t", 4, 1)
    assert (row.diagnosis, row.count) == ("y", 2)
