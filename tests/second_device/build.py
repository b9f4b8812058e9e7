"""Build the second device once, and say what a process needs to know it (see README.md).

DEVICE=second PYTHONPATH=$(python tests/second_device/build.py) shipyard run 04
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE, MODULE = HERE / "device.cpp", HERE / "second_backend.py"
ENTRY_POINT = "[torch.backends]\nsecond = second_backend:register\n"
METADATA = "Metadata-Version: 2.1\nName: second-backend\nVersion: 0\n"


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else ``c++``; None on Windows, where none was tried."""
    return None if sys.platform == "win32" else shutil.which(os.environ.get("CXX", "c++"))


def why_not() -> str:
    """Why this machine cannot build the device; empty where it can."""
    return "" if compiler() else "the second device needs g++ or clang++ as c++, or named by $CXX"


def build() -> Path:
    """The folder for ``PYTHONPATH`` that makes torch know the device, built if it is not there.

    It lies in Shipyard's cache, named after torch's version and a hash of the sources.

    Raises:
        RuntimeError: there is no compiler, or it refused the source; the message quotes it.
    """
    import torch
    from filelock import FileLock

    from shipyard import runtime

    sources = SOURCE.read_bytes() + MODULE.read_bytes() + Path(__file__).read_bytes()
    key = f"{torch.__version__}-{hashlib.sha256(sources).hexdigest()[:12]}"
    cache = runtime.cache_dir() / "second_device"
    cache.mkdir(exist_ok=True)
    with FileLock(cache / "lock"):  # two test processes may come at once
        if not (cache / key).is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                _build_in(Path(unfinished, key))
                Path(unfinished, key).replace(cache / key)
    return cache / key


def environment() -> dict[str, str]:
    """The variables under which a new process knows the device."""
    paths = [str(build()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _build_in(folder: Path) -> None:
    from torch.utils import cpp_extension

    if why_not():
        raise RuntimeError(why_not())
    about = folder / "second_backend-0.dist-info"
    about.mkdir(parents=True)
    libraries = cpp_extension.library_paths()
    command = [
        compiler(), "-shared", "-fPIC", "-O1", "-std=c++20", SOURCE, "-o", folder / "device.so",
        *(f"-I{path}" for path in cpp_extension.include_paths()),
        *(f"-L{path}" for path in libraries), *(f"-Wl,-rpath,{path}" for path in libraries),
        "-ltorch", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler()} refused {SOURCE}:\n{done.stderr[:3000]}")
    shutil.copy(MODULE, folder)
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINT)


if __name__ == "__main__":
    print(build())
