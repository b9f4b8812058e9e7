"""Run many notebooks, one after the other, and write an index page of what came out."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from shipyard.authoring.files import normalise, read, topic_of, write
from shipyard.authoring.running import known_parameters, parse_parameters, run_notebook
from shipyard.errors import AuthoringError

KEY_RESULTS = 6


@dataclass
class SeriesResult:
    """One notebook of a series: ``state`` is waiting, running, passed, failed or interrupted."""

    path: Path
    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    output: Path | None = None
    page: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The notebook's name without folder and suffix."""
        return self.path.stem


def run_folder(root: Path) -> Path:
    """A new folder ``runs/<UTC time>`` under ``root``."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    folder, count = root / "runs" / stamp, 1
    while folder.exists():
        count += 1
        folder = root / "runs" / f"{stamp}-{count}"
    return folder


def run_series(
    paths: Iterable[Path],
    folder: Path,
    parameters: Mapping[str, str] | None = None,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    on_change: Callable[[SeriesResult, int, int], None] | None = None,
) -> list[SeriesResult]:
    """Run each notebook; write executed copies, HTML pages, result files and ``index.html``.

    A failure is recorded and the rest still runs. After Ctrl-C the index shows what was done,
    and `KeyboardInterrupt` goes on to the caller.

    Args:
        paths: the notebooks, in order.
        folder: where everything goes; result files go to ``folder/results``.
        parameters: texts by name; each notebook gets those that it knows.
        timeout: seconds that one cell may take; None for no limit.
        environment: more variables for the kernels.
        on_change: called with (result, cells begun, cells in all) at each cell and change.

    Raises:
        AuthoringError: a parameter that no notebook knows, a wrong value, or a folder that
            cannot be written; nothing was run.
    """
    results = [SeriesResult(Path(path)) for path in paths]
    chosen = _parameters_of_each(results, parameters or {})
    folder = folder.resolve()
    if any(result.path.resolve().parent == folder for result in results):
        raise AuthoringError(f"The run would overwrite the notebooks in {folder}; choose another.")
    try:
        (folder / "results").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise AuthoringError(
            f"{folder} cannot hold the results: {error}. Give a folder that can be written, with "
            "--output; nothing was run."
        ) from error
    environment = {"SHIPYARD_RESULTS": str(folder / "results"), **(environment or {})}
    tell = on_change or (lambda result, cell, cells: None)
    started = datetime.now(UTC)
    write_index(results, folder, started)
    try:
        for result in results:
            _run_one(result, folder, chosen[result.name], timeout, environment, tell)
            write_index(results, folder, started)
    finally:
        write_index(results, folder, started)
    return results


def _parameters_of_each(
    results: list[SeriesResult], parameters: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Give each notebook the parameters that it knows; check all values before any run."""
    if len(results) == 1:
        only = results[0]
        parse_parameters(read(only.path), parameters, only.name)
        return {only.name: dict(parameters)}
    chosen, everything = {}, {}
    for result in results:
        notebook = read(result.path)
        known = known_parameters(notebook)
        everything.update(known)
        chosen[result.name] = {key: text for key, text in parameters.items() if key in known}
        parse_parameters(notebook, chosen[result.name], result.name)
    unknown = [key for key in parameters if key not in everything]
    if unknown:
        raise AuthoringError(
            f"No notebook has the parameter {unknown[0]!r}. Known: {', '.join(everything)}."
        )
    return chosen


def _run_one(
    result: SeriesResult,
    folder: Path,
    parameters: Mapping[str, str],
    timeout: float | None,
    environment: Mapping[str, str],
    tell: Callable[[SeriesResult, int, int], None],
) -> None:
    """Run one notebook and fill in its result."""
    result.state, result.output = "running", folder / f"{result.name}.ipynb"
    began, clock = time.time(), time.perf_counter()
    tell(result, 0, 1)
    try:
        run_notebook(
            result.path,
            result.output,
            parameters,
            timeout=timeout,
            environment=environment,
            on_cell=lambda cell, cells: tell(result, cell, cells),
        )
        result.state = "passed"
    except AuthoringError as error:
        result.state, result.error = "failed", str(error)
    except BaseException as error:
        result.state, result.error = "interrupted", f"The run was stopped ({type(error).__name__})."
        raise
    finally:
        result.seconds = time.perf_counter() - clock
        result.record = _record(folder / "results" / f"{topic_of(result.name)}.json", since=began)
        result.page = None if result.state == "interrupted" else _render(result.output)
        tell(result, 1, 1)


def save_outputs(result: SeriesResult) -> None:
    """Write the outputs of a passed run back into its notebook, in the committed form.

    Raises:
        AuthoringError: the run did not pass, or its cells are not those of the notebook now:
            it was edited meanwhile, or run with parameters. Nothing was written.
    """
    if result.state != "passed":
        raise AuthoringError(f"{result.name} {result.state}; its outputs are not saved.")
    executed = normalise(read(result.output))
    if [c.source for c in executed.cells] != [c.source for c in read(result.path).cells]:
        raise AuthoringError(
            f"{result.path} differs from what was run: it was edited meanwhile, or run with -p. "
            f"Its outputs are not saved; the executed copy is {result.output}."
        )
    write(executed, result.path)


def _record(path: Path, since: float) -> dict[str, Any]:
    """The result file that a notebook wrote in this run, or nothing."""
    try:
        if path.stat().st_mtime < since - 1:
            return {}
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _render(output: Path) -> Path | None:
    """Executed notebook → HTML page beside it."""
    if not output.is_file():
        return None
    from nbconvert import HTMLExporter

    notebook = read(output)
    notebook.metadata.pop("widgets", None)  # no kernel stands behind a page
    body, _ = HTMLExporter().from_notebook_node(
        notebook, resources={"metadata": {"name": output.stem}}
    )
    page = output.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page


STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5b6675; --paper: #fbfbfa;
  --card: #ffffff; --line: #dfe3e8; --good: #00734f; --bad: #b3421b; --link: #00588f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #a0a9b6; --paper: #14181e;
  --card: #1b2129; --line: #303844; --good: #4cc79d; --bad: #ff9466; --link: #7cc3f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.25rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; letter-spacing: -0.01em; }
p { margin: .3rem 0 1.5rem; color: var(--dim); }
a { color: var(--link); }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .7rem .9rem; }
th { font-size: .78rem; font-weight: 600; color: var(--dim); text-transform: uppercase;
  letter-spacing: .04em; white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; color: var(--dim); }
.state { font-weight: 600; white-space: nowrap; }
.passed { color: var(--good); } .failed, .interrupted { color: var(--bad); }
.waiting, .running { color: var(--dim); }
dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; font-size: .9rem; }
dt { color: var(--dim); } dd { margin: 0; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { margin: 0; padding: .8rem .9rem; overflow-x: auto; font-size: .82rem; line-height: 1.45;
  border-left: 3px solid var(--bad); background: var(--paper); white-space: pre-wrap; }
"""

SIGNS = {"passed": "✓", "failed": "✗", "interrupted": "✗", "running": "…", "waiting": "·"}


def write_index(results: list[SeriesResult], folder: Path, started: datetime) -> Path:
    """Write ``folder/index.html``: one row for each notebook, and the errors below their rows."""
    counts = {state: sum(r.state == state for r in results) for state in SIGNS}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    seconds = sum(result.seconds for result in results)
    rows = "\n".join(_row(result, folder) for result in results)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shipyard run: {escape(summary)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Shipyard run</h1>
<p>{started:%Y-%m-%d %H:%M} UTC · {escape(summary)} · {seconds:.0f} s</p>
<div class="table">
<table>
<thead><tr><th scope="col">Notebook</th><th scope="col">State</th>
<th scope="col" class="number">Seconds</th>
<th scope="col">Device</th><th scope="col">Profile</th><th scope="col">Dataset</th>
<th scope="col">Key results</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</body>
</html>
"""
    path = folder / "index.html"
    unfinished = folder / f".index.{os.getpid()}.tmp"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def _row(result: SeriesResult, folder: Path) -> str:
    """One notebook's row, and a second one with the error where it has one."""
    page, copy = (
        escape(path.relative_to(folder).as_posix()) if path and path.is_file() else None
        for path in (result.page, result.output)
    )
    name = escape(result.name)
    title = f'<a href="{page}">{name}</a>' if page else name
    download = f'<small><a href="{copy}">executed notebook</a></small>' if copy else ""
    facts = "".join(
        f"<td>{escape(str(result.record.get(key, '')))}</td>"
        for key in ("device", "profile", "dataset")
    )
    time_taken = f"{result.seconds:.1f}" if result.seconds else ""
    row = (
        f"<tr><td>{title}{download}</td>"
        f'<td class="state {result.state}">{SIGNS[result.state]} {result.state}</td>'
        f'<td class="number">{time_taken}</td>{facts}'
        f"<td>{_key_results(result.record.get('metrics', {}))}</td></tr>"
    )
    if result.error:
        row += f'\n<tr><td colspan="7"><pre>{escape(result.error)}</pre></td></tr>'
    return row


def _key_results(metrics: Mapping[str, Any]) -> str:
    """The first few metrics that are one number or one word."""
    shown = [(k, v) for k, v in metrics.items() if isinstance(v, (bool, int, float, str))]
    pairs = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt>"
        f"<dd>{escape(f'{value:.4g}' if isinstance(value, float) else str(value))}</dd>"
        for key, value in shown[:KEY_RESULTS]
    )
    return f"<dl>{pairs}</dl>" if pairs else ""


def failures(results: Iterable[SeriesResult]) -> list[str]:
    """The messages of the notebooks that failed."""
    return [result.error for result in results if result.state == "failed"]
