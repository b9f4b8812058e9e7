"""monitoring.registry: versions with their origins, aliases, two writers, and a registry gone."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from test_monitoring import write_model

pytest.importorskip("mlflow", reason="MLflow comes with the extra monitor")

from shipyard import serving
from shipyard.errors import ModelError, MonitoringError
from shipyard.monitoring import ModelSlot
from shipyard.monitoring.registry import Registry, current_commit, fingerprint

MADE = {"data_version": "d1", "git_commit": "c1"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A folder with a fresh registry in it: building its tables takes seconds."""
    folder = tmp_path_factory.mktemp("registry")
    Registry(folder)
    return folder


@pytest.fixture
def registry(empty, request):
    return Registry(empty, experiment=request.node.name)


@pytest.mark.slow
def test_a_version_tells_what_it_was_made_of(registry, tmp_path):
    path = write_model(tmp_path / "m.onnx", 2)
    entry = registry.register("story", path, metrics={"accuracy": 0.75}, **MADE)
    assert (entry.version, entry.metrics, entry.data_version) == ("1", {"accuracy": 0.75}, "d1")
    registry.register("story", path, metrics={"accuracy": 0.5}, **MADE)
    assert [found.version for found in registry.find("story")] == ["2", "1"]
    registry.promote("story", "1")
    loaded = registry.load("story")
    assert loaded.sha256 == serving.load_model(path).sha256
    spec = {"dtype": "float32", "shape": [-1, 3, 8, 8]}
    assert entry.signature["inputs"] == [{"name": "images", "type": "tensor", "tensor-spec": spec}]


@pytest.mark.slow
def test_promote_and_roll_back_in_seconds(registry, tmp_path):
    for label in (1, 2):
        path = write_model(tmp_path / f"{label}.onnx", label)
        registry.register("rolled", path, metrics={}, **MADE)
    slot = ModelSlot(serving.load_model(path), version="0")
    registry.promote("rolled", "1")
    assert registry.promote("rolled", "2").aliases == ("champion",)
    assert slot.swap(lambda: registry.load("rolled")) == "2"
    began = time.perf_counter()
    assert registry.roll_back("rolled").version == "1"
    assert slot.swap(lambda: registry.load("rolled")) == "1"
    seconds = time.perf_counter() - began
    print(f"rolled back through the registry in {seconds:.2f} s")
    assert seconds < 10
    assert registry.get("rolled", "previous").version == "2"


@pytest.mark.slow
def test_what_cannot_be_served_is_not_registered(registry, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"half a file")
    with pytest.raises(ModelError):
        registry.register("broken", path, metrics={}, **MADE)
    assert registry.find("broken") == []
    for ask in (registry.get, registry.load, registry.roll_back):
        with pytest.raises(MonitoringError, match="broken"):
            ask("broken")
    with pytest.raises(MonitoringError, match="promote version 7"):
        registry.promote("broken", "7")


@pytest.mark.slow
def test_two_writers_at_once_get_versions_of_their_own(empty, tmp_path):
    path = write_model(tmp_path / "m.onnx", 1)
    code = f"""
        from shipyard.monitoring.registry import Registry
        registry = Registry({str(empty)!r}, experiment="two writers")
        for _ in range(4):
            registry.register("two", {str(path)!r}, metrics={{}}, data_version="d", git_commit="c")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        _, said = writer.communicate(timeout=240)
        assert writer.returncode == 0, said
    versions = [int(entry.version) for entry in Registry(empty).find("two")]
    assert versions == list(range(8, 0, -1))


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["gone", "locked"])
def test_a_registry_in_trouble_stops_no_server(empty, tmp_path, trouble):
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(empty / "registry.db", folder)
    registry = Registry(folder, experiment="trouble")
    registry.register("kept", write_model(tmp_path / "m.onnx", 1), metrics={}, **MADE)
    registry.promote("kept", "1")
    slot = ModelSlot(registry.load("kept"))
    with contextlib.closing(sqlite3.connect(folder / "registry.db")) as other:
        if trouble == "gone":
            shutil.rmtree(folder)
        else:
            other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MonitoringError, match="in memory and goes on"):
            slot.swap(lambda: registry.load("kept"))
    with slot.use() as model:
        assert model.predict(np.zeros((1, 3, 8, 8))).argmax() == 1


def test_a_fingerprint_is_that_of_the_data():
    a = np.arange(6, dtype=np.uint8)
    assert fingerprint(a) == fingerprint(a.copy())
    assert len({fingerprint(a), fingerprint(a.reshape(2, 3)), fingerprint(a + 1)}) == 3


def test_the_commit_of_no_repository_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() == "unknown"
