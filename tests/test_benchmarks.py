"""The benchmarks run, say where their figures come from, and go on after a stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "time_to_accuracy.py"

SMALL = (
    *("--dataset", "stand-in", "--images", "4000", "--device", "cpu"),
    *("--seeds", "1", "--threads", "1", "--max-steps", "20"),
)


def measure(output: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *SMALL, "--output", str(output), *options],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip


@pytest.mark.slow
def test_time_to_accuracy_is_measured_written_and_never_measured_twice(tmp_path):
    output = tmp_path / "small"
    done = measure(output)
    assert done.returncode == 0, done.stderr
    record = json.loads(output.with_suffix(".json").read_text())
    assert [run["recipe"] for run in record["runs"]] == [
        "articles", "articles_batched", "sprint", "sprint_float32", "long",
    ]  # fmt: skip
    assert record["setting"]["stand_in"] is True
    assert record["summary"]["recipes"]["sprint"]["seconds"] > 0
    assert set(record["summary"]["times_sooner"]) == {"sprint", "sprint_float32"}
    assert output.with_suffix(".png").stat().st_size > 10_000

    again = measure(output)
    assert again.stdout.count("is done already") == 5
    assert json.loads(output.with_suffix(".json").read_text()) == record

    other = measure(output, "--max-steps", "30")
    assert other.returncode != 0
    assert "another setting" in other.stderr
