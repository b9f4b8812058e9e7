"""The command line: ``shipyard --help``.

Every command imports what it needs when it runs, so that the help appears at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    except Exception as error:
        if not _is_ours(error):
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


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


def _is_ours(error: Exception) -> bool:
    """Whether this package made the error for a reader, told without importing anything."""
    return any(kind.__module__.partition(".")[0] == "shipyard" for kind in type(error).__mro__)


@app.command()
def run(
    name: Annotated[
        str | None, typer.Argument(help='"01", "01_convolution_and_pooling" or a path.')
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
def sweep(
    name: Annotated[str, typer.Argument(help='"05", "05_cifar10_training" or a path.')],
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
) -> None:
    """Serve a model over HTTP until Ctrl-C. Needs no PyTorch."""
    from shipyard import serving

    serving.serve(model, host=host, port=port)


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
def grade(
    files: Annotated[list[Path], typer.Argument(help="Submitted labs.")],
    csv: Annotated[Path | None, typer.Option(help="Write the marks to this file too.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one cell may take.")] = 60,
) -> None:
    """Grade submitted labs against the solutions' own checks.

    [bold]Warning:[/bold] this runs the learners' code on this machine, with your rights and
    without a sandbox. Use a container or a throw-away machine for code that you do not trust.
    """
    from rich.console import Console
    from rich.table import Table

    from shipyard import authoring, runtime

    solutions = runtime.repository_root() / "solutions"
    table = Table("File", "Task", "Points", "Diagnosis")
    scores: list[Score] = []
    for path in files:
        score = authoring.grade(path, solutions, timeout)
        scores.append(score)
        typer.echo(
            f"{path}: {score.problem or f'{score.points:g} of {score.max_points:g} points'}",
            err=True,
        )
        for task in score.tasks:
            why = task.diagnosis or task.message.split("\n")[0]
            table.add_row(path.name, task.task, f"{task.points:g}/{task.max_points:g}", why)
        if score.problem:
            table.add_row(path.name, "", "not graded", score.problem)
        else:
            total = f"{score.points:g}/{score.max_points:g}"
            table.add_row(path.name, "total", total, end_section=True)
        if csv is not None:  # after each file: nothing is lost if the next one is the last
            authoring.write_marks(scores, csv)
    Console().print(table)
    if all(score.problem for score in scores):
        raise typer.Exit(1)


@app.command()
def normalise(
    files: Annotated[list[Path], typer.Argument(help="Notebooks.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if a file is not normalised.")
    ] = False,
) -> None:
    """Bring notebooks into the committed form: no times, random ids, widget states or bars."""
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
