"""What every test stands on: the device, the data, and folders that no test may dirty."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from second_device import build

ROOT = Path(__file__).resolve().parents[1]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


# Hypothesis fails a test that takes over 200 ms once; on a busy machine any does.
settings.register_profile("shipyard", deadline=None)
settings.load_profile("shipyard")


def pytest_configure(config: pytest.Config) -> None:
    """Stop at once where $DEVICE names a device that is missing: nothing falls back silently.

    Tests start with the data beside the checkout, and with Ctrl-C as in a terminal.
    """
    shared = ROOT.parent / "shared" / "data"
    if not os.environ.get("SHIPYARD_DATA") and shared.is_dir():
        os.environ["SHIPYARD_DATA"] = str(shared)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's job with & begins so, and so would the programs that tests start and stop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("DEVICE") and not hasattr(config, "workerinput"):
        from shipyard import runtime
        from shipyard.errors import ShipyardError

        try:
            runtime.resolve_device(os.environ["DEVICE"])
        except ShipyardError as error:
            pytest.exit(str(error), returncode=2)


def device_environment() -> tuple[str, dict[str, str]]:
    """A device that is not the CPU, and the variables under which a new process knows it.

    It is $DEVICE where that names one, else the second device of tests/second_device.
    """
    named = os.environ.get("DEVICE", "auto")
    if named not in ("auto", "cpu"):
        return named, {}
    return "second", build.environment()


def pytest_report_header() -> str:
    """Say on which device the tests of `device_environment` run."""
    named = os.environ.get("DEVICE", "auto")
    if named in ("auto", "cpu"):
        reason = build.why_not()
        found = f"none ({reason})" if reason else "second device (CPU memory)"
    else:
        import torch

        is_gpu = torch.device(named).type == "cuda"
        found = f"{named}: {torch.cuda.get_device_name(named)}" if is_gpu else named
    return f"device checks: {found}"


def find_chromium() -> str | None:
    """The system's Chromium or Chrome; ``$CHROMIUM`` names another one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, CHROMIUMS)), None)


@pytest.hookimpl(trylast=True)  # after -m has left out what this run does not want
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why. The longest come first, so that no worker is
    left alone with one of them at the end."""
    items.sort(key=_minutes, reverse=True)
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.accelerator.is_available():
            reason = f"needs an accelerator; torch {torch.__version__} sees none in this process"
            _skip(items, "gpu", reason)
    if find_chromium() is None:
        reason = f"needs one of these on the PATH: {', '.join(CHROMIUMS)}"
        if os.environ.get("CI") == "true" and any(i.get_closest_marker("browser") for i in items):
            raise pytest.UsageError(f"CI=true, so the browser tests may not be skipped: {reason}")
        _skip(items, "browser", reason)


def _minutes(item: pytest.Item) -> float:
    """Of ``@pytest.mark.slow(minutes=…)``; 0 where nothing is said."""
    marker = item.get_closest_marker("slow")
    return marker.kwargs.get("minutes", 0) if marker else 0


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a device that is not the CPU and that new processes know.

    Without a C++ compiler the test is skipped; on CI, where one is expected, it fails.
    """
    named, reason = os.environ.get("DEVICE", "auto"), build.why_not()
    if reason and named in ("auto", "cpu"):
        if os.environ.get("CI") == "true" and sys.platform != "win32":
            pytest.fail(reason)
        pytest.skip(reason)
    name, environment = device_environment()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return name


@pytest.fixture
def accelerator():
    """The accelerator of this process, for tests marked ``gpu``."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; tests marked ``browser`` are skipped where there is none."""
    found = find_chromium()
    assert found is not None, "a test that drives the browser must be marked `browser`"
    return found


@pytest.fixture(autouse=True)
def _results_go_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    """No test writes into the checkout's results/. The cache is shared: it is safe and slow."""
    monkeypatch.setenv("SHIPYARD_RESULTS", str(tmp_path_factory.getbasetemp() / "results"))


PARAMETERS = """import os
PROFILE = os.environ.get("PROFILE", "fast")
DEVICE = os.environ.get("DEVICE", "auto")
SEED = int(os.environ.get("SEED", "0"))
EPOCHS = 2
LEARNING_RATE = 0.1
VERBOSE = False
SIZES = (1, 2)
NOTE: str | None = None
STEPS = None"""
RESULTS = """import json
from pathlib import Path
record = {"device": DEVICE, "profile": PROFILE, "dataset": "stand-in",
          "metrics": {"epochs": EPOCHS, "accuracy": 0.51239, "curve": [1, 2]}}
Path(os.environ["SHIPYARD_RESULTS"], "good.json").write_text(json.dumps(record))"""
CHECKS = """class CheckFailed(AssertionError):
    def __init__(self, message, diagnosis):
        super().__init__(message)
        self.diagnosis = diagnosis

def check(candidate, expected):
    if candidate(3) != expected:
        raise CheckFailed(f"expected {expected}, got {candidate(3)}", "wrong-number")
    return "correct"
"""


class Course:
    """A checkout in miniature, with a lesson that works, four that do not, and a lab."""

    def __init__(self, root: Path):
        self.root = root
        for folder in ("notebooks", "solutions"):
            (root / folder).mkdir(parents=True)
        (root / "pyproject.toml").touch()

    def lesson(self, name: str, *sources: str) -> Path:
        """Write notebooks/NAME.ipynb: a title, the parameters, and one cell for each source."""
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

        cells = [
            new_markdown_cell("# Title"),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, sources),
        ]
        return self.write(self.root / "notebooks" / f"{name}.ipynb", new_notebook(cells=cells))

    def good_lesson(self) -> Path:
        """01_good: prints its parameters and writes a result file."""
        return self.lesson("01_good", "print(EPOCHS, LEARNING_RATE, VERBOSE, STEPS)", RESULTS)

    def solution(self, name: str = "01_tiny") -> Path:
        """Write a solution with two tasks, square (2 points) and double (3 points)."""
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

        def marked(grade_id: str, **changes) -> dict:
            about = {"grade": False, "grade_id": grade_id, "locked": False, "schema_version": 3,
                     "solution": False, "task": False, **changes}  # fmt: skip
            return {"nbgrader": about}

        def task(name: str, answer: str) -> str:
            body = f"    ### BEGIN SOLUTION\n    return {answer}\n    ### END SOLUTION"
            return f'def {name}(x):\n    """Return {answer}."""\n{body}'

        cells = [
            new_markdown_cell("# Lab", metadata=marked("title", locked=True)),
            new_code_cell(CHECKS, metadata=marked("setup", locked=True)),
            new_code_cell(task("square", "x * x"), metadata=marked("square", solution=True)),
            new_code_cell("check(square, 9)",
                metadata=marked("check-square", grade=True, locked=True, points=2)),
            new_code_cell(task("double", "x + x"), metadata=marked("double", solution=True)),
            new_code_cell("check(double, 6)",
                metadata=marked("check-double", grade=True, locked=True, points=3)),
        ]  # fmt: skip
        return self.write(self.root / "solutions" / f"{name}.ipynb", new_notebook(cells=cells))

    @staticmethod
    def write(path: Path, notebook) -> Path:
        from shipyard.authoring import files

        files.write(files.normalise(notebook), path)
        return path


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """An empty checkout in miniature, outside this one."""
    return Course(tmp_path / "course")
