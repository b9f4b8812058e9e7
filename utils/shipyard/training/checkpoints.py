"""Checkpoints: written in one step, checked when read, and never used by two trainings at once."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from shipyard.errors import CheckpointError

FORMAT = "shipyard checkpoint 1"


def previous_of(path: str | Path) -> Path:
    """Where `save_checkpoint` keeps the checkpoint that ``path`` replaced."""
    path = _behind_links(path)
    return path.with_name(path.name + ".previous")


def _behind_links(path: str | Path) -> Path:
    """The file itself: a symbolic link stays one, and what it points to is replaced."""
    return Path(os.path.realpath(path))


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``path`` in one step; the file that was there becomes ``.previous``.

    The bytes go to a temporary file beside ``path``, are forced to the disk (fsync), and only
    then take its name. A crash at any moment leaves the old checkpoint or the new one.

    Args:
        path: the file to write; missing folders are made.
        state: tensors, numbers, text, None, and lists, tuples and dicts of them: what
            ``torch.load(weights_only=True)`` reads back.

    Raises:
        CheckpointError: ``state`` holds something else, which could not be read back, or the file
            cannot be written. Then the old checkpoint is as it was, and nothing is left beside it.
    """
    path = _behind_links(path)
    _require_plain(state, "state")
    unfinished = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _keep_previous(path)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        kept = "The checkpoint that was there is kept. " if path.exists() else ""
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error}. {kept}Free some space, or give a "
            "file in a folder that can be written."
        ) from error
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU, without running any code from the file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of ours.
            The file is left as it is.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"its part {damaged} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error}. It is left as it is. " + _way_out(path)
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this training code (expected {FORMAT!r}). "
            "Give another file name."
        )
    return state


def require_keys(found: dict, wanted: Iterable[str], what: str, path: str | Path) -> None:
    """Refuse a checkpoint in which ``what`` has other keys than ``wanted``.

    Raises:
        CheckpointError: it lacks one, or has one too many. Nothing was changed.
    """
    lost, surplus = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
    if lost or surplus:
        problems = [f"lacks {', '.join(lost)}"] * bool(lost)
        problems += [f"has {', '.join(surplus)} too many"] * bool(surplus)
        raise CheckpointError(
            f"The checkpoint {path} cannot be used: of its {what} it {' and '.join(problems)}. "
            f"It is left as it is. {_way_out(Path(path))}"
        )


@contextmanager
def only_user_of(path: str | Path | None) -> Iterator[None]:
    """Two trainings on one checkpoint would undo each other's work: the second is refused."""
    if path is None:
        yield
        return
    lock = FileLock(f"{_behind_links(path)}.lock")
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"Another training is using the checkpoint {path}. Wait for it, or give another file."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {error}. Give a file in a folder that "
            "can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random state: of the CPU, and of ``device`` where that has its own."""
    state = {"cpu": torch.get_rng_state()}
    module = torch.get_device_module(device)
    if hasattr(module, "get_rng_state"):
        state[device.type] = module.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])


def _require_plain(value: Any, where: str) -> None:
    """Refuse what ``weights_only=True`` would refuse to read back."""
    if type(value) in (dict, OrderedDict, Counter):
        for key, part in value.items():
            _require_plain(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, part in enumerate(value):
            _require_plain(part, f"{where}[{i}]")
    elif value is not None and not (
        isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes)
    ):
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold safely. "
            "Use tensors, numbers, text, lists and dicts; float(...) and .tolist() help."
        )


def _keep_previous(path: Path) -> None:
    """Give the file at ``path`` a second name, ``.previous``; ``path`` itself stays in place."""
    previous = previous_of(path)
    linked = path.with_name(path.name + ".previous.tmp")
    linked.unlink(missing_ok=True)
    try:
        os.link(path, linked)
    except OSError:  # a file system without hard links
        shutil.copy2(path, linked)
    os.replace(linked, previous)


def _way_out(path: Path) -> str:
    """What a reader can do about a damaged checkpoint."""
    previous = previous_of(path)
    if path != previous and previous.is_file():
        return (
            f"The checkpoint before it is kept at {previous}: copy that to {path.name} to go on "
            "from it, or move both away to begin again."
        )
    return "Move it away to begin again."
