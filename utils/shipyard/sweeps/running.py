"""The sweep: what is on disk already, the cluster, and the trials as they end.

The notebook's text and the parameters go out to a Dask worker, and the executed notebook and its
results come back, so that workers on other machines need no shared folder. This process alone
writes files, one trial at a time, as soon as it has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipyard.errors import SweepError
from shipyard.sweeps.planning import Sweep, Trial

if TYPE_CHECKING:
    from distributed import Client, Future

# shipyard.sweeps.trial is imported by the functions that need it: `python -m` warns of a module
# that its package has imported before.

MOST_JOBS = 8  # without --jobs: each job holds a copy of the data
ATTEMPTS = 3  # for a trial whose process was killed; a cell that raises is not tried again
CONNECT = 10.0  # seconds that a scheduler has to answer


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: ``state`` is passed, failed or missing; ``record`` its results."""

    trial: Trial
    state: str = "missing"
    seconds: float = 0.0
    error: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    notebook: str = ""

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics by name; a dict of them is spread out: "race_loss.adam". Lists are left out.

        A trial that failed after it wrote its results has none: it may have written half.
        """
        return dict(_flat(self.record.get("metrics", {}))) if self.state == "passed" else {}


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            yield prefix + name, value


def require_engine() -> None:
    """Raise `SweepError` with the way to install it where Dask's ``distributed`` is missing."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise SweepError(
            "A sweep needs Dask's scheduler, which is not installed here. Run: "
            'pip install "shipyard[sweep]", or in a checkout: '
            'pip install --constraint constraints.txt --editable ".[sweep]"'
        ) from None


def default_jobs(trials: int) -> int:
    """As many trials at once as there are cores, at most 8: one thread each is the best use."""
    return max(1, min(trials, _cores(), MOST_JOBS))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    jobs: int | None = None,
    address: str | None = None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run every trial that ``folder`` does not hold yet; return the outcomes in the grid's order.

    Each trial is written when it ends, passed or failed: ``folder/trials/NAME.json`` and the
    executed notebook beside it. A trial that failed is run again by the next call.

    Args:
        sweep: as `plan` returns it.
        folder: where everything goes.
        jobs: trials at once on this machine; `default_jobs` by default.
        address: a Dask scheduler, ``tcp://host:port``; without it, this machine.
        timeout: seconds that one notebook cell may take; None for no limit.
        environment: more variables for the kernels; on a cluster only `SETTINGS` are sent.
        say: called with lines for the reader.

    Raises:
        SweepError: another sweep works in ``folder``, or the cluster cannot be used.
        KeyboardInterrupt: goes on to the caller when the workers' processes have ended.
    """
    require_engine()
    if jobs is not None and address is not None:
        raise SweepError("Give jobs or address, not both: a cluster's workers set their number.")
    if address is not None:
        _require_answer(address)
    with _folder_lock(folder):
        store = _Store(folder, sweep)
        outcomes = {trial.key: store.load(trial) for trial in sweep.trials}
        waiting = [t for t in sweep.trials if outcomes[t.key].state != "passed"]
        jobs = jobs or default_jobs(len(waiting))
        _announce(sweep, store, len(waiting), jobs, address, say)
        if waiting:
            environment = _kernel_environment(sweep, environment or {}, jobs, address)
            progress = _Progress(sweep.trials, waiting)
            with (
                progress,
                _client(jobs, address) as client,
                contextlib.closing(
                    _run_all(client, sweep, waiting, environment, timeout, address, progress)
                ) as ended,
            ):
                for outcome in ended:
                    outcomes[outcome.trial.key] = store.save(outcome)
                    progress.ended(outcome)
    return [outcomes[trial.key] for trial in sweep.trials]


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system gives it back when a process ends, however it ends."""
    from filelock import FileLock, Timeout

    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"{folder} cannot be used as a folder: {error}.") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SweepError(
            f"Another sweep works in {folder}. Wait until it has ended, or name another "
            "folder with --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _announce(
    sweep: Sweep, store: _Store, waiting: int, jobs: int, address: str | None,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    grid = " × ".join(f"{name} ({len(values)})" for name, values in sweep.axes.items())
    done = len(sweep.trials) - waiting
    where = f"on {address}" if address else f"{jobs} at once"
    say(f"{sweep.path.stem}: {grid} = {len(sweep.trials)} trials, {done} done before, "
        f"{waiting} to run{f' ({where})' if waiting else ''}. Folder: {store.folder}")  # fmt: skip
    changed, other = store.results_of_other_sweeps()
    if changed:
        say(f"{changed} results there come from another version of the notebook. They are kept, "
            "and not used.")  # fmt: skip
    if other:
        say(f"{other} results there belong to other parameters or settings. They are kept, "
            "and not used.")  # fmt: skip


class _Store:
    """The trials on disk. A JSON file is written last and in one step: where it is, all is."""

    def __init__(self, folder: Path, sweep: Sweep):
        self.folder, self.sweep = folder, sweep
        self.trials = folder / "trials"
        for unfinished in self.trials.glob(".*.tmp"):  # of a sweep that was killed
            unfinished.unlink()

    def load(self, trial: Trial) -> Outcome:
        saved = _read_json(self.trials / f"{trial.stem}.json")
        if saved.get("key") != trial.key:
            return Outcome(trial)
        notebook = self.trials / f"{trial.stem}.ipynb"
        return Outcome(
            trial, saved["state"], saved["seconds"], saved["error"], saved["record"],
            str(notebook.relative_to(self.folder)) if notebook.is_file() else "",
        )  # fmt: skip

    def save(self, outcome: Outcome) -> Outcome:
        """Write a trial; return it with the name of its notebook in place of the text."""
        trial = outcome.trial
        if outcome.notebook:
            write_file(self.trials / f"{trial.stem}.ipynb", outcome.notebook)
        saved = {
            "key": trial.key, "code": self.sweep.digest, "lesson": self.sweep.path.stem,
            "parameters": trial.values, "settings": self.sweep.settings,
            "state": outcome.state, "seconds": outcome.seconds, "error": outcome.error,
            "record": outcome.record,
        }  # fmt: skip
        write_file(self.trials / f"{trial.stem}.json", json.dumps(saved, indent=2) + "\n")
        return self.load(trial)

    def results_of_other_sweeps(self) -> tuple[int, int]:
        """Results that are not this sweep's: (from another code, of other parameters)."""
        ours = {f"{trial.stem}.json" for trial in self.sweep.trials}
        others = [_read_json(p) for p in self.trials.glob("*.json") if p.name not in ours]
        changed = sum(saved.get("code") != self.sweep.digest for saved in others)
        return changed, len(others) - changed


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never half of one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _kernel_environment(
    sweep: Sweep, environment: Mapping[str, str], jobs: int, address: str | None
) -> dict[str, str]:
    """Variables of the kernels. Folders and threads are a matter of each machine."""
    asked = {
        name: environment.get(name) or os.environ.get(name, "")
        for name in sweep.settings
        if environment.get(name) or os.environ.get(name)
    }
    if address:
        return asked
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // jobs))
    return {**environment, **asked, "OMP_NUM_THREADS": threads}


@contextlib.contextmanager
def _client(jobs: int, address: str | None) -> Iterator[Client]:
    """A client of the cluster at ``address``, or of one inside this process that ends with it."""
    from distributed import Client, LocalCluster

    from shipyard.sweeps.trial import children

    if address:
        with _connect(address) as client:
            yield client
        return
    # Workers are threads: a trial is a process anyway, and so no port takes tasks from others.
    # The status pages, which cannot be switched off, listen on loopback only.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't detect a suitable IP")  # no network is fine
        cluster = LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=False, memory_limit=0,
            dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )  # fmt: skip
    try:
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        for child in list(children):
            child.wait()


def _require_answer(address: str) -> None:
    """Something listens at ``address``. Asked first, since a client of Dask takes long to give up.

    Raises:
        SweepError: it is no address, or nobody answers there.
    """
    found = re.fullmatch(r"(?:tcp|tls)://\[?(?P<host>[^]]+?)\]?:(?P<port>\d+)", address)
    try:
        if found is None:
            raise ValueError("that is no address")
        socket.create_connection((found["host"], int(found["port"])), timeout=CONNECT).close()
    except (OSError, OverflowError, ValueError) as error:
        raise SweepError(
            f"No Dask scheduler answers at {address} ({error}). Expected an address such as "
            "tcp://host:8786; start one there with: dask scheduler"
        ) from None


def _connect(address: str) -> Client:
    """Connect to a scheduler, and see that its workers have this version of Shipyard."""
    from distributed import Client

    import shipyard

    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SweepError(f"What answers at {address} is no Dask scheduler: {error}") from None
    try:
        client.wait_for_workers(1, timeout=30)
        found = set(client.run(_shipyard_version_there()).values())
    except TimeoutError:
        client.close()
        raise SweepError(
            f"The scheduler at {address} has no workers. Start one on each machine with: "
            f"dask worker {address}"
        ) from None
    if found != {shipyard.__version__}:
        client.close()
        raise SweepError(
            f"Every worker of {address} needs shipyard {shipyard.__version__}, as here; found: "
            f"{', '.join(sorted(found))}. Install it there, and start the workers anew."
        )
    return client


def _shipyard_version_there() -> Callable[[], str]:
    """A function that pickles whole, so that a worker without Shipyard can run it too."""

    def version() -> str:
        try:
            from shipyard import __version__, sweeps  # noqa: F401
        except ImportError:
            return "none"
        return __version__

    version.__module__ = "__main__"
    return version


def _run_all(
    client: Client,
    sweep: Sweep,
    waiting: Sequence[Trial],
    environment: Mapping[str, str],
    timeout: float | None,
    address: str | None,
    progress: _Progress,
) -> Iterator[Outcome]:
    """Outcomes as they come in. Whatever stops the iteration, the rest is cancelled."""
    from distributed import as_completed

    from shipyard.sweeps.trial import run_trial

    topic = f"shipyard-sweep-{uuid.uuid4().hex}"
    client.subscribe_topic(topic, lambda event: progress.moved(**_known(event[1])))
    common = {
        "name": sweep.path.stem, "source": sweep.source, "timeout": timeout, "topic": topic,
        "environment": dict(environment),
        "cwd": None if address else str(sweep.path.resolve().parent),
    }  # fmt: skip
    futures = {
        client.submit(
            run_trial, {**common, "key": trial.key, "parameters": trial.texts},
            key=f"{trial.stem}-{topic}", pure=False, retries=ATTEMPTS - 1,
            priority=-place,
        ): trial
        for place, trial in enumerate(waiting)
    }  # fmt: skip
    try:
        for future in as_completed(list(futures), loop=client.loop):
            outcome = _outcome(futures.pop(future), future, address)
            # Dask runs a task again whose result somebody holds and whose worker has died.
            future.release()
            yield outcome
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            client.cancel(list(futures), force=True)


def _known(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: message[name] for name in ("key", "cell", "cells")}


def _outcome(trial: Trial, future: Future, address: str | None) -> Outcome:
    """The worker's answer, or what is known of its death."""
    if future.status in ("cancelled", "lost"):
        raise SweepError(
            f"The connection to {address or 'the workers'} was lost. What has ended is saved; "
            "the same command goes on from there."
        )
    if future.status == "error":
        return Outcome(trial, "failed", error=f"{trial.label}: {future.exception()}")
    answer = future.result()
    return Outcome(trial, **answer)


class _Progress:
    """In a terminal a bar and one line for each running trial; in a log, a line at each change."""

    def __init__(self, trials: Sequence[Trial], waiting: Sequence[Trial]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console()
        self.live = self.console.is_terminal
        self.trials = {trial.key: trial for trial in waiting}
        self.width = max(len(trial.label) for trial in trials)
        self.done, self.all = len(trials) - len(waiting), len(trials)
        self.running: dict[str, Any] = {}
        self.lock = threading.Lock()  # events come in on Dask's thread
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"), TimeElapsedColumn(), console=self.console,
        )  # fmt: skip
        self.total = self.bars.add_task(
            "all trials".ljust(self.width), completed=self.done, total=self.all,
            state=f"{self.done}/{self.all}",
        )  # fmt: skip

    def __enter__(self) -> _Progress:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.bars.stop()

    def moved(self, key: str, cell: int, cells: int) -> None:
        """A trial begins a cell of its notebook."""
        with self.lock:
            if key not in self.trials:  # it has ended: this event was late
                return
            name = self.trials[key].label.ljust(self.width)
            if key not in self.running:
                self.running[key] = self.bars.add_task(name, state="") if self.live else True
                if not self.live:
                    print(f"{name}  running", flush=True)
            if self.live:
                self.bars.update(
                    self.running[key], completed=cell, total=cells, state=f"cell {cell + 1}/{cells}"
                )

    def ended(self, outcome: Outcome) -> None:
        """A trial has ended and is saved."""
        with self.lock:
            self.done += 1
            count = f"{self.done}/{self.all}"
            del self.trials[outcome.trial.key]
            task = self.running.pop(outcome.trial.key, None)
            line = f"{outcome.trial.label:<{self.width}}  {outcome.state} {outcome.seconds:7.1f} s"
            if not self.live:
                print(f"{line}  {count}", flush=True)
                return
            if task is not None:
                self.bars.remove_task(task)
            self.bars.update(self.total, completed=self.done, state=count)
            self.bars.console.print(line, highlight=False, markup=False)
