"""The ground a lesson stands on: seed, device, profile, paths and the result file."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from shipyard import processor
from shipyard.errors import ShipyardError

Value = TypeVar("Value")

PROFILES = ("fast", "full")


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python's, NumPy's and torch's global generators, and return a new CPU generator.

    Args:
        seed: a whole number, 0 <= seed < 2**32 (NumPy's limit).

    Raises:
        ShipyardError: ``seed`` is not such a number.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ShipyardError(f"SEED is {seed!r}; it must be a whole number from 0 to 2**32 - 1.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def available_devices() -> list[str]:
    """Names of the devices that torch can use on this machine, fastest first.

    An accelerator is whatever torch calls one: a CUDA or ROCm GPU, Apple's mps, or a device
    that a package adds through torch's entry points.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    count = torch.accelerator.device_count()
    return [*(f"{accelerator.type}:{i}" for i in range(count)), "cpu"]


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a device name into a ``torch.device`` that is really there.

    ``auto`` takes the first of `available_devices`. A name is taken at its word: where that
    device is missing the call fails, and never falls back to another one.

    Raises:
        ShipyardError: the device is unknown or missing; the message lists those that exist.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    exact = device is not None and str(device) in available
    any_index = (
        device is not None
        and device.index is None
        and any(known.split(":")[0] == device.type for known in available)
    )
    cpu_index = device is not None and device.type == "cpu"
    if not (exact or any_index or cpu_index):
        raise ShipyardError(
            f"DEVICE is {name!r}, which this machine does not have. "
            f"Available: auto, {', '.join(available)}. "
            "A CUDA device also needs a torch build with CUDA; this one is "
            f"torch {torch.__version__}."
        )
    return device


def synchronize(device: torch.device | str) -> None:
    """Wait until ``device`` has done its work; a GPU otherwise runs on after the call returns."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def resolve_profile(name: str) -> str:
    """Return ``name`` if it is a profile ("fast" or "full"), else raise `ShipyardError`."""
    if name not in PROFILES:
        raise ShipyardError(f"PROFILE is {name!r}; choose one of: {', '.join(PROFILES)}.")
    return name


def repository_root() -> Path:
    """The folder that holds ``notebooks/``: found from the working folder, upwards.

    Outside a checkout (Colab, an installed package) it is the working folder itself.
    """
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return here


def results_dir() -> Path:
    """Where result files go: ``$SHIPYARD_RESULTS``, else ``results/`` in the repository."""
    folder = Path(os.environ.get("SHIPYARD_RESULTS") or repository_root() / "results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_dir() -> Path:
    """Where decoded data and checkpoints go: ``$SHIPYARD_CACHE``, else ``~/.cache/shipyard``."""
    folder = Path(os.environ.get("SHIPYARD_CACHE") or Path.home() / ".cache" / "shipyard")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def versions(packages: tuple[str, ...] = ("torch", "numpy", "onnx", "onnxruntime")) -> dict:
    """Installed versions: Python's, Shipyard's and those of ``packages``."""
    found = {"python": platform.python_version()}
    for package in ("shipyard", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass
class Run:
    """One execution of a lesson: what was asked for, what was chosen, and when it began."""

    lesson: str
    profile: str
    device: torch.device
    seed: int
    generator: torch.Generator
    started: float = field(default_factory=time.perf_counter)

    def pick(self, *, fast: Value, full: Value) -> Value:
        """The value for the profile of this run."""
        return {"fast": fast, "full": full}[self.profile]

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def finish(self, metrics: dict[str, Any], dataset: str = "none") -> Path:
        """Write ``results/LESSON.json`` and return its path.

        The file holds the metrics, seconds, device, processor, threads, profile, seed, dataset
        and versions, and is replaced in one step: a reader sees the old file or the new one,
        never half of one.

        Raises:
            ShipyardError: a metric is not a number, text, list or dict that JSON can hold.
        """
        record = {
            "lesson": self.lesson,
            "profile": self.profile,
            "seed": self.seed,
            "device": str(self.device),
            "processor": processor.describe(),
            "threads": torch.get_num_threads(),
            "dataset": dataset,
            "seconds": round(self.seconds, 1),
            "metrics": metrics,
            "versions": versions(),
        }
        try:
            text = json.dumps(record, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ShipyardError(
                f"The metrics of lesson {self.lesson} do not fit into JSON: {error}. "
                "Use float(...), int(...) or .tolist(), and no NaN."
            ) from error
        path = results_dir() / f"{self.lesson}.json"
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path


def start(lesson: str, profile: str = "fast", device: str = "auto", seed: int = 0) -> Run:
    """Begin a lesson: check its parameters, seed everything, and say what was chosen."""
    chosen = resolve_device(device)
    run = Run(lesson, resolve_profile(profile), chosen, seed, seed_everything(seed))
    because = "chosen by auto" if device == "auto" else "as asked"
    print(f"Lesson {lesson} · profile {profile} · device {chosen} ({because}) · seed {seed}")
    threads = torch.get_num_threads()
    print(f"Processor: {processor.describe()}, {threads} thread{'s' * (threads > 1)}")
    return run
