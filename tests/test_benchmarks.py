"""The benchmarks run, say where their figures come from, and go on after a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from served_models import write_model
from shipyard import processor

SERVING = Path(__file__).resolve().parents[1] / "benchmarks" / "serving.py"
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "time_to_accuracy.py"

SMALL = (
    *("--dataset", "stand-in", "--images", "4000", "--device", "cpu"),
    *("--seeds", "1", "--threads", "1", "--max-steps", "20"),
)


def measure(results: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *SMALL, *options],
        capture_output=True, text=True, timeout=400,
        env={**os.environ, "SHIPYARD_RESULTS": str(results)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_newcomer_measures_his_own_machine_once_and_sees_the_others_beside_it(tmp_path):
    done = measure(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is done already" not in done.stdout
    (file,) = tmp_path.glob("time_to_accuracy-*.json")
    record = json.loads(file.read_text())
    assert [run["recipe"] for run in record["runs"]] == [
        "articles", "articles_no_workers", "articles_batched", "sprint", "sprint_float32", "long",
    ]  # fmt: skip
    for run in record["runs"]:
        assert {"test_accuracy", "test_accuracy_flipped"} < set(run)
    setting = record["setting"]
    assert setting["stand_in"] is True
    assert setting["processor"] == processor.describe()
    assert {"family", "model", "flags", "threads", "versions"} < set(setting)
    assert record["peak_gflops"] > 0
    assert file.with_suffix(".png").stat().st_size > 10_000
    for other in (BENCHMARK.parent / "results").glob("*.json"):
        label = json.loads(other.read_text())["setting"]["processor"]
        assert f"measured elsewhere ({other.name}):\n{label}" in done.stdout

    again = measure(tmp_path)
    assert again.stdout.count("is done already") == 6
    assert json.loads(file.read_text()) == record

    other = measure(tmp_path, "--max-steps", "30", "--output", str(file))
    assert other.returncode != 0
    assert "another setting" in other.stderr


@pytest.mark.slow
def test_the_server_is_measured_in_both_wire_formats(tmp_path):
    options = ["--seconds", "0.5", "--rounds", "1", "--halvings", "0", "--start", "10"]
    model = write_model(tmp_path / "model.onnx")
    written = tmp_path / "measured.json"
    done = subprocess.run(
        [sys.executable, str(SERVING), *options, "--model", str(model), "--output", str(written)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(written.read_text())
    assert record["setting"]["processor"] == processor.describe()
    assert record["setting"]["versions"]["onnxruntime"] in done.stdout
    for name in ("ours, JSON", "ours, binary"):
        (measured,) = record["servers"][name]["rounds"]
        assert measured["alone_ms"] > measured["bare_ms"] > 0
        assert measured["rate"] >= 0
        assert f"\n{name} " in done.stdout
