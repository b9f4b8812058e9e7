"""Sweeps: one notebook over a grid of parameters, many trials side by side, through Dask.

A *trial* is one setting of the parameters: one run of the notebook. The notebook's text and the
parameters go out to a Dask worker, and the executed notebook and its results come back, so that
workers on other machines need no shared folder. This process alone writes files, one trial at a
time, as soon as it has ended; what is on disk when a sweep stops is not run again.

A worker runs each trial in a process of its own (``python -m shipyard.sweeps``), which ends with
its kernel as soon as nobody waits for it any more: after Ctrl-C, a crash or a lost connection.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipyard.authoring import AuthoringError, CellError, known_parameters, read, to_text
from shipyard.authoring.running import parse_parameters, run_notebook

if TYPE_CHECKING:
    from distributed import Client, Future
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

# Variables that a lesson reads where no parameter is given: they belong to a trial's identity.
SETTINGS = ("PROFILE", "DEVICE", "SEED", "DATASET")
SEED = "SEED"  # the parameter over which results are averaged
MOST_JOBS = 8  # without --jobs: each job holds a copy of the data
ATTEMPTS = 3  # for a trial whose process was killed; a cell that raises is not tried again
PATIENCE = 10.0  # seconds that a trial's process has to end its kernel
CONNECT = 10.0  # seconds that a scheduler has to answer
OPENS, CLOSES = "[({", "])}"


class SweepError(AuthoringError):
    """A sweep that cannot be run as asked; the message says how to mend it."""


class TrialDiedError(Exception):
    """The process of a trial ended without an answer."""


# --- What to run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One setting of the parameters.

    ``texts`` are the values as typed and ``values`` what they mean, both by name; ``key`` is a
    hash of all that decides the result: notebook, parameters and settings.
    """

    texts: dict[str, str]
    values: dict[str, Any]
    key: str

    @property
    def label(self) -> str:
        """``LEARNING_RATE=0.1 SEED=0``"""
        return _label(self.values)

    @property
    def stem(self) -> str:
        """The name of its files: readable, and different for different keys."""
        return re.sub(r"[^\w.=-]+", "_", self.label)[:80] + f"-{self.key[:8]}"


@dataclass(frozen=True)
class Sweep:
    """A notebook and a grid: ``axes`` has the values of each parameter, ``trials`` all settings.

    ``source`` is the notebook's text without outputs, ``digest`` a hash of its code,
    ``settings`` the profile, device, seed and dataset where they are not swept.
    """

    path: Path
    source: str
    digest: str
    axes: dict[str, list[Any]]
    settings: dict[str, str]
    trials: list[Trial]

    @property
    def lesson(self) -> str:
        """The first two letters of the notebook's name, as in its result file: "05"."""
        return self.path.stem[:2]

    @property
    def folder_name(self) -> str:
        """``sweep-05-1a2b3c4d``: the same for the same grid and settings."""
        asked = [self.path.stem, {k: list(map(repr, v)) for k, v in self.axes.items()}]
        return f"sweep-{self.lesson}-{_hash([*asked, self.settings])[:8]}"


def plan(
    path: Path, grid: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> Sweep:
    """Read a grid such as {"LEARNING_RATE": "0.1,0.2", "SEED": "0,1,2"} and check every value.

    The last parameter varies fastest. Each value is read as the type that the notebook's
    default has: a number, true or false, None, text, or a list in brackets.

    Args:
        path: the notebook.
        grid: values by name, separated by commas.
        environment: variables for the kernels; those of `SETTINGS` are part of a trial's key.

    Raises:
        SweepError: no parameter, or a missing or repeated value.
        AuthoringError: unknown parameter or a wrong value for one.
    """
    notebook = read(path)
    if not grid:
        raise SweepError("A sweep needs at least one parameter, such as: -p LEARNING_RATE 0.1,0.2")
    texts = {name: split_values(name, text) for name, text in grid.items()}
    parse_parameters(notebook, {name: values[0] for name, values in texts.items()}, path.stem)
    axes = {
        name: [parse_parameters(notebook, {name: text}, path.stem)[name] for text in values]
        for name, values in texts.items()
    }
    for name, values in axes.items():
        value, count = Counter(map(repr, values)).most_common(1)[0]
        if count > 1:
            raise SweepError(f"{name} has the value {value} {count} times; give it once.")
    settings = _settings(notebook, environment or {}, leave_out=axes)
    digest = code_hash(notebook)
    trials = []
    for pairs in itertools.product(*(zip(texts[n], axes[n], strict=True) for n in axes)):
        values = {name: value for name, (_, value) in zip(axes, pairs, strict=True)}
        key = _hash({
            "code": digest, "settings": settings,
            "values": sorted((name, repr(value)) for name, value in values.items()),
        })  # fmt: skip
        typed = {name: text for name, (text, _) in zip(axes, pairs, strict=True)}
        trials.append(Trial(typed, values, key))
    return Sweep(path, _without_outputs(notebook), digest, axes, settings, trials)


def split_values(name: str, text: str) -> list[str]:
    """``"0.1,0.2"`` → ["0.1", "0.2"]; a comma inside brackets separates nothing."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in OPENS) - (letter in CLOSES)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    if "" in parts:
        raise SweepError(f"{name} has an empty value in {text!r}. Expected: -p {name} 1,2,3")
    return parts


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the code: a corrected sentence keeps old results, a changed line does not."""
    return _hash([cell.source for cell in notebook.cells if cell.cell_type == "code"])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _label(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _settings(
    notebook: NotebookNode, environment: Mapping[str, str], leave_out: Mapping[str, Any]
) -> dict[str, str]:
    """Each setting that the notebook has and the sweep does not: what a trial will get."""
    settings = {}
    for name, parameter in known_parameters(notebook).items():
        if name in SETTINGS and name not in leave_out:
            asked = environment.get(name) or os.environ.get(name)
            # os.environ.get('PROFILE', 'fast'): the default counts where nothing was asked.
            constants = [
                node.value
                for node in ast.walk(ast.parse(parameter.default))
                if isinstance(node, ast.Constant) and node.value != name
            ]
            settings[name] = asked or str(constants[0] if constants else parameter.default)
    return settings


def _without_outputs(notebook: NotebookNode) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    return to_text(notebook)


# --- On a worker ------------------------------------------------------------------------------

_children: set[subprocess.Popen] = set()


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """Dask task: run one trial in a process of its own and return its answer.

    Raises:
        TrialDiedError: the process was killed; the message has the last of what it said.
    """
    from distributed import get_worker

    worker = get_worker()
    task = worker.get_current_task()

    def wanted() -> bool:
        state = worker.state.tasks.get(task)
        running = state is not None and state.state in ("executing", "long-running")
        return running and worker.status.name not in ("closing", "closed", "failed")

    answer = None
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", "shipyard.sweeps"], stdin=subprocess.PIPE, stderr=log,
            stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        ) as child,
    ):  # fmt: skip
        _children.add(child)
        threading.Thread(target=_stop_when_unwanted, args=(child, wanted), daemon=True).start()
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()
            for line in child.stdout:
                message = json.loads(line)
                if "state" in message:
                    answer = message
                else:
                    worker.log_event(job["topic"], {"key": job["key"], **message})
        finally:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            status = child.wait()
            _children.discard(child)
        if answer is None:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip()[-2000:]
            raise TrialDiedError(f"The process of the trial ended (status {status}). {said}")
    return answer


def _stop_when_unwanted(child: subprocess.Popen, wanted: Callable[[], bool]) -> None:
    """Close the child's input, which stops it, when the task was cancelled or the worker ends."""
    while child.poll() is None:
        if not wanted():
            with contextlib.suppress(OSError, ValueError):
                child.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2 * PATIENCE)
            child.kill()
        time.sleep(0.3)


def _child() -> None:
    """The process of one trial: a job comes in on stdin, progress and the answer go to stdout.

    It stops when its stdin closes, so that it never outlives the worker.
    """
    # The kernel inherits stdout, and may print there: keep our line for ourselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_stdin, daemon=True).start()

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as folder:
        say(_execute(job, Path(folder), lambda cell, cells: say({"cell": cell, "cells": cells})))


def _stop_with_stdin() -> None:
    while os.read(0, 1):
        pass
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(PATIENCE)
    os._exit(1)


def _execute(
    job: Mapping[str, Any], folder: Path, on_cell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Run the notebook in ``folder``; state, seconds, error, record and executed notebook."""
    source, output, results = folder / f"{job['name']}.ipynb", folder / "run.ipynb", folder / "out"
    source.write_text(job["source"], encoding="utf-8")
    results.mkdir()
    answer: dict[str, Any] = {"state": "passed", "error": ""}
    began = time.perf_counter()
    try:
        run_notebook(
            source,
            output,
            job["parameters"],
            timeout=job["timeout"],
            environment={**job["environment"], "SHIPYARD_RESULTS": str(results)},
            on_cell=on_cell,
            cwd=job["cwd"] or os.getcwd(),
        )
    except CellError as error:  # the folder that its message names will be gone
        plain = CellError(error.notebook, error.cell, error.source, error.reason, None)
        answer.update(state="failed", error=str(plain))
    except AuthoringError as error:
        answer.update(state="failed", error=str(error))
    answer["seconds"] = round(time.perf_counter() - began, 2)
    answer["notebook"] = output.read_text(encoding="utf-8") if output.is_file() else ""
    answer["record"] = _record(results, job["name"])
    return answer


def _record(results: Path, name: str) -> dict[str, Any]:
    """The result file of the lesson: NN.json, or the only one that there is."""
    files = sorted(results.glob("*.json"))
    named = [path for path in files if path.stem == name[:2]]
    for path in named or (files if len(files) == 1 else []):
        with contextlib.suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
    return {}


# --- The sweep --------------------------------------------------------------------------------


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
    with _alone_in(folder):
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
def _alone_in(folder: Path) -> Iterator[None]:
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
    changed, other = store.strangers()
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

    def strangers(self) -> tuple[int, int]:
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
        for child in list(_children):
            child.wait()


def _connect(address: str) -> Client:
    """Connect to a scheduler, and see that its workers have this version of Shipyard."""
    from distributed import Client

    import shipyard

    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"No Dask scheduler answers at {address} ({error}). Expected an address such as "
            "tcp://host:8786; start one there with: dask scheduler"
        ) from None
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


# --- The report -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The trials that differ in their seed alone: mean and spread of one metric."""

    values: dict[str, Any]
    numbers: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.numbers)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, n − 1 in the denominator; 0 for one seed."""
        return statistics.stdev(self.numbers) if len(self.numbers) > 1 else 0.0

    @property
    def text(self) -> str:
        """``0.512 ± 0.01 (3)``"""
        several = f" ± {self.spread:.2g} ({len(self.numbers)})" if len(self.numbers) > 1 else ""
        return f"{self.mean:.4g}{several}"


def settings_of(outcomes: Sequence[Outcome], metric: str) -> list[Setting]:
    """Group the trials that have the metric by all parameters but SEED, in the grid's order."""
    groups: dict[str, Setting] = {}
    for outcome in _passed(outcomes):
        values = {k: v for k, v in outcome.trial.values.items() if k != SEED}
        number = outcome.metrics.get(metric)
        if _is_number(number):
            groups.setdefault(repr(values), Setting(values, [])).numbers.append(number)
    return list(groups.values())


def choose_metric(outcomes: Sequence[Outcome], asked: str | None = None) -> str | None:
    """The metric of the figure: the one asked for, else an accuracy, else the first number.

    A metric whose mean differs between the settings goes first: one that no parameter moves
    tells nothing. None where no trial has a number.

    Raises:
        SweepError: no trial has the metric asked for; the message lists those that there are.
    """
    numbers = [n for n in _metric_names(outcomes) if settings_of(outcomes, n)]
    if asked is not None:
        if asked not in numbers:
            raise SweepError(
                f"No trial has a number {asked!r} among its metrics. "
                f"Known: {', '.join(numbers) or 'none'}."
            )
        return asked
    accuracies = [name for name in numbers if "accuracy" in name]
    candidates = accuracies or numbers
    moved = [n for n in candidates if len({s.mean for s in settings_of(outcomes, n)}) > 1]
    return next(iter([*moved, *candidates]), None)


def _passed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.state == "passed"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _metric_names(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(n for outcome in _passed(outcomes) for n in outcome.metrics))


def write_report(
    sweep: Sweep, outcomes: Sequence[Outcome], folder: Path, metric: str | None
) -> str:
    """Write results.csv, results.md and results.png; return the table for a terminal.

    Raises:
        SweepError: ``metric`` is unknown; results.csv is written all the same.
    """
    write_file(folder / "results.csv", _csv(sweep, outcomes))
    chosen = choose_metric(outcomes, metric)
    picture = ""
    if chosen is not None:
        from shipyard import plots

        drawing, alt = draw(sweep, outcomes, chosen)
        write_file(folder / "results.png", plots.png_bytes(drawing))
        picture = f"![{alt}](results.png)\n"
    else:
        (folder / "results.png").unlink(missing_ok=True)  # of an earlier sweep in this folder
    tables = _tables(sweep, outcomes, chosen)
    facts = ", ".join(f"{name} {value}" for name, value in sweep.settings.items())
    about = f"{f'{facts}. ' if facts else ''}Data: {_dataset(outcomes)}.\n"
    page = [f"# Sweep of {sweep.path.stem}\n", about, picture]
    for title, header, rows in tables:
        page.append(f"## {title}\n\n{_markdown(header, rows)}")
    page += [f"## Failed: {o.trial.label}\n\n```\n{o.error}\n```\n" for o in failed(outcomes)]
    write_file(folder / "results.md", "\n".join(page))
    return _terminal(tables[-1:] if len(tables) > 1 and len(outcomes) > 50 else tables)


def failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The trials that did not pass, in the grid's order."""
    return [outcome for outcome in outcomes if outcome.state != "passed"]


def _dataset(outcomes: Sequence[Outcome]) -> str:
    names = dict.fromkeys(str(o.record.get("dataset", "unknown")) for o in _passed(outcomes))
    return ", ".join(names) or "unknown"


def _csv(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """One line for each trial, one column for each parameter and each metric."""
    metrics = _metric_names(outcomes)
    facts = ("device", "dataset")
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([*sweep.axes, "state", "trial_seconds", *facts, *metrics, "error", "notebook"])
    for outcome in outcomes:
        found = outcome.metrics
        table.writerow([
            *outcome.trial.values.values(), outcome.state, outcome.seconds,
            *(outcome.record.get(fact, "") for fact in facts),
            *(found.get(name, "") for name in metrics),
            _last_line(outcome.error), outcome.notebook,
        ])  # fmt: skip
    return buffer.getvalue()


def _last_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else ""


Table = tuple[str, list[str], list[list[str]]]


def _tables(sweep: Sweep, outcomes: Sequence[Outcome], metric: str | None) -> list[Table]:
    """All trials; then, where seeds were swept, each setting with mean ± standard deviation."""
    names = [metric] if metric else []
    numbers = [n for n in _metric_names(outcomes) if n != metric and settings_of(outcomes, n)]
    moving = [n for n in numbers if len({o.metrics.get(n) for o in _passed(outcomes)}) > 1]
    names += moving[:3]  # results.csv has them all
    rows = [
        [
            *map(str, outcome.trial.values.values()),
            outcome.state,
            *(_short(outcome.metrics.get(name)) for name in names),
            f"{outcome.seconds:.1f}",
        ]
        for outcome in outcomes
    ]
    tables = [("Trials", [*sweep.axes, "state", *names, "seconds"], rows)]
    if len(sweep.axes.get(SEED, ())) > 1 and metric:
        axes = [name for name in sweep.axes if name != SEED]
        title = "Mean ± standard deviation over SEED (number of seeds)"
        columns = {n: {repr(s.values): s.text for s in settings_of(outcomes, n)} for n in names}
        rows = [
            [*map(str, s.values.values()), *(columns[n].get(repr(s.values), "") for n in names)]
            for s in settings_of(outcomes, metric)
        ]
        tables.append((title, [*axes, *names], rows))
    return tables


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)


def _terminal(tables: Sequence[Table]) -> str:
    """The tables drawn with lines; a log gets the width that they need."""
    from rich.console import Console
    from rich.table import Table as Drawing

    screen = Console()
    console = Console(width=None if screen.is_terminal else 160, file=io.StringIO())
    for title, header, rows in tables:
        drawing = Drawing(*header, title=title, title_justify="left")
        for row in rows:
            drawing.add_row(*row)
        console.print(drawing)
    return console.file.getvalue()


def draw(sweep: Sweep, outcomes: Sequence[Outcome], metric: str) -> tuple[Figure, str]:
    """The metric against the first parameter with several values, and a sentence about it.

    One line for each setting of the other parameters; a dot for each seed, mean and standard
    deviation over the seeds as line and bar. An accuracy is drawn in per cent.
    """
    from matplotlib.figure import Figure

    from shipyard import plots

    settings = settings_of(outcomes, metric)
    axes = [name for name in sweep.axes if name != SEED]
    along = next((n for n in axes if len(sweep.axes[n]) > 1), axes[0] if axes else SEED)
    if along == SEED:  # nothing but seeds: each is a point of its own
        settings = [
            Setting(o.trial.values, [o.metrics[metric]])
            for o in _passed(outcomes)
            if _is_number(o.metrics.get(metric))
        ]
    values = sweep.axes[along]
    numeric = all(map(_is_number, values))
    position = {repr(v): v if numeric else place for place, v in enumerate(values)}
    every = [number for setting in settings for number in setting.numbers]
    percent = metric.endswith("accuracy") and 0 <= min(every) and max(every) <= 1
    scale = 100 if percent else 1
    lines: dict[str, list[Setting]] = {}
    for setting in settings:
        others = {k: v for k, v in setting.values.items() if k != along and len(sweep.axes[k]) > 1}
        lines.setdefault(_label(others), []).append(setting)
    with plots.style():
        figure = Figure(figsize=(7.5, 3.8))
        axis = figure.subplots()
        for place, (label, members) in enumerate(lines.items()):
            colour = plots.PALETTE[place % len(plots.PALETTE)]
            marker = "osD^v"[place // len(plots.PALETTE) % 5]  # more lines than colours
            x = [position[repr(member.values[along])] for member in members]
            axis.errorbar(
                x, [scale * member.mean for member in members],
                [scale * member.spread for member in members],
                fmt=f"{marker}-", color=colour, label=label, capsize=3, zorder=3,
            )  # fmt: skip
            dots = [(at, scale * n) for at, m in zip(x, members, strict=True) for n in m.numbers]
            if len(dots) > len(members):
                axis.scatter(*zip(*dots, strict=True), color=colour, alpha=0.45, s=16, zorder=2)
        if numeric and min(values) > 0 and max(values) >= 8 * min(values):
            axis.set_xscale("log")
        axis.set_xticks([position[repr(v)] for v in values], list(map(str, values)))
        axis.minorticks_off()
        name = metric.replace("_", " ").replace(".", ": ")
        seeds = len(sweep.axes.get(SEED, ())) > 1 and along != SEED
        axis.set(
            xlabel=along, ylabel=f"{name}{' (%)' if percent else ''}",
            title=f"{sweep.path.stem}: {name}"
            f"{', mean ± standard deviation over seeds' if seeds else ''}\n"
            f"Data: {_dataset(outcomes)}",
        )  # fmt: skip
        if list(lines) != [""]:
            axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    low, high = (f(settings, key=lambda s: s.mean) for f in (min, max))
    alt = (
        f"{name} against {along}: lowest {low.mean:.4g} at {_label(low.values)}, "
        f"highest {high.mean:.4g} at {_label(high.values)}. Data: {_dataset(outcomes)}."
    )
    return figure, alt


if __name__ == "__main__":
    _child()
