"""Where learners' code runs: a process with limits, and on Linux under bubblewrap.

bubblewrap (the command ``bwrap``) gives a process a file system, a process tree and a network of
its own: it sees Python and its libraries, read-only, and an empty folder to write in. It sees no
hand-in, no marks and no network, and all that it started ends with it. The limits hold where the
operating system has them; without bubblewrap they are all there is.
"""

from __future__ import annotations

import functools
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import shipyard

MEMORY = 2 << 30  # bytes that the learner's code may use beside Python and torch
FILE_SIZE = 64 << 20  # bytes in one file
SCRATCH = 256 << 20  # bytes in all files together
PROCESSES = 48  # threads are counted too
OPEN_FILES = 256
NOBODY = 65534

# What an ordinary program needs of the system. Nobody's data is among it.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/fonts",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/nix/store",
)  # fmt: skip
# Variables that a lab may depend on. Others may hold secrets, and stay outside.
VARIABLES = ("PATH", "LANG", "TZ", "PYTHONPATH", "DEVICE", "PROFILE", "SEED", "DATASET",
             "LD_LIBRARY_PATH", "SYSTEMROOT")  # fmt: skip


@functools.cache
def is_available() -> bool:
    """Whether bubblewrap is here and can start Python as a learner's process."""
    if not sys.platform.startswith("linux") or shutil.which("bwrap") is None:
        return False
    probe = command(["-c", "import shipyard, encodings"], sandbox=True)
    return subprocess.run(probe, capture_output=True, env=environment(), timeout=60).returncode == 0


def describe(sandbox: bool) -> str:
    """One sentence for the teacher: what holds the learners' code."""
    if sandbox:
        return "Each learner's code runs in a sandbox, without network and without your files."
    return (
        "There is NO SANDBOX here, because bubblewrap (bwrap) is missing or cannot start: the "
        "learners' code runs with your rights, and only its time is limited everywhere. Use a "
        "machine that you can throw away."
    )


def environment() -> dict[str, str]:
    """The variables of a learner's process."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in VARIABLES or name.startswith(("LC_", "SECOND_DEVICE"))
    }
    return {**kept, "HOME": "/tmp", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def command(arguments: list[str], sandbox: bool) -> list[str]:
    """The command that runs Python with these arguments, inside of bubblewrap or not."""
    python = [sys.executable, *arguments]
    return [*_bubblewrap(), *python] if sandbox else python


def _bubblewrap() -> list[str]:
    options = ["bwrap", "--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid",
               "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]  # fmt: skip
    if os.getuid() == 0:  # root becomes nobody, see `restrict`; a user namespace would forbid it
        options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-user"]
    for path in SYSTEM:
        if Path(path).is_symlink():
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    scratch = ["--perms", "1777", "--size", str(SCRATCH), "--tmpfs"]
    options += ["--proc", "/proc", "--dev", "/dev", *scratch, "/dev/shm", "--remount-ro", "/dev"]
    options += [*scratch, "/tmp"]
    folders = _python_folders()
    for parent in sorted({parent for path in folders for parent in Path(path).parents}):
        if str(parent) not in ("/", "/tmp"):  # a parent made in passing would be root's alone
            options += ["--perms", "0755", "--dir", str(parent)]
    for path in folders:
        options += ["--ro-bind", path, path]
    return [*options, "--chdir", "/tmp", "--"]


def _python_folders() -> list[str]:
    """Where Python, its libraries and this package stand, without what `SYSTEM` has already."""
    package = str(Path(shipyard.__file__).parents[1])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [sys.base_prefix, sys.prefix, *site.getsitepackages(), package, *given]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    absolute = [os.path.abspath(folder) for folder in folders if folder and os.path.isdir(folder)]
    return [
        folder
        for folder in dict.fromkeys(absolute)
        if not any(str(other) in (*absolute, "/usr") for other in Path(folder).parents)
    ]


def restrict(sandbox: bool, seconds: int) -> None:
    """Limit this process, as far as the system can, for good. Windows has no such limits."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": _memory_in_use() + MEMORY,
        "RLIMIT_FSIZE": FILE_SIZE,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    if sandbox:  # outside, it would count everything that the user runs
        limits["RLIMIT_NPROC"] = PROCESSES
        # where memory runs out, the kernel ends the learner's process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):  # macOS lacks some of them
            continue


def _memory_in_use() -> int:
    """Bytes of address space that this process has now; generous where Linux's /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 16 << 30
    import resource

    return pages * resource.getpagesize()
