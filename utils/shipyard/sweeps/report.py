"""The report: mean and spread over the seeds, as tables and a figure."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipyard.errors import SweepError
from shipyard.sweeps.planning import SEED, Sweep, label_of
from shipyard.sweeps.running import Outcome, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    An accuracy on validation images goes before all others: a sweep is there to choose, and
    what is chosen on the test images is no longer tested. Among those, a metric whose mean
    differs between the settings goes first: one that no parameter moves tells nothing. None
    where no trial has a number.

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
    chosen_on = [n for n in accuracies if "validation" in n or "val_" in n or "held_out" in n]
    candidates = chosen_on or accuracies or numbers
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
        lines.setdefault(label_of(others), []).append(setting)
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
        f"{name} against {along}: lowest {low.mean:.4g} at {label_of(low.values)}, "
        f"highest {high.mean:.4g} at {label_of(high.values)}. Data: {_dataset(outcomes)}."
    )
    return figure, alt
