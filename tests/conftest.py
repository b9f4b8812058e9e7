"""What every test stands on: the device, the data, and folders that no test may dirty."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def pytest_configure(config: pytest.Config) -> None:
    """Stop at once where $DEVICE names a device that is missing: nothing falls back silently."""
    shared = ROOT.parent / "shared" / "data"
    if not os.environ.get("SHIPYARD_DATA") and shared.is_dir():
        os.environ["SHIPYARD_DATA"] = str(shared)
    if os.environ.get("DEVICE") and not hasattr(config, "workerinput"):
        from shipyard import runtime

        try:
            runtime.resolve_device(os.environ["DEVICE"])
        except runtime.ShipyardError as error:
            pytest.exit(str(error), returncode=2)


def find_chromium() -> str | None:
    """The system's Chromium or Chrome; ``$CHROMIUM`` names another one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, CHROMIUMS)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            reason = f"needs a CUDA device; torch {torch.__version__} sees none here"
            _skip(items, "gpu", reason)
    if find_chromium() is None:
        _skip(items, "browser", f"needs one of these on the PATH: {', '.join(CHROMIUMS)}")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def chromium() -> str:
    """The browser's path; tests marked ``browser`` are skipped where there is none."""
    found = find_chromium()
    assert found is not None, "a test that drives the browser must be marked `browser`"
    return found


@pytest.fixture(autouse=True)
def _results_go_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    """No test writes into the checkout's results/. The cache is shared: it is safe and slow."""
    monkeypatch.setenv("SHIPYARD_RESULTS", str(tmp_path_factory.getbasetemp() / "results"))
