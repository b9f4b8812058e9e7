"""What teacher and learners read after grading: a page for each hand-in, and one for the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from shipyard.authoring.grading import Score, TaskScore, with_short_names
from shipyard.authoring.series import STYLE

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class TaskStatistics:
    """How a class did in one task: who solved it, and which mistake the others made most."""

    lab: str
    task: str
    files: int
    solved: int
    diagnosis: str = ""
    count: int = 0


def task_statistics(scores: Iterable[Score]) -> list[TaskStatistics]:
    """One row for each task, in the labs' order. A file that could not be graded is in none."""
    found: dict[tuple[str, str], list[TaskScore]] = {}
    for score in scores:
        for task in score.tasks:
            found.setdefault((score.lab, task.task), []).append(task)
    rows = []
    for (lab, name), tasks in found.items():
        solved = sum(task.points >= task.max_points for task in tasks)
        named = Counter(task.diagnosis for task in tasks if task.diagnosis)
        rows.append(
            TaskStatistics(lab, name, len(tasks), solved, *(named.most_common(1) or [()])[0])
        )
    return rows


def write_feedback(scores: Sequence[Score], folder: Path) -> Path:
    """Write ``feedback/FILE.html`` for each hand-in and ``index.html`` for the teacher.

    A learner's page speaks of this learner alone. Returns the path of the index.
    """
    scores = with_short_names(scores)
    links = []
    for score in scores:
        link = Path("feedback", f"{score.path}.html")
        _write(folder / link, _learners_page(score))
        links.append(link.as_posix())
    _write(folder / "index.html", _index(scores, links))
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _learners_page(score: Score) -> str:
    rows = []
    for task in score.tasks:
        solved = task.points >= task.max_points
        state, sign = ("passed", "✓") if solved else ("failed", "✗")
        rows.append([
            escape(task.task),
            f'<span class="state {state}">{sign}</span> {escape(task.diagnosis)}',
            f"{task.points:g} of {task.max_points:g}",
            f"<pre>{escape(task.message)}</pre>" if task.message else "",
        ])  # fmt: skip
    body = _table(["Task", "Result", "Points", "What the check says"], rows)
    notes = "".join(f"<p>{escape(text)}</p>" for text in (score.problem, score.note) if text)
    summary = f"{score.points:g} of {score.max_points:g} points · {escape(score.lab)}"
    return _page(score.path.stem, "Not graded" if score.problem else summary, notes + body)


def _index(scores: Sequence[Score], links: Sequence[str]) -> str:
    files = [
        [
            f'<a href="{escape(link)}">{escape(score.path.as_posix())}</a>',
            escape(score.lab),
            "not graded" if score.problem else f"{score.points:g} of {score.max_points:g}",
            escape(score.problem or _suspicion(score) or score.note),
        ]
        for score, link in zip(scores, links, strict=True)
    ]
    tasks = [
        [
            escape(row.lab),
            escape(row.task),
            f"{row.solved} of {row.files} ({row.solved / row.files:.0%})",
            f"{escape(row.diagnosis)} ({row.count})" if row.diagnosis else "",
        ]
        for row in task_statistics(scores)
    ]
    body = _table(["File", "Lab", "Points", "Remark"], files)
    body += "<h2>Tasks</h2>" + _table(["Lab", "Task", "Solved", "Most common diagnosis"], tasks)
    graded = sum(not score.problem for score in scores)
    return _page("Marks", f"{graded} of {len(scores)} files graded", body)


def _suspicion(score: Score) -> str:
    doubtful = [task.task for task in score.tasks if task.diagnosis == "not-confirmed"]
    return f"Look at {', '.join(doubtful)}: passed only beside its own code." if doubtful else ""


def _page(title: str, summary: str, body: str) -> str:
    return PAGE.format(title=escape(title), style=STYLE, summary=summary, body=body)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    lines = "\n".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>\n"
    )
