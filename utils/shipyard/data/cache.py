"""Decoded arrays, kept on disk and memory-mapped from there.

Several processes may ask at once: one decodes, the others wait.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from shipyard import runtime
from shipyard.data.sets import Arrays

VERSION = 1  # raise it when decoding changes
_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def cached(key: str, build: Callable[[], Arrays], verbose: bool) -> Arrays:
    """``build()``, or what it gave the last time: memory-mapped from ``cache_dir()/key``.

    The folder appears in one step, with all its files. A second process waits for the first.
    Where the cache cannot be written, a warning says so and the arrays stay in memory.
    """
    try:
        folder = runtime.cache_dir() / key
    except OSError as error:
        _warn_uncached(error)
        return build()
    arrays = _read_cache(folder)
    if arrays is not None:
        return arrays
    with lock(folder.with_name(f"{key}.lock"), verbose) as problem:
        if problem is not None:
            _warn_uncached(problem)
            return build()
        arrays = _read_cache(folder)  # another process may have built it while we waited
        if arrays is not None:
            return arrays
        arrays = build()
        try:
            _write_cache(folder, arrays)
        except OSError as error:
            _warn_uncached(error)
            return arrays
    return _read_cache(folder) or arrays


@contextmanager
def lock(path: Path, verbose: bool = True) -> Iterator[Exception | None]:
    """Hold the lock ``path``; gives the reason instead where locking is not possible."""
    file_lock = FileLock(path)
    problem = None
    try:
        try:
            file_lock.acquire(timeout=0.2)
        except TimeoutError:
            if verbose:
                print("Another process is preparing the data: waiting for it.")
            file_lock.acquire()
    except (OSError, NotImplementedError) as error:
        problem = error
    try:
        yield problem
    finally:
        file_lock.release()


def _warn_uncached(error: Exception) -> None:
    warnings.warn(
        f"The decoded data could not be cached ({error}). The lesson goes on without a cache, "
        "and the next start decodes the data again. To mend it, free some space, or set "
        "SHIPYARD_CACHE to a folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )


def _write_cache(folder: Path, arrays: Arrays) -> None:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir()
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        checks = {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in arrays.items()}
        (unfinished / "crc32.json").write_text(json.dumps(checks), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _read_cache(folder: Path) -> Arrays | None:
    """The arrays in ``folder``, or None where it is missing or damaged."""
    if not folder.is_dir():
        return None
    try:
        checks = json.loads((folder / "crc32.json").read_text(encoding="utf-8"))
        arrays = {}
        for name in _NAMES:
            # "c" is copy-on-write: writing into a tensor never reaches the file.
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if zlib.crc32(arrays[name]) != checks[name]:
                raise ValueError(f"{name}.npy has changed")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        warnings.warn(
            f"The cached copy of the data is damaged ({error}); decoding the data again.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return arrays
