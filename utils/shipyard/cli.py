"""The command line: ``shipyard --help``.

Every command imports what it needs when it runs, so that the help appears at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shipyard.errors import ShipyardError

if TYPE_CHECKING:
    from shipyard.authoring import Score, SeriesResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Run lessons without a browser, fetch the data, serve a model, make and grade labs.",
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: an error that the user can mend is one clear message and exit status 2."""
    try:
        app(join_pairs(sys.argv[1:] if arguments is None else arguments), prog_name="shipyard")
    except ShipyardError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _extra_with(error.name or "")
        if extra is None:
            raise
        command = f'pip install "shipyard[{extra}]"'
        typer.echo(f"Error: this command needs {error.name}. Install it: {command}", err=True)
        sys.exit(2)


def _extra_with(module: str) -> str | None:
    """The extra of pyproject.toml that brings ``module``; None if no extra does."""
    from importlib.metadata import requires

    package = module.partition(".")[0]
    for line in requires("shipyard") or ():
        found = re.match(r"""([\w-]+).*extra == ["'](\w+)["']""", line)
        if found and found[1].replace("-", "_") == package:
            return found[2]
    return None


def join_pairs(arguments: list[str]) -> list[str]:
    """``-p EPOCHS 3`` → ``-p EPOCHS=3``: Typer knows no option that takes two values many times."""
    joined, rest = [], list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            joined.append(f"{rest.pop(0)}={rest.pop(0)}")
    return joined


def _pairs(texts: list[str] | None) -> dict[str, str]:
    """["EPOCHS=3"] → {"EPOCHS": "3"}"""
    for text in texts or ():
        if "=" not in text:
            raise typer.BadParameter(f"-p takes a name and a value (-p EPOCHS 3), not {text!r}")
    pairs = dict(text.split("=", 1) for text in texts or ())
    if len(pairs) < len(texts or ()):
        raise typer.BadParameter(f"-p names a parameter twice: {', '.join(texts)}")
    return pairs


@app.command()
def run(
    name: Annotated[
        str | None, typer.Argument(help='"02", "convolution", "02_convolution" or a path.')
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Run every lesson of notebooks/, one after the other.")
    ] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="For example: -p EPOCHS 3"),
    ] = None,
    profile: Annotated[str | None, typer.Option(help='"fast" or "full".')] = None,
    device: Annotated[str | None, typer.Option(help='"auto", "cpu", "cuda", "cuda:1", …')] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for all that is written.", show_default="runs/TIME")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds that one cell may take.")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write the outputs back into the notebooks.")
    ] = False,
) -> None:
    """Run a lesson, or all of them, without a browser.

    Executed notebooks, HTML pages, result files and an index page go to one folder.
    PROFILE, DEVICE, SEED and DATASET are also read from the environment.
    """
    from shipyard import authoring, runtime

    root = runtime.repository_root()
    if every == (name is not None):
        raise typer.BadParameter("give the name of one lesson, or --all")
    lessons = root / "notebooks"
    paths = sorted(lessons.glob("*.ipynb")) if every else [authoring.find_notebook(name, lessons)]
    if not paths:
        raise authoring.AuthoringError(f"{lessons} holds no notebooks. Run this in the checkout.")
    environment = _environment(profile, device)
    runtime.resolve_profile(environment.get("PROFILE", "fast"))
    runtime.resolve_device(environment.get("DEVICE", "auto"))

    folder = output or authoring.run_folder(root)
    signal.signal(signal.SIGTERM, _interrupt)
    progress = _Progress(paths)
    try:
        with progress:
            results = authoring.run_series(
                paths,
                folder,
                _pairs(parameter),
                timeout=timeout,
                environment=environment,
                on_change=progress.show,
            )
    except KeyboardInterrupt:
        typer.echo(f"Stopped. What was done is in {folder / 'index.html'}", err=True)
        raise typer.Exit(130) from None
    failures = authoring.failures(results)
    for message in failures:
        typer.echo(f"\n{message}", err=True)
    typer.echo(f"\n{len(results) - len(failures)} of {len(results)} passed. "
               f"Results: {folder / 'index.html'}")  # fmt: skip
    for result in results:
        if save and result.state == "passed":
            authoring.save_outputs(result)
            typer.echo(f"Outputs saved: {result.path}")
    if failures:
        raise typer.Exit(1)


def _environment(profile: str | None, device: str | None) -> dict[str, str]:
    """Variables for the kernels: the options, and folders made absolute for another cwd."""
    asked = {"PROFILE": profile, "DEVICE": device}
    changes = {key: value for key, value in asked.items() if value is not None}
    for key in ("PROFILE", "DEVICE"):
        if key not in changes and os.environ.get(key):
            changes[key] = os.environ[key]
    seed = os.environ.get("SEED", "0")
    if not seed.isdigit():
        raise ShipyardError(f"SEED is {seed!r}; it must be a whole number from 0 to 2**32 - 1.")
    for key in ("SHIPYARD_DATA", "SHIPYARD_CACHE"):
        if os.environ.get(key):
            changes[key] = str(Path(os.environ[key]).expanduser().resolve())
    return changes


def _interrupt(signum: int, frame: object) -> None:
    """Treat SIGTERM as Ctrl-C, so that kernels are stopped and the index is written."""
    raise KeyboardInterrupt


class _Progress:
    """Live progress in a terminal; in a log, one line when a notebook begins and one at its end."""

    def __init__(self, paths: list[Path]):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console()
        self.live = self.console.is_terminal
        self.width = max(len(path.stem) for path in paths)
        self.bars = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self.tasks: dict[str, int] = {}

    def __enter__(self) -> _Progress:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.bars.stop()

    def show(self, result: SeriesResult, cell: int, cells: int) -> None:
        """Draw the state of one notebook."""
        colours = {"passed": "green", "failed": "red", "interrupted": "red"}
        name = result.name.ljust(self.width)
        if self.live:
            if result.name not in self.tasks:
                self.tasks[result.name] = self.bars.add_task(name, state="")
            working = result.state == "running"
            colour = colours.get(result.state, "default")
            state = f"cell {cell + 1}/{cells}" if working else f"[{colour}]{result.state}"
            self.bars.update(
                self.tasks[result.name], completed=cell, total=cells, state=state.ljust(12)
            )
        elif result.state == "running" and cells == 1:
            print(f"{name}  running", flush=True)
        elif result.state != "running":
            print(f"{name}  {result.state:<11} {result.seconds:7.1f} s", flush=True)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help='"residual_net" or "char_transformer".')],
    profile: Annotated[str, typer.Option(help='"fast" or "full".')] = "full",
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:1", …')] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a network that later lessons start from, and keep it in the cache.

    A lesson that wants it does this by itself, where it has not been done.
    """
    from shipyard import data, pretrained, runtime

    on = runtime.resolve_device(device)
    if name == "residual_net":
        start = pretrained.residual_net(data.load_cifar10(), profile, seed=seed, device=on)
    elif name == "char_transformer":
        start = pretrained.char_transformer(profile, seed=seed, device=on)
    else:
        raise typer.BadParameter(f"NAME is residual_net or char_transformer, not {name!r}.")
    measured = ", ".join(f"{key} {value:.4f}" for key, value in start.validation.items())
    typer.echo(f"{start.path}: {measured}")


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help='"08", "cifar10_training" or a path.')],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUES", help="For example: -p SEED 0,1,2"),
    ] = None,
    profile: Annotated[str | None, typer.Option(help='"fast" or "full".')] = None,
    device: Annotated[str | None, typer.Option(help='"auto", "cpu", "cuda", "cuda:1", …')] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j", "--jobs", min=1, help="Trials at once.", show_default="cores, at most 8; GPU: 1"
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Dask scheduler (tcp://host:8786) for many machines.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for all that is written.", show_default="runs/sweep-NN-HASH"),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds that one cell may take.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric of the figure.", show_default="an accuracy")
    ] = None,
) -> None:
    """Run a lesson over a grid of parameters: shipyard sweep 05 -p EPOCHS 1,2 -p SEED 0,1,2

    Every combination is one trial. The same command again goes on after a crash and runs what
    is missing or failed. Needs the extra: pip install "shipyard\\[sweep]"
    """
    from shipyard import authoring, runtime, sweeps

    sweeps.require_engine()
    root = runtime.repository_root()
    environment = _environment(profile, device)
    runtime.resolve_profile(environment.get("PROFILE", "fast"))
    if address is None:  # on a cluster the workers have devices of their own
        found = runtime.resolve_device(environment.get("DEVICE", "auto"))
        jobs = jobs or (None if found.type == "cpu" else 1)
    path = authoring.find_notebook(name, root / "notebooks")
    planned = sweeps.plan(path, _pairs(parameter), environment)
    folder = output or root / "runs" / planned.folder_name
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcomes = sweeps.run_sweep(
            planned, folder, jobs=jobs, address=address, timeout=timeout, environment=environment
        )
    except KeyboardInterrupt:
        typer.echo(f"Stopped. What has ended is in {folder}; the same command goes on.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"\n{sweeps.write_report(planned, outcomes, folder, metric)}")
    failures = sweeps.failed(outcomes)
    for outcome in failures:
        typer.echo(f"{outcome.trial.label} {outcome.state}:\n{outcome.error}\n", err=True)
    typer.echo(f"{len(outcomes) - len(failures)} of {len(outcomes)} trials passed. "
               f"Results: {folder / 'results.md'}")  # fmt: skip
    if failures:
        raise typer.Exit(1)


@app.command()
def data(
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Fetch the archive if none is here.")
    ] = True,
) -> None:
    """Find CIFAR-10, or download it, verify it, and say which source is used."""
    from shipyard import data as datasets

    cifar10 = datasets.load_cifar10(download=download)  # says the source and the counts
    if cifar10.stand_in:
        typer.echo("This is stand-in data, not CIFAR-10: see the section Data of the README.")
        raise typer.Exit(1)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="An ONNX file that a lesson exported.")],
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    largest_batch: Annotated[
        int, typer.Option(min=1, help="Pictures that go through the model together.")
    ] = 32,
    longest_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds to wait for a batch to fill.")
    ] = 0,
    longest_queue: Annotated[
        int, typer.Option(min=1, help="Pictures that may wait; the rest gets 503.")
    ] = 64,
) -> None:
    """Serve a model over HTTP until Ctrl-C or SIGTERM. Needs no PyTorch.

    Where the variable SHIPYARD_API_KEY is set, clients must send that key.
    """
    from shipyard import serving

    limits = serving.Limits(
        largest_batch=largest_batch,
        longest_wait=longest_wait / 1e3,
        longest_queue=longest_queue,
    )
    serving.serve(model, host=host, port=port, limits=limits)


@app.command()
def labs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a lab is out of date.")
    ] = False,
) -> None:
    """Write labs/ from solutions/. A lab that a learner changed is never overwritten."""
    from shipyard import authoring, runtime

    root = runtime.repository_root()
    solutions = sorted((root / "solutions").glob("*.ipynb"))
    if not solutions:
        raise authoring.AuthoringError(f"{root / 'solutions'} holds no notebooks.")
    stale = []
    for solution in solutions:
        if check:
            lab = root / "labs" / solution.name
            wanted = authoring.to_text(authoring.generate_lab(solution))
            if not lab.is_file() or lab.read_text(encoding="utf-8") != wanted:
                stale.append(lab.relative_to(root))
            continue
        written, done = authoring.write_lab(solution, root / "labs")
        note = f" (labs/{solution.name} holds your work and stays as it is)"
        typer.echo(f"{written.relative_to(root)}: {done}{note if done == 'kept' else ''}")
    for lab in stale:
        typer.echo(f"{lab} differs from what its solution gives. Run: make labs", err=True)
    if stale:
        raise typer.Exit(1)
    if check:
        typer.echo(f"{len(solutions)} labs are up to date.")


@app.command()
def contents(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if something is out of date.")
    ] = False,
    times: Annotated[
        Path | None,
        typer.Option(help="Folder of `run --all --profile fast`: take the run times from there."),
    ] = None,
) -> None:
    """Write the README's table and the links between notebooks, from the notebooks themselves.

    Links to a notebook that was renumbered follow it. Dead links are listed; then the exit
    status is 1.
    """
    from shipyard import authoring, runtime

    root = runtime.repository_root()
    stale = authoring.stale_contents(root, times)
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
        typer.echo(f"{path.relative_to(root)}: {'is out of date' if check else 'written'}")
    if check and stale:
        typer.echo("Run: shipyard contents", err=True)
    elif any(path.parent.name == "solutions" for path in stale):
        typer.echo("Solutions have changed. Run: shipyard labs")
    dead = authoring.dead_links(root)
    for problem in dead:
        typer.echo(problem, err=True)
    if dead or (check and stale):
        raise typer.Exit(1)


@app.command()
def grade(
    files: Annotated[list[Path], typer.Argument(help="Submitted labs.")],
    csv: Annotated[Path | None, typer.Option(help="Write the marks to this file too.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for marks, feedback pages and statistics.",
            show_default="runs/marks",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one cell may take.")] = 30,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, help="Files at once.", show_default="cores")
    ] = None,
) -> None:
    """Grade submitted labs against the solutions' own checks.

    The same command again goes on after a crash: what is graded already is not graded again.

    [bold]Warning:[/bold] this runs the learners' code on this machine. On Linux with bubblewrap
    (apt install bubblewrap) it runs in a sandbox; elsewhere with your rights and without a
    sandbox, so use a machine that you can throw away for code that you do not trust.
    """
    from shipyard import authoring, runtime
    from shipyard.authoring import sandbox

    root = runtime.repository_root()
    folder = output or root / "runs" / "marks"
    typer.echo(sandbox.describe(sandbox.is_available()), err=True)
    scores: list[Score] = []

    def on_done(score: Score) -> None:
        scores.append(score)
        result = score.problem or f"{score.points:g} of {score.max_points:g} points"
        typer.echo(f"{score.path}: {result}", err=True)
        if csv is not None:  # after each file: nothing is lost if the next one is the last
            authoring.write_marks(scores, csv)

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        done = authoring.grade_all(
            files, root / "solutions", folder / "records", timeout, jobs, on_done
        )
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on.", err=True)
        raise typer.Exit(130) from None
    authoring.write_marks(done, folder / "marks.csv")
    if csv is not None:
        authoring.write_marks(done, csv)
    page = authoring.write_feedback(done, folder)
    _print_scores(authoring.with_short_names(done))
    typer.echo(f"Feedback and statistics: {page}")
    if all(score.problem for score in done):
        raise typer.Exit(1)


def _print_scores(scores: list[Score]) -> None:
    """A line for each task and a total for each file, then how the class did."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from shipyard import authoring

    table = Table("File", "Task", "Points", "Diagnosis")
    for score in scores:
        name = escape(score.path.as_posix())
        for task in score.tasks:
            why = escape(task.diagnosis or task.message.split("\n")[0])
            table.add_row(name, task.task, f"{task.points:g}/{task.max_points:g}", why)
        if score.problem:
            table.add_row(name, "", "not graded", escape(score.problem), end_section=True)
        else:
            total = f"{score.points:g}/{score.max_points:g}"
            table.add_row(name, "total", total, end_section=True)
    Console().print(table)
    if len(scores) > 1:
        summary = Table("Lab", "Task", "Solved", "Most common diagnosis")
        for row in authoring.task_statistics(scores):
            common = f"{row.diagnosis} ({row.count})" if row.diagnosis else ""
            summary.add_row(row.lab, row.task, f"{row.solved} of {row.files}", escape(common))
        Console().print(summary)


@app.command()
def normalise(
    files: Annotated[list[Path], typer.Argument(help="Notebooks.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a file is not normalised.")
    ] = False,
) -> None:
    """Bring notebooks into the committed form: no times, random ids, widget states or bars.

    The setup cell is written anew, with the address that pyproject.toml gives.
    """
    from shipyard import authoring

    changed = [path for path in files if authoring.normalise_file(path, check=check)]
    for path in changed:
        typer.echo(f"{path}: {'is not normalised' if check else 'normalised'}")
    if check and changed:
        typer.echo(f"Run: shipyard normalise {' '.join(map(str, changed))}", err=True)
        raise typer.Exit(1)


@app.command("check-device")
def check_device(name: Annotated[str, typer.Argument(metavar="DEVICE")] = "auto") -> None:
    """Say which device a name stands for; exit 2 if this machine does not have it."""
    from shipyard import runtime

    typer.echo(runtime.resolve_device(name))


if __name__ == "__main__":
    main()
