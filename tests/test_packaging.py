"""One list of dependencies, and commands that do what README says they do."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def requirement_name(line: str) -> str:
    return re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower().replace("_", "-")


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {requirement_name(name): version for name, version in pins.items()}


def test_environment_yml_repeats_nothing_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, from_pip = environment["dependencies"]
    assert pip == "pip"
    constraint, editable = from_pip["pip"]
    assert constraint == "--constraint constraints.txt"
    extras = re.fullmatch(r"--editable \.\[([\w,]+)\]", editable).group(1).split(",")
    assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
    minimum = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert python == f"python={minimum}"


def test_every_direct_dependency_has_one_tested_version():
    direct = list(PYPROJECT["project"]["dependencies"])
    for extra in PYPROJECT["project"]["optional-dependencies"].values():
        direct += extra
    pinned = constraints()
    missing = {requirement_name(line) for line in direct} - set(pinned) - {"shipyard"}
    assert not missing, f"constraints.txt pins no version of: {sorted(missing)}"


def test_the_workflow_tests_the_oldest_python_that_pyproject_allows():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    versions = workflow["jobs"]["pinned"]["strategy"]["matrix"]["python"]
    minimum = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert minimum in versions
    assert len(versions) >= 3
    schedule = workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true
    assert schedule, "the workflow must also run every week"


def test_every_make_command_in_the_readme_is_a_target():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
    assert {"lab", "run", "test", "check"} <= named
    assert named <= targets, f"README names no targets of the Makefile: {named - targets}"


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert script.strip().endswith("make test")
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["run", "check"])
def test_a_missing_device_stops_make_before_any_work(target):
    if not (ROOT / ".venv/bin/shipyard").exists():
        pytest.skip("this environment is not the Makefile's .venv, so make has nothing to call")
    # -o: the environment of this very test is installed, whatever the time stamps say.
    command = ["make", "-o", ".venv/.lab", "-o", ".venv/.test", "-o", ".venv/bin/python", target]
    environment = {**os.environ, "DEVICE": "cuda:99", "MAKEFLAGS": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "cuda:99" in done.stderr + done.stdout
    assert "Available: auto" in done.stderr + done.stdout
    assert "passed" not in done.stdout
