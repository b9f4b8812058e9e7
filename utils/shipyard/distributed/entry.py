"""What torchrun runs on each rank: ``python -m shipyard.distributed.entry FOLDER``.

It reads the jobs from FOLDER, makes the process group, runs them, and writes the result, or the
traceback, back into FOLDER.
"""

from __future__ import annotations

import faulthandler
import os
import pkgutil
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shipyard.distributed.launching import (
    MARK,
    marked,
    require_plain,
    send_quietly,
    without_machine_paths,
)
from shipyard.errors import ShipyardError


def main(folder: Path) -> None:
    rank, attempt = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    stem = folder / f"attempt-{attempt}-rank-{rank}"
    threading.Thread(target=end_with_the_launcher, args=[folder / "running"], daemon=True).start()
    stack = open(stem.with_suffix(".stack"), "w")  # noqa: SIM115 (open until the process ends)
    faulthandler.enable(stack, all_threads=False)
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    write(stem.with_suffix(".pid"), lambda file: file.write(str(os.getpid()).encode()))
    try:
        plan = torch.load(folder / "jobs.pt", weights_only=True)
        results = {}
        for name, worker, arguments in plan["jobs"]:
            results[name] = run(worker, arguments, plan["timeout"])
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, result in results.items():
            require_plain(result, name or "result")
        write(stem.with_suffix(".result"), lambda file: torch.save(results, file))
    except BaseException as error:
        report = {"time": time.time(), "traceback": own_traceback(error)}
        write(stem.with_suffix(".error"), lambda file: torch.save(report, file))
        print(f"rank {rank}: {report['traceback']}", file=sys.stderr, flush=True)
        time.sleep(0.3)  # a rank that died without a word must be the first that torchrun sees
        os._exit(1)  # without the usual clean-up, which could wait for the other ranks


def run(worker: str, arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Call one worker, with the process group made and every rank at its start."""
    place, _, function = worker.partition(":")
    if not function:
        run_script(place, arguments)
        return {}
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    script = place.endswith(".py")
    names = runpy.run_path(place) if script else vars(pkgutil.resolve_name(place))
    if function not in names:
        raise ShipyardError(f"{Path(place).name} has no function {function}.")
    dist.barrier()
    result = names[function](**arguments)
    if not isinstance(result, dict):
        raise ShipyardError(f"{function} returned a {type(result).__name__}; expected a dict.")
    return result


def run_script(path: str, arguments: dict[str, Any]) -> None:
    """Run a whole script as ``python script.py --name value …`` would."""
    options = [[f"--{name.replace('_', '-')}", str(value)] for name, value in arguments.items()]
    sys.argv = [path, *(part for option in options for part in option)]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def own_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frames of this file and of runpy."""
    trace = error.__traceback__
    while trace.tb_next and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__,
                                                                  "<frozen runpy>"):  # fmt: skip
        trace = trace.tb_next
    return without_machine_paths("".join(traceback.format_exception(error.with_traceback(trace))))


def write(path: Path, fill: Callable) -> None:
    """Write a file that other processes see complete or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        fill(file)
    unfinished.replace(path)


def end_with_the_launcher(running: Path) -> None:
    """Kill torchrun and all that belongs to this launch once the launching process is gone.

    Ctrl-C, a closed notebook or a killed kernel then leaves nothing behind.
    """
    torchrun = os.getppid()
    while is_alive(running) and os.getppid() == torchrun:
        time.sleep(0.3)
    if os.getppid() == torchrun:
        send_quietly(os.kill, torchrun, signal.SIGKILL)  # first: it could start new workers
    for pid in marked(os.environ[MARK]):
        if pid != os.getpid():
            send_quietly(os.kill, pid, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def is_alive(running: Path) -> bool:
    """Whether the process that is named in the file exists, and still waits for this launch."""
    try:
        os.kill(int(running.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
