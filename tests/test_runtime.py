"""A run's seed, device, profile and result file."""

import json
import random
from importlib import metadata

import numpy as np
import pytest
import torch

from shipyard import processor, runtime
from shipyard.errors import ShipyardError


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_seed_draws_the_same_numbers_everywhere():
    runtime.seed_everything(7)
    first = draw()
    runtime.seed_everything(7)
    assert draw() == first
    runtime.seed_everything(8)
    assert draw() != first


def test_the_returned_generator_does_not_follow_the_global_one():
    generator = runtime.seed_everything(7)
    torch.rand(100)
    expected = torch.rand((), generator=torch.Generator().manual_seed(7))
    assert torch.rand((), generator=generator) == expected


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", None])
def test_a_seed_that_numpy_cannot_take_is_refused(seed):
    with pytest.raises(ShipyardError, match="SEED is"):
        runtime.seed_everything(seed)


def test_auto_takes_the_first_available_device():
    assert str(runtime.resolve_device("auto")) == runtime.available_devices()[0]


def test_cpu_is_always_available():
    assert runtime.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "warp-drive", "", "gpu"])
def test_a_missing_device_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ShipyardError) as error:
        runtime.resolve_device(name)
    assert repr(name) in str(error.value)
    assert "auto" in str(error.value)
    assert "cpu" in str(error.value)


def test_cuda_without_a_gpu_is_never_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "available_devices", lambda: ["cpu"])
    with pytest.raises(ShipyardError, match="does not have"):
        runtime.resolve_device("cuda")


def test_a_gpu_is_found_with_and_without_its_number(monkeypatch):
    monkeypatch.setattr(runtime, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert runtime.resolve_device("auto") == torch.device("cuda:0")
    assert runtime.resolve_device("cuda") == torch.device("cuda")
    assert runtime.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ShipyardError):
        runtime.resolve_device("cuda:2")


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ShipyardError, match="fast, full"):
        runtime.resolve_profile("turbo")


def test_a_run_picks_by_profile_and_says_what_it_chose(capsys):
    run = runtime.start("tides", profile="full", device="cpu", seed=3)
    assert run.pick(fast=1, full=2) == 2
    printed = capsys.readouterr().out
    assert "Lesson tides · profile full · device cpu (as asked) · seed 3" in printed


def test_the_result_file_holds_metrics_and_where_they_came_from(monkeypatch, tmp_path):
    monkeypatch.setenv("SHIPYARD_RESULTS", str(tmp_path))
    run = runtime.start("tides", profile="fast", device="cpu", seed=3)
    record = json.loads(run.finish({"accuracy": 0.5}, dataset="stand-in").read_text())
    assert record["lesson"] == "tides"
    assert record["metrics"] == {"accuracy": 0.5}
    assert (record["profile"], record["device"], record["seed"]) == ("fast", "cpu", 3)
    assert record["dataset"] == "stand-in"
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["seconds"] >= 0
    assert set(record) == {
        "lesson", "profile", "seed", "device", "processor", "threads", "dataset", "seconds",
        "metrics", "versions",
    }  # fmt: skip
    assert record["processor"] == processor.describe()
    assert record["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("value", [torch.tensor(1.0), float("nan"), object()])
def test_a_metric_that_json_cannot_hold_leaves_the_old_result_file(monkeypatch, tmp_path, value):
    monkeypatch.setenv("SHIPYARD_RESULTS", str(tmp_path))
    run = runtime.start("tides", device="cpu")
    path = run.finish({"accuracy": 0.5})
    with pytest.raises(ShipyardError, match="JSON"):
        run.finish({"accuracy": value})
    assert json.loads(path.read_text())["metrics"] == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_the_repository_is_found_from_a_folder_below_it(monkeypatch):
    root = runtime.repository_root()
    monkeypatch.chdir(root / "notebooks")
    assert runtime.repository_root() == root


def test_outside_a_checkout_the_working_folder_is_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runtime.repository_root() == tmp_path.resolve()


@pytest.mark.gpu
def test_auto_takes_whatever_torch_calls_an_accelerator(accelerator):
    assert runtime.resolve_device("auto") == torch.device(accelerator.type, 0)
    assert runtime.resolve_device(accelerator.type).type == accelerator.type
    assert runtime.available_devices()[-1] == "cpu"
