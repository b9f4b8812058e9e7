"""Start a worker function on several processes with torchrun, and leave none of them behind.

`launch` runs ``python -m torch.distributed.run`` in a session of its own; each of its processes
runs `shipyard.distributed.entry`, which makes the process group (gloo, loopback only) and calls
the worker. What the worker returns, or how it died, comes back through files in one folder.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shipyard.errors import LaunchError

Worker = str | Callable[..., dict]
Jobs = dict[str, tuple[Worker, dict[str, Any]]]

MARK = "SHIPYARD_LAUNCH"  # every process of one launch carries this variable, with one value
PACKAGES = Path(__file__).resolve().parents[2]


class WorkerFailed(LaunchError):  # noqa: N818
    """A worker died, and the others were stopped.

    Attributes:
        rank: the rank that died first.
        traceback: its Python traceback, or in words how it died where there is none.
        exit_code: of its process; a negative number is the signal that killed it; None if
            torchrun did not report it.
    """

    def __init__(self, message: str, rank: int, traceback: str, exit_code: int | None):
        super().__init__(message)
        self.rank, self.traceback, self.exit_code = rank, traceback, exit_code


class WorkerTimeout(LaunchError):  # noqa: N818
    """The time was up before the workers were done; all were stopped.

    Attributes:
        stacks: rank → the innermost calls in which it stood, innermost first.
    """

    def __init__(self, message: str, stacks: dict[int, str]):
        super().__init__(message)
        self.stacks = stacks


@dataclass
class Launch:
    """What came back from the workers.

    Attributes:
        results: for each rank, the dict that its worker returned.
        seconds: from the start of torchrun to its end, the imports included.
        log: what torchrun and the workers printed.
        restarts: how often torchrun started the workers again.
        failures: for each attempt that failed, which rank failed and how.
        command: the torchrun command, as one would type it.
    """

    results: list[dict[str, Any]]
    seconds: float
    log: str
    restarts: int = 0
    failures: list[WorkerFailed] = field(default_factory=list)
    command: str = ""

    def of(self, name: str) -> list[Any]:
        """``[result[name] for result in results]``: one value of each rank."""
        return [result[name] for result in self.results]


def launch(
    worker: Worker | Jobs,
    processes: int = 2,
    arguments: dict[str, Any] | None = None,
    *,
    max_restarts: int = 0,
    timeout: float = 120,
    threads: int = 1,
    folder: str | Path | None = None,
) -> Launch:
    """Run ``worker(**arguments)`` on ``processes`` ranks with torchrun, and return their results.

    Whatever happens (a worker dies or hangs, this call is interrupted, this process is killed),
    no process is left behind: each one carries a mark by which it is found, and ends by itself
    when the launching process is gone. The ports are free ones on the loopback device.

    Args:
        worker: a function of an importable module, its name ``"package.module:function"``, or
            ``"path/to/script.py:function"``. It is called on each rank with the process group
            made, and returns a dict of tensors, numbers, text, lists and dicts.
            ``"path/to/script.py"`` alone runs the script, which makes its own group, with the
            arguments as ``--name value``; its results are empty dicts.
            A dict ``{name: (worker, arguments)}`` runs several, one after the other, in one
            start of the processes; each rank's result is then ``{name: what it returned}``.
        processes: the number of ranks.
        arguments: keyword arguments of the worker: tensors, numbers, text, lists and dicts.
        max_restarts: how often torchrun may start all ranks again after one has died.
        timeout: seconds until a run that is not done is stopped.
        threads: OpenMP threads of each process.
        folder: where the files of the run are kept; by default a temporary folder.

    Raises:
        WorkerFailed: a worker raised or died (after the last restart).
        WorkerTimeout: the workers were not done in time.
        LaunchError: the worker cannot be named, or torchrun itself failed.
    """
    if not hasattr(os, "killpg"):
        raise LaunchError("launch needs Linux or macOS: it stops workers by their process group.")
    if not isinstance(processes, int) or processes < 1:
        raise LaunchError(f"processes is {processes!r}; it must be a whole number from 1.")
    if isinstance(worker, dict):
        if arguments:
            raise LaunchError("Give the arguments of several workers inside the dict of workers.")
        jobs = [(name, name_of(each), plain(args)) for name, (each, args) in worker.items()]
    else:
        jobs = [("", name_of(worker), plain(arguments or {}))]
    kept = folder is not None
    folder = Path(folder or tempfile.mkdtemp(prefix="shipyard-launch-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("attempt-*"):
        stale.unlink()
    torch.save({"jobs": jobs, "timeout": float(timeout)}, folder / "jobs.pt")
    running = folder / "running"
    running.write_text(str(os.getpid()))  # workers end when this file or this process is gone

    torchrun = [
        "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={max_restarts}",
    ]  # fmt: skip
    program = ["-m", "shipyard.distributed.entry"]
    command = [
        sys.executable, "-m", "torch.distributed.run", *torchrun, "--local-addr=127.0.0.1",
        "--shutdown-timeout=3", *program, str(folder),
    ]  # fmt: skip
    mark = uuid.uuid4().hex
    process = None
    start = time.perf_counter()
    try:
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                command,
                env=environment(mark, threads, max_restarts),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            stacks = ask_for_stacks(folder, processes)
            raise WorkerTimeout(describe_timeout(stacks, timeout), stacks) from None
        seconds = time.perf_counter() - start
        text = (folder / "log.txt").read_text(errors="replace")
        failures = read_failures(folder, text, processes)
        if code != 0 and failures:
            raise failures[-1]
        if code != 0:
            lines = tail(text)
            raise LaunchError(f"torchrun ended with code {code}; its last lines:\n{lines}")
        attempt = last_attempt(folder)
        results = [
            torch.load(folder / f"attempt-{attempt}-rank-{rank}.result", weights_only=True)
            for rank in range(processes)
        ]
        if not isinstance(worker, dict):
            results = [result[""] for result in results]
        shown = " ".join(["torchrun", *torchrun, *program, "FOLDER"])
        return Launch(results, seconds, text, attempt, failures, shown)
    finally:
        running.unlink(missing_ok=True)
        stop_everything(process, folder, mark)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def name_of(worker: Worker) -> str:
    """``module:function`` or ``/path/script.py[:function]``, which another process can find."""
    if callable(worker):
        if worker.__module__ == "__main__" or "<" in worker.__qualname__:
            raise LaunchError(
                f"{worker.__qualname__} lives in this session only, and the workers are other "
                "processes. Write it to a file and give 'file.py:function'."
            )
        return f"{worker.__module__}:{worker.__qualname__}"
    place, colon, function = worker.partition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise LaunchError(f"There is no script {place}.")
        return f"{Path(place).resolve()}{colon}{function}"
    if not function:
        raise LaunchError(f"{worker!r} names no function; expected 'package.module:function'.")
    return worker


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with paths as text: what ``weights_only=True`` can read."""
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
    require_plain(arguments, "arguments")
    return arguments


def require_plain(value: Any, where: str) -> None:
    """Refuse what ``torch.load(weights_only=True)`` would refuse to read on the other side."""
    if isinstance(value, dict):
        for key, part in value.items():
            require_plain(part, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            require_plain(part, f"{where}[{i}]")
    elif type(value) not in (torch.Tensor, bool, int, float, str, type(None)):
        raise LaunchError(
            f"{where} is a {type(value).__name__}, which cannot travel between this process and "
            "a worker. Use tensors, numbers, text, lists and dicts; float(...) and .tolist() help."
        )


def environment(mark: str, threads: int, max_restarts: int) -> dict[str, str]:
    """This process's environment for the workers: loopback only, and no other launch's ranks."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env |= {
        MARK: mark,
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "KINETO_LOG_LEVEL": "99",  # the profiler would write into the log
    }
    if max_restarts:
        # torchrun keeps one store for all attempts, in which restarted ranks find the addresses
        # of the dead (pytorch issue 135712); this way each attempt's rank 0 makes a new one.
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return env


def last_attempt(folder: Path) -> int:
    """The number of the latest start of the workers, from 0."""
    names = (path.name for path in folder.glob("attempt-*.pid"))
    return max((int(name.split("-")[1]) for name in names), default=0)


def read_failures(folder: Path, log: str, processes: int) -> list[WorkerFailed]:
    """For each attempt that failed, the rank that died first.

    A rank that died without a word (os._exit, a signal) comes before all that raised: those
    raised because they lost their connection to it. Among those that raised, the first counts.
    A rank that torchrun itself stopped is none of them.
    """
    failures = []
    for attempt in range(last_attempt(folder) + 1):
        silent, raised = [], []
        for rank in range(processes):
            stem = folder / f"attempt-{attempt}-rank-{rank}"
            if stem.with_suffix(".error").exists():
                error = torch.load(stem.with_suffix(".error"), weights_only=True)
                raised.append((error["time"], rank, error["traceback"], 1))
            elif stem.with_suffix(".pid").exists():
                pid = stem.with_suffix(".pid").read_text()
                code = exit_code(log, pid)
                stopped = f"Sending process {pid} closing signal" in log
                lost = not stem.with_suffix(".result").exists() or code is not None
                if lost and not stopped:
                    silent.append((0.0, rank, died_silently(code, stem), code))
        if silent or raised:
            _, rank, traceback, code = min(silent or raised)
            message = f"Rank {rank} of {processes} failed, and the others were stopped.\n"
            failures.append(WorkerFailed(message + traceback, rank, traceback, code))
    return failures


def exit_code(log: str, pid: str) -> int | None:
    """The exit code that torchrun reports for the process; None where it reports none."""
    found = re.search(rf"\(exitcode: (-?\d+)\) local_rank: \d+ \(pid: {pid}\)", log) or re.search(
        rf"exitcode\s*: (-?\d+)\s*\(pid: {pid}\)", log
    )
    return int(found.group(1)) if found else None


def died_silently(code: int | None, stem: Path) -> str:
    """How a process ended that left no traceback of its own."""
    crash = readable_stack(stem.with_suffix(".stack").read_text(errors="replace"))
    if code is None:
        words = "It ended"
    elif code < 0:
        words = f"It was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        words = f"It ended with exit code {code}"
    return f"{words}, without a Python exception" + (f", in:\n{crash}" if crash else ".")


def ask_for_stacks(folder: Path, processes: int) -> dict[int, str]:
    """Let each rank write down the calls in which it stands, and read them."""
    attempt = last_attempt(folder)
    stems = [folder / f"attempt-{attempt}-rank-{rank}" for rank in range(processes)]
    for stem in stems:
        if stem.with_suffix(".pid").exists():  # written after the handler was installed
            send_quietly(os.kill, int(stem.with_suffix(".pid").read_text()), signal.SIGUSR1)
    time.sleep(0.5)
    return {rank: stack_of(stem) for rank, stem in enumerate(stems)}


def stack_of(stem: Path) -> str:
    if stem.with_suffix(".result").exists():
        return "  done"
    if not stem.with_suffix(".pid").exists():
        return "  still starting (Python and torch are being imported)"
    text = stem.with_suffix(".stack").read_text(errors="replace")
    return readable_stack(text) or "  gone, or too busy to say"


def readable_stack(text: str, lines: int = 12) -> str:
    """The innermost calls of a faulthandler report, without the launcher's own."""
    calls = [line for line in text.splitlines() if line.startswith("  File ")]
    calls = [line for line in calls if "shipyard/distributed/entry.py" not in line]
    calls = [line for line in calls if "<frozen runpy>" not in line]
    return without_machine_paths("\n".join(calls[:lines]))


def without_machine_paths(text: str) -> str:
    """File names as ``package/module.py`` or ``script.py`` rather than whole paths."""

    def short(found: re.Match) -> str:
        path = found.group(1)
        for root in (str(PACKAGES), *re.findall(r"^.*?/(?:site|dist)-packages", path)):
            if path.startswith(root + "/"):
                return f'File "{path[len(root) + 1 :]}"'
        return f'File "{Path(path).name}"'

    return re.sub(r'File "(/[^"]+)"', short, text)


def describe_timeout(stacks: dict[int, str], timeout: float) -> str:
    where = "\n".join(f"Rank {rank} stood in (innermost first):\n{s}" for rank, s in stacks.items())
    return (
        f"The workers were not done after {timeout:g} s and were stopped. Ranks that wait for "
        "each other in different places never go on; if they were only slow, give a larger "
        f"timeout.\n{where}"
    )


def tail(text: str, lines: int = 20) -> str:
    return without_machine_paths("\n".join(text.splitlines()[-lines:]))


def stop_everything(process: subprocess.Popen | None, folder: Path, mark: str) -> None:
    """Kill torchrun, then the workers with all they started, and wait until they are gone."""
    if process is None:
        return
    if process.poll() is None:
        send_quietly(os.killpg, process.pid, signal.SIGKILL)  # first: it could start new ones
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for path in folder.glob("attempt-*.pid"):
            if sys.platform != "linux":  # Linux finds them by their mark: no number can be stale
                send_quietly(os.killpg, int(path.read_text()), signal.SIGKILL)
        left = list(marked(mark))
        for pid in left:
            send_quietly(os.kill, pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.02)
    process.wait()


def marked(mark: str) -> Iterator[int]:
    """The processes whose environment carries the mark (Linux), those that are dead left out."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # another user's, or gone meanwhile; a zombie's environment is empty
            continue


def send_quietly(send: Callable[[int, int], None], pid: int, number: int) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with suppress(ProcessLookupError, PermissionError):
        send(pid, number)
