"""Sweeps: the grid, what is kept after a crash, what is left running, and the report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from processes import is_gone, wait_until
from shipyard import authoring, cli, sweeps
from shipyard.sweeps import running

pytest.importorskip("distributed", reason="sweeps need the extra `sweep`")

RESULTS = """import json, os, time
from pathlib import Path
metrics = {"loss": 1.5, "note": "text", "curve": [1, 2],
           "test": {"accuracy": 0.5 + LEARNING_RATE / 10 + SEED / 100}}
record = {"device": DEVICE, "profile": PROFILE, "dataset": "stand-in data", "metrics": metrics}
Path(os.environ["SHIPYARD_RESULTS"], "05.json").write_text(json.dumps(record))"""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in sweeps.SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lesson(course):
    """Write notebooks/05_tiny.ipynb: the given cells, then one that writes the results."""

    def write(*sources):
        return course.lesson("05_tiny", *sources, RESULTS)

    return write


@pytest.fixture
def counted(lesson, course):
    """A lesson whose trials wait for the file ``go``, but the first; and what began and ended."""
    began, ended, go, pids = (course.root / name for name in ("began", "ended", "go", "pids"))

    def note(file, text):
        return f"with open({str(file)!r}, 'a') as f: print({text}, file=f)"

    wait = f"while SEED > 0 and not os.path.exists({str(go)!r}): time.sleep(0.05)"
    lesson(
        "import os, time",
        f"{note(pids, 'os.getpid()')}\n{note(pids, 'os.getppid()')}",
        note(began, "LEARNING_RATE, SEED"),
        wait,
        note(ended, "LEARNING_RATE, SEED"),
    )

    class Counts:
        release = staticmethod(go.touch)
        began = staticmethod(lambda: Counter(_lines(began)))
        ended = staticmethod(lambda: Counter(_lines(ended)))
        pids = staticmethod(lambda: [int(pid) for pid in _lines(pids)])

    return Counts


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []


def start(course, *arguments):
    """The command line as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in sweeps.SETTINGS}
    return subprocess.Popen(
        [sys.executable, "-m", "shipyard.cli", "sweep", "05", *arguments, "--output", "out"],
        cwd=course.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def passed_files(folder):
    return [
        p for p in folder.glob("trials/*.json") if json.loads(p.read_text())["state"] == "passed"
    ]


# --- The grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("3", ["3"]),
        (" a , b ", ["a", "b"]),
        ("(1, 2),(3,)", ["(1, 2)", "(3,)"]),
        ("[[1, 2], [3]],None", ["[[1, 2], [3]]", "None"]),
    ],
)
def test_values_are_separated_by_commas_outside_brackets(text, values):
    assert sweeps.split_values("X", text) == values


def test_the_grid_has_every_combination_in_order_and_the_notebooks_types(lesson):
    grid = {"LEARNING_RATE": "0.1,2", "VERBOSE": "true,false", "STEPS": "None,5,0.5"}
    sweep = sweeps.plan(lesson(), {**grid, "SIZES": "(1, 2),(3,)", "EPOCHS": "7"})
    assert len(sweep.trials) == len({t.key for t in sweep.trials}) == 2 * 2 * 3 * 2 * 1
    assert sweep.axes == {
        "LEARNING_RATE": [0.1, 2.0], "VERBOSE": [True, False], "STEPS": [None, 5, 0.5],
        "SIZES": [(1, 2), (3,)], "EPOCHS": [7],
    }  # fmt: skip
    assert type(sweep.axes["LEARNING_RATE"][1]) is float
    assert [list(t.values.values()) for t in sweep.trials[:3]] == [
        [0.1, True, None, (1, 2), 7], [0.1, True, None, (3,), 7], [0.1, True, 5, (1, 2), 7],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "at least one parameter"),
        ({"LEARNING_RATES": "1,2"}, "Did you mean LEARNING_RATE"),
        ({"EPOCHS": "1,two"}, "EPOCHS takes a whole number"),
        ({"EPOCHS": "1,,2"}, "empty value"),
        ({"EPOCHS": "1,2,"}, "empty value"),
        ({"LEARNING_RATE": "0.1,0.10"}, "the value 0.1 2 times"),
    ],
)
def test_a_wrong_grid_is_refused_with_a_clear_message(lesson, grid, message):
    with pytest.raises(authoring.AuthoringError, match=message):
        sweeps.plan(lesson(), grid)


def test_the_key_covers_code_parameters_and_settings_and_nothing_else(lesson, monkeypatch):
    def keys(environment=None, grid="0.1,0.2"):
        path = next(Path(lesson_path.parent).glob("05*.ipynb"))
        return [t.key for t in sweeps.plan(path, {"LEARNING_RATE": grid}, environment).trials]

    lesson_path = lesson("x = 1")
    before = keys()
    assert keys(grid="0.1,0.2,0.3")[:2] == before
    assert keys({"PROFILE": "fast", "SHIPYARD_DATA": "elsewhere"}) == before  # fast: the default
    assert not set(keys({"PROFILE": "full"})) & set(before)
    monkeypatch.setenv("SEED", "3")
    assert not set(keys()) & set(before)
    monkeypatch.delenv("SEED")

    notebook = authoring.read(lesson_path)
    notebook.cells[0].source = "# A better title"
    notebook.cells[2].execution_count = 5
    authoring.write(notebook, lesson_path)
    assert keys() == before
    lesson("x = 2")
    assert not set(keys()) & set(before)


def test_a_swept_setting_is_no_setting_any_more(lesson):
    sweep = sweeps.plan(lesson(), {"SEED": "0,1"}, {"PROFILE": "full"})
    assert sweep.settings == {"PROFILE": "full", "DEVICE": "auto"}


def test_files_of_a_trial_have_readable_names_that_differ(lesson):
    path = lesson()
    first, second = sweeps.plan(path, {"NOTE": "a/b,a:b"}).trials
    assert first.stem.startswith("NOTE=a_b-")
    assert first.stem != second.stem


# --- The package --------------------------------------------------------------------------------


def test_the_package_imports_no_library_of_workers_and_figures_and_not_its_own_program():
    # A module that its package imports makes `python -m` warn, into every trial's log.
    unwanted = {"distributed", "matplotlib", "papermill", "shipyard.sweeps.trial"}
    code = f"import sys; from shipyard import sweeps; print(*{unwanted} & set(sys.modules))"
    called = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert called.stdout.split() == []


# --- What stops a sweep before it begins ----------------------------------------------------------


def test_without_dask_the_message_says_how_to_install_it(monkeypatch, tmp_path, lesson):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(sweeps.SweepError, match=r'pip install "shipyard\[sweep\]"'):
        sweeps.run_sweep(sweeps.plan(lesson(), {"SEED": "0,1"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path, lesson):
    from filelock import FileLock

    sweep, folder = sweeps.plan(lesson(), {"SEED": "0,1"}), tmp_path / "out"
    folder.mkdir()
    with (
        FileLock(folder / ".lock"),
        pytest.raises(sweeps.SweepError, match=r"Another sweep works in .*out"),
    ):
        sweeps.run_sweep(sweep, folder)
    assert not list(folder.glob("trials/*"))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, lesson):
    (tmp_path / "out").touch()
    with pytest.raises(sweeps.SweepError, match="cannot be used as a folder"):
        sweeps.run_sweep(sweeps.plan(lesson(), {"SEED": "0"}), tmp_path / "out")


def test_an_address_where_nobody_answers_is_named(tmp_path, lesson, monkeypatch):
    monkeypatch.setattr(running, "CONNECT", 1)
    sweep = sweeps.plan(lesson(), {"SEED": "0,1"})
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(sweeps.SweepError, match=f"No Dask scheduler answers at {address}"):
            sweeps.run_sweep(sweep, tmp_path, address=address)
    with pytest.raises(sweeps.SweepError, match="jobs or address"):
        sweeps.run_sweep(sweep, tmp_path, address="tcp://127.0.0.1:1", jobs=2)


def test_jobs_share_the_cores(monkeypatch, lesson):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(running, "_cores", lambda: 6)
    sweep = sweeps.plan(lesson(), {"EPOCHS": "1,2"}, {"PROFILE": "full"})
    asked = {"PROFILE": "full", "SHIPYARD_DATA": "/data"}
    here = running._kernel_environment(sweep, asked, jobs=2, address=None)
    assert here == {**asked, "OMP_NUM_THREADS": "3"}
    assert running._kernel_environment(sweep, asked, 2, "tcp://x:1") == {"PROFILE": "full"}
    assert [sweeps.default_jobs(trials) for trials in (0, 1, 4, 100)] == [1, 1, 4, 6]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert running._kernel_environment(sweep, {}, 2, None)["OMP_NUM_THREADS"] == "5"


def test_the_cluster_inside_this_process_listens_on_loopback_only():
    import psutil

    def ports():
        connections = psutil.Process().net_connections(kind="inet")
        return {c.laddr for c in connections if c.status == psutil.CONN_LISTEN}

    before = ports()
    with running._client(2, None) as client:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        opened = ports() - before
    assert {address.ip for address in opened} <= {"127.0.0.1"}
    wait_until(lambda: not ports() - before)


# --- The report ---------------------------------------------------------------------------------


@pytest.fixture
def outcomes(lesson):
    """Outcomes of LEARNING_RATE × SEED without a run; ``change`` may spoil one."""

    def make(grid=None, change=lambda trial: {}, metrics=None):
        def measured(t):
            rate, seed = t.values.get("LEARNING_RATE", 0.1), t.values.get("SEED", 0)
            return {
                "steps": 10, "still_accuracy": 0.5, "ok": True, "curve": [1, 2],
                "test_accuracy": 0.5 + 0.1 * rate + 0.01 * seed, "loss": {"end": 1 - 0.1 * rate},
            }  # fmt: skip

        sweep = sweeps.plan(lesson(), grid or {"LEARNING_RATE": "1,2,4", "SEED": "0,1,2"})
        found = []
        for trial in sweep.trials:
            record = {"dataset": "stand-in data", "metrics": (metrics or measured)(trial)}
            facts = {"state": "passed", "seconds": 1.0, "record": record, **change(trial)}
            found.append(sweeps.Outcome(trial, **facts))
        return sweep, found

    return make


def test_mean_and_spread_are_taken_over_the_seeds(outcomes):
    _, found = outcomes()
    settings = sweeps.settings_of(found, "test_accuracy")
    assert [s.values for s in settings] == [{"LEARNING_RATE": rate} for rate in (1.0, 2.0, 4.0)]
    assert [s.mean for s in settings] == pytest.approx([0.61, 0.71, 0.91])
    assert [s.spread for s in settings] == pytest.approx([0.01] * 3)
    assert settings[0].text == "0.61 ± 0.01 (3)"
    assert sweeps.Setting({}, [2.0]).text == "2"


def test_the_metric_is_an_accuracy_that_moves_else_the_first_number(outcomes):
    _, found = outcomes()
    assert sweeps.choose_metric(found) == "test_accuracy"
    assert sweeps.choose_metric(found, "loss.end") == "loss.end"
    both = {"test_accuracy": 0.5, "validation_accuracy": 0.4}
    _, found = outcomes(metrics=lambda trial: both)
    assert sweeps.choose_metric(found) == "validation_accuracy"
    _, found = outcomes(metrics=lambda trial: {"name": "x", "ok": True, "steps": 3})
    assert sweeps.choose_metric(found) == "steps"
    _, found = outcomes(metrics=lambda trial: {"name": "x"})
    assert sweeps.choose_metric(found) is None


def test_the_report_has_every_trial_in_order_and_the_failed_ones_with_their_errors(
    outcomes, tmp_path
):
    def change(trial):
        first = trial.values == {"LEARNING_RATE": 2.0, "SEED": 1}
        return {"state": "failed", "error": "cell 3 failed:\n\nValueError: a|b"} if first else {}

    sweep, found = outcomes(change=change)
    text = sweeps.write_report(sweep, found, tmp_path, None)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["LEARNING_RATE"], row["SEED"]) for row in rows] == [
        (rate, seed) for rate in ("1.0", "2.0", "4.0") for seed in "012"
    ]
    assert float(rows[8]["test_accuracy"]) == pytest.approx(0.92)
    assert float(rows[8]["loss.end"]) == pytest.approx(0.6)
    assert rows[4]["state"] == "failed"
    assert rows[4]["error"] == "ValueError: a|b"
    assert rows[4]["test_accuracy"] == ""
    page = (tmp_path / "results.md").read_text()
    assert "| 2.0 | 0.71 ± 0.014 (2) |" in page
    assert "## Failed: LEARNING_RATE=2.0 SEED=1" in page
    assert "Data: stand-in data" in page
    assert "lowest 0.61 at LEARNING_RATE=1.0, highest 0.91 at LEARNING_RATE=4.0" in page
    assert "0.91 ± 0.01 (3)" in text
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_two_reports_of_the_same_trials_are_the_same_bytes(outcomes, tmp_path):
    sweep, found = outcomes()
    names = ("results.csv", "results.md", "results.png")
    written = []
    for _ in range(2):
        sweeps.write_report(sweep, found, tmp_path, None)
        written.append([(tmp_path / name).read_bytes() for name in names])
    assert written[0] == written[1]


def test_an_unknown_metric_is_named_and_the_table_is_written_all_the_same(outcomes, tmp_path):
    sweep, found = outcomes()
    with pytest.raises(sweeps.SweepError, match=r"'accuracy'.*Known: steps, .*test_accuracy"):
        sweeps.write_report(sweep, found, tmp_path, "accuracy")
    assert (tmp_path / "results.csv").is_file()


def test_where_every_trial_failed_there_is_a_report_and_no_old_figure(outcomes, tmp_path):
    (tmp_path / "results.png").touch()
    sweep, found = outcomes(change=lambda trial: {"state": "failed", "error": "no"})
    assert "failed" in sweeps.write_report(sweep, found, tmp_path, None)
    assert not (tmp_path / "results.png").exists()


@pytest.mark.parametrize(
    ("grid", "along", "ticks", "scale", "lines"),
    [
        ({"LEARNING_RATE": "1,4", "SEED": "0,1"}, "LEARNING_RATE", ["1.0", "4.0"], "linear", 1),
        ({"LEARNING_RATE": "0.01,0.1,1"}, "LEARNING_RATE", ["0.01", "0.1", "1.0"], "log", 1),
        ({"STEPS": "None,5", "LEARNING_RATE": "1,2"}, "STEPS", ["None", "5"], "linear", 2),
        ({"EPOCHS": "3", "LEARNING_RATE": "1,2"}, "LEARNING_RATE", ["1.0", "2.0"], "linear", 1),
        ({"SEED": "0,1,2"}, "SEED", ["0", "1", "2"], "linear", 1),
        ({"EPOCHS": "3"}, "EPOCHS", ["3"], "linear", 1),
        ({"LEARNING_RATE": "1,2", "EPOCHS": ",".join(map(str, range(9)))}, "LEARNING_RATE",
         ["1.0", "2.0"], "linear", 9),
    ],
)  # fmt: skip
def test_the_figure_has_labelled_axes_and_a_line_for_each_other_setting(
    outcomes, grid, along, ticks, scale, lines
):
    sweep, found = outcomes(grid)
    figure, alt = sweeps.draw(sweep, found, "test_accuracy")
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == (along, "test accuracy (%)")
    assert [label.get_text() for label in axis.get_xticklabels()] == ticks
    assert axis.get_xscale() == scale
    assert len(axis.containers) == lines
    assert (axis.get_legend() is not None) == (lines > 1)
    assert "stand-in data" in axis.get_title()
    assert "stand-in data" in alt
    drawn = [y for bars in axis.containers for y in bars.lines[0].get_ydata()]
    wanted = [100 * s.mean for s in sweeps.settings_of(found, "test_accuracy")]
    if along != "SEED":
        assert sorted(drawn) == pytest.approx(sorted(wanted))


# --- Whole sweeps ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_from_the_command_line_lists_failures_and_retries_only_them(
    course, lesson, monkeypatch, capsys
):
    monkeypatch.chdir(course.root)
    broken, runs = course.root / "broken", course.root / "runs.txt"
    lesson(
        f"import os\nwith open({str(runs)!r}, 'a') as f: print(LEARNING_RATE, SEED, file=f)",
        f"if SEED == 1 and os.path.exists({str(broken)!r}): raise ValueError('a bad seed')",
    )
    before = signal.getsignal(signal.SIGTERM)

    def call(*extra):
        status = 0
        try:
            cli.main(["sweep", "05", "-p", "LEARNING_RATE", "1,2", "-p", "SEED", "0,1", *extra])
        except SystemExit as end:
            status = end.code or 0
        output = capsys.readouterr()
        return status, output.out, output.err

    try:
        broken.touch()
        status, text, error = call()
        assert status == 1
        assert "2 of 4 trials passed" in text
        assert error.count("ValueError: a bad seed") == 2
        (folder,) = course.root.glob("runs/sweep-tiny-*")
        (record,) = folder.glob("trials/LEARNING_RATE=2.0_SEED=1-*.json")
        assert json.loads(record.read_text())["state"] == "failed"
        kept = authoring.read(record.with_suffix(".ipynb"))
        assert "a bad seed" in str(kept.cells[-2].outputs)

        broken.unlink()
        status, text, _ = call("--jobs", "1")
        assert status == 0
        assert "2 done before, 2 to run (1 at once)" in text
        assert Counter(_lines(runs)) == {"1.0 0": 1, "2.0 0": 1, "1.0 1": 2, "2.0 1": 2}

        status, text, _ = call("--metric", "loss")
        assert (status, "4 done before, 0 to run" in text) == (0, True)
        assert "1.5 ± 0 (2)" in (folder / "results.md").read_text()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_results_of_another_code_or_grid_are_kept_and_not_used(lesson, tmp_path):
    said = []

    def run(grid, *sources):
        return sweeps.run_sweep(sweeps.plan(lesson(*sources), grid), tmp_path, say=said.append)

    run({"SEED": "0,1"}, "x = 1")
    (outcome,) = run({"SEED": "0"}, "x = 2")
    assert outcome.state == "passed"
    assert "0 done before, 1 to run" in said[1]
    assert said[2].startswith("2 results there come from another version of the notebook")
    run({"SEED": "0,2"}, "x = 2")
    assert "1 done before, 1 to run" in said[3]
    run({"SEED": "2"}, "x = 2")
    assert said[-1].startswith("1 results there belong to other parameters")
    assert len(list(tmp_path.glob("trials/*.json"))) == 4


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc to see which processes live")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_after_a_stop_nothing_runs_on_and_no_finished_trial_is_repeated(course, counted, how):
    arguments = ("-p", "LEARNING_RATE", "1,2", "-p", "SEED", "0,1", "--jobs", "2")
    process = start(course, *arguments)
    try:
        wait_until(lambda: len(passed_files(course.root / "out")) == 1)
        wait_until(lambda: counted.began()["1.0 1"] == 1)
        process.send_signal(how)
        text, _ = process.communicate(timeout=60)
        wait_until(lambda: all(map(is_gone, counted.pids())), seconds=30)
    finally:
        process.kill()
    finished = counted.ended()
    assert finished["1.0 0"] == 1
    assert finished["1.0 1"] == 0
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "Stopped." in text
        assert "Traceback" not in text

    counted.release()
    process = start(course, *arguments)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert "4 of 4 trials passed" in text
    assert counted.ended()["1.0 0"] == 1
    assert counted.began()["1.0 1"] == 2
    assert not list((course.root / "out").rglob(".*.tmp"))
    assert all(map(is_gone, counted.pids()))


@pytest.mark.slow
def test_a_cell_that_takes_too_long_fails_its_trial_and_no_other(lesson, tmp_path):
    sweep = sweeps.plan(lesson("import time\nif SEED: time.sleep(600)"), {"SEED": "0,1"})
    first, second = sweeps.run_sweep(sweep, tmp_path, timeout=20)
    assert (first.state, second.state) == ("passed", "failed")
    assert "longer than 20 seconds" in second.error


@pytest.mark.slow
def test_a_killed_trial_is_tried_again_and_given_up_after_three_times(lesson, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    sweep = sweeps.plan(
        lesson(
            f"""import os, pathlib, signal
tries = len(list(pathlib.Path({str(marks)!r}).glob(f"{{SEED}}-*")))
pathlib.Path({str(marks)!r}, f"{{SEED}}-{{tries}}").touch()
if SEED == 2 or SEED == 1 and tries == 0:
    os.kill(os.getppid(), signal.SIGKILL)""",
        ),
        {"SEED": "0,1,2"},
    )
    found = sweeps.run_sweep(sweep, tmp_path / "out")
    assert [outcome.state for outcome in found] == ["passed", "passed", "failed"]
    assert "SEED=2: The process of the trial ended (status -9)" in found[2].error
    assert [len(list(marks.glob(f"{seed}-*"))) for seed in range(3)] == [1, 2, sweeps.ATTEMPTS]


# --- On a cluster ---------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A scheduler and two worker processes, which work in a folder of their own."""
    from distributed import LocalCluster

    there = tmp_path / "elsewhere"
    there.mkdir()
    monkeypatch.chdir(there)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, memory_limit=0,
        dashboard_address="127.0.0.1:0",
    ) as started:  # fmt: skip
        yield started


@pytest.mark.slow
def test_a_cluster_gets_texts_and_gives_results_and_survives_a_workers_death(
    cluster, counted, course
):
    from distributed import Client

    said = []
    folder = course.root / "out"
    sweep = sweeps.plan(course.root / "notebooks" / "05_tiny.ipynb", {"SEED": "0,1,2"})
    found = []

    def run():
        address = cluster.scheduler_address
        found.extend(sweeps.run_sweep(sweep, folder, address=address, say=said.append))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: len(passed_files(folder)) == 1)
    wait_until(lambda: sum(counted.began().values()) == 3)
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        pids = client.run(os.getpid)
        busy = [worker for worker, tasks in client.processing().items() if tasks]
        os.kill(pids[busy[0]], signal.SIGKILL)
        wait_until(lambda: sum(counted.began().values()) >= 4)  # it is tried again
    counted.release()
    thread.join(timeout=240)
    assert [outcome.state for outcome in found] == ["passed"] * 3
    assert [o.metrics["test.accuracy"] for o in found] == pytest.approx([0.51, 0.52, 0.53])
    assert counted.began()["0.1 0"] == counted.ended()["0.1 0"] == 1
    assert f"on {cluster.scheduler_address}" in said[0]
    assert len(list(folder.glob("trials/*.ipynb"))) == 3


@pytest.mark.slow
def test_workers_need_the_same_shipyard(cluster, lesson, tmp_path, monkeypatch):
    monkeypatch.setattr("shipyard.__version__", "99")
    sweep = sweeps.plan(lesson(), {"SEED": "0,1"})
    with pytest.raises(sweeps.SweepError, match=r"needs shipyard 99, as here; found: \d"):
        sweeps.run_sweep(sweep, tmp_path / "out", address=cluster.scheduler_address)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="reads /proc to see which processes live")
def test_a_killed_client_leaves_nothing_running_on_the_cluster(cluster, counted, course):
    process = start(course, "-p", "SEED", "1,2", "--address", cluster.scheduler_address)
    try:
        wait_until(lambda: sum(counted.began().values()) == 2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        wait_until(lambda: all(map(is_gone, counted.pids())), seconds=60)
    finally:
        process.kill()
    assert not counted.ended()


@pytest.mark.slow
def test_a_cluster_that_goes_away_ends_the_sweep_with_a_clear_message(cluster, counted, course):
    process = start(course, "-p", "SEED", "0,1,2", "--address", cluster.scheduler_address)
    try:
        wait_until(lambda: len(passed_files(course.root / "out")) == 1)
        wait_until(lambda: sum(counted.began().values()) == 3)
        cluster.close()
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2
    assert "was lost. What has ended is saved" in text
    wait_until(lambda: all(map(is_gone, counted.pids())), seconds=60)
