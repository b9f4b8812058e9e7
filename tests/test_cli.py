"""The command line: what it does, what it says, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from processes import is_gone, wait_until
from shipyard import authoring, cli

COMMANDS = (
    "run", "sweep", "data", "serve", "labs", "contents", "grade", "normalise", "check-device",
)  # fmt: skip


@pytest.fixture
def shipyard(course, monkeypatch, capsys):
    """Call the command line inside the small course: (exit status, stdout, stderr)."""
    monkeypatch.chdir(course.root)
    for name in ("PROFILE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        status = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code or 0
        output = capsys.readouterr()
        return status, output.out, output.err

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


def start(course, *arguments):
    """The command line as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PROFILE", "DEVICE")}
    return subprocess.Popen(
        [sys.executable, "-m", "shipyard.cli", *map(str, arguments)], cwd=course.root,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_the_help_names_every_command_and_loads_nothing_heavy():
    code = "\n".join([
        "import sys; from shipyard import cli",
        "try: cli.main(['--help'])",
        "finally: print('loaded:', *{name.partition('.')[0] for name in sys.modules})",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    text, _, loaded = done.stdout.partition("loaded:")
    assert done.returncode == 0
    assert all(command in text for command in COMMANDS)
    assert not {"torch", "numpy", "matplotlib", "nbformat", "fastapi"} & set(loaded.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(shipyard, command):
    status, text, _ = shipyard(command, "--help")
    assert status == 0
    assert command in text


def test_the_help_of_grade_says_where_code_runs_without_a_sandbox(shipyard):
    _, text, _ = shipyard("grade", "--help")
    assert "Warning" in text
    words = " ".join(text.replace("│", " ").split())
    assert "with your rights and without a sandbox" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check-device", "cuda:99"], "'cuda:99', which this machine does not have"),
        (["run", "--all", "--device", "abacus"], "'abacus', which this machine does not have"),
        (["run", "01", "--profile", "slow"], "choose one of: fast, full"),
        (["run", "nine"], "There is no notebook 'nine'"),
        (["run", "01", "-p", "EPOCH", "3"], "Did you mean EPOCHS?"),
        (["run", "01", "-p", "EPOCHS", "three"], "EPOCHS takes a whole number"),
        (["run", "01", "-p", "STEPS", "abc"], "STEPS takes a number"),
        (["run", "01", "--output", "notebooks"], "would overwrite"),
        (["run", "01", "--output", "pyproject.toml/out"], "cannot hold the results"),
        (["sweep", "01", "-p", "SEED", "1,2", "--address", "nonsense"], "No Dask scheduler"),
        (["sweep", "01", "-p", "EPOCH", "1,2"], "Did you mean EPOCHS?"),
        (["sweep", "01"], "at least one parameter"),
        (["labs"], "holds no notebooks"),
        (["normalise", "missing.ipynb"], "does not exist"),
        (["serve", "missing.onnx"], "missing.onnx"),
    ],
)
def test_a_mistake_gets_one_clear_message_and_exit_status_2(shipyard, course, arguments, message):
    course.good_lesson()
    status, _, error = shipyard(*arguments)
    assert status == 2
    assert error.startswith("Error: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(course.root.glob("runs/*"))


@pytest.mark.parametrize("command", [["run", "01"], ["sweep", "01", "-p", "EPOCHS", "1,2"]])
def test_a_seed_in_the_environment_that_is_no_number_is_refused(
    shipyard, course, monkeypatch, command
):
    course.good_lesson()
    monkeypatch.setenv("SEED", "abc")
    status, _, error = shipyard(*command)
    assert (status, error.count("\n")) == (2, 1)
    assert "SEED is 'abc'; it must be a whole number" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "01", "--all"],
        ["run", "01", "-p", "X"],
        ["sweep", "01", "-p", "EPOCHS=1", "-p", "EPOCHS=2"],
    ],
)
def test_arguments_that_say_too_little_or_too_much_are_refused(shipyard, course, arguments):
    course.good_lesson()
    status, _, error = shipyard(*arguments)
    assert status == 2
    assert "Invalid value" in error


def test_an_error_that_is_not_ours_keeps_its_traceback(shipyard, monkeypatch):
    def breaks(name):
        raise RuntimeError("a defect")

    monkeypatch.setattr("shipyard.runtime.resolve_device", breaks)
    with pytest.raises(RuntimeError, match="a defect"):
        shipyard("check-device", "cpu")


def test_check_device_says_which_device_it_is(shipyard):
    assert shipyard("check-device", "cpu")[:2] == (0, "cpu\n")


@pytest.mark.parametrize(
    ("arguments", "joined"),
    [
        (["-p", "A", "1", "-p", "B", "-2"], ["-p", "A=1", "-p", "B=-2"]),
        (["--parameter", "A", "x=y"], ["--parameter", "A=x=y"]),
        (["-p", "A=1", "02"], ["-p", "A=1", "02"]),
        (["01", "-p"], ["01", "-p"]),
    ],
)
def test_a_parameter_may_be_two_words(arguments, joined):
    assert cli.join_pairs(arguments) == joined


def test_data_says_where_it_is_and_fails_when_it_is_only_the_stand_in(shipyard, monkeypatch):
    asked = []

    def load(download, stand_in):
        asked.append(download)
        return SimpleNamespace(stand_in=stand_in)

    monkeypatch.setattr("shipyard.data.load_cifar10", lambda download: load(download, False))
    assert shipyard("data")[0] == 0
    monkeypatch.setattr("shipyard.data.load_cifar10", lambda download: load(download, True))
    status, text, _ = shipyard("data", "--no-download")
    assert (status, asked) == (1, [True, False])
    assert "stand-in data, not CIFAR-10" in text


def test_serve_hands_its_arguments_on(shipyard, monkeypatch):
    calls = []
    monkeypatch.setattr("shipyard.serving.serve", lambda *a, **k: calls.append((a, k)))
    given = ("--host", "::1", "--port", "8123", "--longest-wait", "2", "--largest-batch", "8")
    assert shipyard("serve", "net.onnx", *given)[0] == 0
    ((model,), options) = calls[0]
    assert str(model) == "net.onnx"
    limits = options.pop("limits")
    assert options == {"host": "::1", "port": 8123}
    assert (limits.largest_batch, limits.longest_wait, limits.longest_queue) == (8, 0.002, 64)


def test_labs_writes_checks_and_keeps_a_learners_work(shipyard, course):
    pytest.importorskip("nbgrader", reason="labs need the extra `teach`")
    course.solution()
    assert shipyard("labs", "--check")[0] == 1
    status, text, _ = shipyard("labs")
    assert (status, text) == (0, "labs/01_tiny.ipynb: written\n")
    assert shipyard("labs", "--check")[:2] == (0, "1 labs are up to date.\n")

    lab = course.root / "labs" / "01_tiny.ipynb"
    lab.write_text(lab.read_text().replace("raise NotImplementedError", "return 9 #"))
    status, text, _ = shipyard("labs")
    assert status == 0
    assert "labs/01_tiny.new.ipynb: kept" in text
    assert "holds your work" in text
    assert "return 9" in lab.read_text()


@pytest.mark.slow
def test_grade_goes_on_after_a_broken_file_and_writes_the_marks(shipyard, course):
    solution = course.solution()
    broken = course.root / "broken.ipynb"
    broken.write_text("{")
    status, text, _ = shipyard("grade", broken, solution, "--csv", "marks/week1.csv")
    assert status == 0
    assert "not graded" in text
    assert "5/5" in text
    marks = (course.root / "marks" / "week1.csv").read_text()
    assert "square,2,2" in marks
    assert "not graded" in marks


def test_grade_fails_when_nothing_could_be_graded(shipyard, course):
    pytest.importorskip("nbgrader", reason="grading needs the extra `teach`")
    course.solution()
    broken = course.root / "broken.ipynb"
    broken.write_text("{")
    assert shipyard("grade", broken)[0] == 1


def test_normalise_mends_and_with_check_only_tells(shipyard, course):
    path = course.good_lesson()
    assert shipyard("normalise", "--check", path)[0] == 0
    notebook = authoring.read(path)
    notebook.cells[1].metadata["papermill"] = {"duration": 1.0}
    authoring.write(notebook, path)
    status, _, error = shipyard("normalise", "--check", path)
    assert status == 1
    assert "Run: shipyard normalise" in error
    assert shipyard("normalise", path)[0] == 0
    assert shipyard("normalise", "--check", path)[0] == 0


@pytest.mark.slow
def test_run_all_tells_each_state_quotes_the_failure_and_exits_1(shipyard, course):
    course.good_lesson()
    course.lesson("00_bad", "1 / 0")
    status, text, error = shipyard("run", "--all", "-p", "EPOCHS", "3", "--profile", "full")
    assert status == 1
    lines = [line.split() for line in text.splitlines() if line]
    assert [line[:2] for line in lines[:4]] == [
        ["00_bad", "running"], ["00_bad", "failed"], ["01_good", "running"], ["01_good", "passed"],
    ]  # fmt: skip
    assert "1 of 2 passed" in text
    assert "    1 / 0\n\nZeroDivisionError" in error
    (index,) = course.root.glob("runs/*/index.html")
    assert "<dt>epochs</dt><dd>3</dd>" in index.read_text()
    assert "<td>full</td>" in index.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc to see which processes live")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_behind_and_writes_its_index(course, how):
    note = course.root / "pid"
    course.lesson(
        "01_long",
        f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))",
        "print('wor' + 'king')\ntime.sleep(600)",
    )
    process = start(course, "run", "01", "--output", "out")
    try:
        copy = course.root / "out" / "01_long.ipynb"
        wait_until(lambda: note.exists() and note.read_text() and copy.exists(), seconds=240)
        process.send_signal(how)
        text, _ = process.communicate(timeout=60)
        wait_until(lambda: is_gone(int(note.read_text())))
    finally:
        process.kill()
    page = (course.root / "out" / "index.html").read_text()
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "Stopped. What was done is in out/index.html" in text
        assert "interrupted" in page


def test_a_command_without_its_extra_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbformat", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("shipyard.authoring")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "start_here"])
    assert stopped.value.code == 2
    assert 'needs nbformat. Install it: pip install "shipyard[lab]"' in capsys.readouterr().err
