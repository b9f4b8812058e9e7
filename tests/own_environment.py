"""An environment of its own for a package whose pins do not go with ours."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from filelock import FileLock


def python_with(*requirements: str) -> str:
    """A Python that has ``requirements``, made once and kept in the cache.

    Skips the test where they cannot be installed, and says what pip said.
    """
    mark = hashlib.sha256(" ".join((*requirements, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "shipyard" / "environments" / mark
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
            done = subprocess.run(
                [python, "-m", "pip", "install", "--quiet", *requirements],
                capture_output=True, text=True, timeout=500,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"{', '.join(requirements)} cannot be installed: {done.stderr[-300:]}")
            (folder / "complete").touch()
    return str(python)
