"""The series as its notebooks tell it: the README's table, the links at their feet, the badges.

A lesson's place is the number in its file name; its title, part, lab and one line about it stand
in ``metadata.shipyard``. All else follows from these, so a lesson is added, split or moved by
renaming notebooks and writing the contents anew.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from shipyard.authoring import setup_cell
from shipyard.authoring.files import normalise, read, to_text, topic_of
from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 200, 10
FOOT = "foot"  # the tag of the cell with the links, and its name in a lab
BEGIN, END = "<!-- contents: written by `shipyard contents` -->", "<!-- end of contents -->"
COLAB = "https://colab.research.google.com"
NO_BADGES = (
    "<!-- Badges for Colab follow as soon as [project.urls] Repository in pyproject.toml "
    "names a real repository on GitHub. -->"
)

WORD = re.compile(r"[^\W\d_][\w'’-]*")
NOT_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|<[^>]+>|https?://\S+", re.DOTALL)
# Fenced blocks, code between backticks, and formulas: f[i](x) in them is no link.
NOT_LINKS = re.compile(r"```.*?```|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
LINK = re.compile(r"""(\]\(<?|<(?:a|img)\b[^>]*?\b(?:href|src)=["'])([^)\s>"']+)""")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|/", re.IGNORECASE)  # https:, mailto:, attachment:


@dataclass(frozen=True)
class Lab:
    """A lab, known by its solution; lessons name it by its subject."""

    path: Path
    title: str
    subject: str


@dataclass(frozen=True)
class Lesson:
    """What a lesson says about itself; ``run_seconds`` is None until a run was measured."""

    path: Path
    title: str
    part: str
    about: str
    lab: Lab | None
    reading_minutes: int
    run_seconds: int | None

    @property
    def number(self) -> str:
        """``notebooks/05_attention.ipynb`` → ``"05"``"""
        return self.path.stem.removesuffix(topic_of(self.path.stem)).rstrip("_")


def words_of_prose(text: str) -> int:
    """Words of a Markdown text without its code, formulas, tags and addresses."""
    return len(WORD.findall(NOT_PROSE.sub(" ", text)))


def lines_of_code(source: str) -> int:
    """Lines that are not empty."""
    return sum(bool(line.strip()) for line in source.splitlines())


def reading_minutes(notebook: NotebookNode) -> int:
    """words / 200 + lines of code / 10, rounded up to five minutes: an estimate, not measured."""
    cells = [cell for cell in notebook.cells if not _is_foot(cell)]
    words = sum(words_of_prose(c.source) for c in cells if c.cell_type == "markdown")
    lines = sum(lines_of_code(c.source) for c in cells if c.cell_type == "code")
    return 5 * math.ceil((words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE) / 5)


def read_lessons(root: Path, measured: dict[str, int] | None = None) -> list[Lesson]:
    """The lessons of ``notebooks/``, in the order of their file names.

    Args:
        root: the checkout.
        measured: run times in seconds by topic, which replace those of the metadata.

    Raises:
        AuthoringError: a notebook does not say what the table needs, or names an unknown lab.
    """
    labs = {}
    for path in sorted((root / "solutions").glob("*.ipynb")):
        about = _about(read(path), path, "title", "subject")
        labs[about["subject"]] = Lab(path, about["title"], about["subject"])
    lessons = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read(path)
        about = _about(notebook, path, "title", "part", "about", "lab")
        if about["lab"] is not None and about["lab"] not in labs:
            raise AuthoringError(
                f"{path.name} names the lab {about['lab']!r} in metadata.shipyard, but no solution "
                f"has this subject. Known: {', '.join(labs) or 'none'}; null means no lab."
            )
        lessons.append(
            Lesson(
                path,
                about["title"],
                about["part"],
                about["about"],
                labs.get(about["lab"]),
                reading_minutes(notebook),
                (measured or {}).get(topic_of(path.stem), about.get("run_seconds")),
            )
        )
    return lessons


def _about(notebook: NotebookNode, path: Path, *keys: str) -> dict:
    about = notebook.metadata.get("shipyard", {})
    missing = [key for key in keys if key not in about]
    if missing:
        raise AuthoringError(
            f"{path.name} does not give {', '.join(missing)} in metadata.shipyard. "
            f"It needs {', '.join(keys)}."
        )
    return about


# --- What is written --------------------------------------------------------------------------


def stale_contents(root: Path, times: Path | None = None) -> dict[Path, str]:
    """The files of a checkout that differ from what its notebooks say, each with its right text.

    These are the README with its table, the lessons and solutions with their feet and times, and
    every text with a link to a notebook that has moved.

    Args:
        root: the checkout.
        times: the folder of a run with the profile "fast", whose seconds become the run times.

    Raises:
        AuthoringError: metadata are missing, the README has no place for the table, or the run
            does not tell how long a reader waits.
    """
    measured = run_times(times) if times is not None else {}
    lessons = read_lessons(root, measured)
    wanted = {
        path: mend_links(path.read_text(encoding="utf-8"), path.parent)
        for path in [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    }
    readme = root / "README.md"
    if BEGIN not in wanted.get(readme, "") or END not in wanted[readme]:
        raise AuthoringError(f"{readme} has no lines {BEGIN!r} and {END!r} for the table to stand.")
    before, rest = wanted[readme].split(BEGIN, 1)
    table = contents_table(lessons, setup_cell.repository_address(root))
    wanted[readme] = f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}"

    for lesson, foot in zip(lessons, lesson_feet(lessons), strict=True):
        notebook = _with_foot(read(lesson.path), foot, lesson.path.parent)
        notebook.metadata["shipyard"]["reading_minutes"] = lesson.reading_minutes
        if lesson.run_seconds is not None:
            notebook.metadata["shipyard"]["run_seconds"] = lesson.run_seconds
        wanted[lesson.path] = to_text(normalise(notebook))
    for lab, foot in lab_feet(lessons):
        notebook = _with_foot(read(lab.path), foot, lab.path.parent)
        wanted[lab.path] = to_text(normalise(notebook))
    return {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}


def run_times(folder: Path) -> dict[str, int]:
    """Seconds by topic, from the result files of ``shipyard run --all --profile fast``.

    Raises:
        AuthoringError: there are none, or they tell of another profile or of a GPU.
    """
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "results").glob("*.json"))
    ]
    kinds = {(record["profile"], record["device"]) for record in records}
    if kinds != {("fast", "cpu")}:
        raise AuthoringError(
            f"{folder / 'results'} must hold result files of the profile fast on the device cpu, "
            f"and holds {sorted(kinds) or 'none'}. Run: shipyard run --all --profile fast"
        )
    return {record["lesson"]: round(record["seconds"]) for record in records}


def contents_table(lessons: list[Lesson], repository: str) -> str:
    """The README's table: a row for each lesson, below the name of its part.

    Without a measured run there is no column of run times, without an address none of badges.
    """
    badges = [colab_badge(lesson, repository) for lesson in lessons]
    timed = any(lesson.run_seconds is not None for lesson in lessons)
    header = ["", "lesson", "lab", "reading", *["run"] * timed, "about", *[""] * all(badges)]
    rows = [header, ["---"] * len(header)]
    for part, members in groupby(zip(lessons, badges, strict=True), lambda pair: pair[0].part):
        rows.append(["", f"**{part.capitalize()}**", *[""] * (len(header) - 2)])
        for lesson, badge in members:
            seconds = "" if lesson.run_seconds is None else f"{lesson.run_seconds} s"
            row = [
                lesson.number,
                f"[{lesson.title}](notebooks/{lesson.path.name})",
                f"[lab](labs/{lesson.lab.path.name})" if lesson.lab else "",
                f"{lesson.reading_minutes} min",
                *[seconds] * timed,
                lesson.about.replace("|", "\\|"),
                *[badge] * all(badges),
            ]
            rows.append(row)
    note = (
        f"Reading times are estimated: {WORDS_A_MINUTE} words or {CODE_LINES_A_MINUTE} lines of "
        "code a minute."
    )
    if timed:
        note += " Run times were measured on two cores, with the profile `fast`."
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{note}" if all(badges) else f"{NO_BADGES}\n\n{table}\n\n{note}"


def lesson_feet(lessons: list[Lesson]) -> Iterator[str]:
    """For each lesson: ← previous · next → · lab."""
    for before, lesson, after in zip(
        [None, *lessons[:-1]], lessons, [*lessons[1:], None], strict=True
    ):
        links = []
        if before:
            links.append(f"← [{before.title}]({before.path.name})")
        if after:
            links.append(f"[{after.title}]({after.path.name}) →")
        if lesson.lab:
            links.append(f"lab: [{lesson.lab.title}](../labs/{lesson.lab.path.name})")
        yield " · ".join(links)


def lab_feet(lessons: list[Lesson]) -> Iterator[tuple[Lab, str]]:
    """For each lab: ← the lessons that lead to it · the lesson after them →."""

    def link(lesson: Lesson) -> str:
        return f"[{lesson.title}](../notebooks/{lesson.path.name})"

    for lab in dict.fromkeys(lesson.lab for lesson in lessons if lesson.lab):
        places = [place for place, lesson in enumerate(lessons) if lesson.lab == lab]
        foot = f"← lesson: {', '.join(link(lessons[place]) for place in places)}"
        after = lessons[places[-1] + 1 :][:1]
        yield lab, " · ".join([foot, *(f"{link(lesson)} →" for lesson in after)])


def _with_foot(notebook: NotebookNode, foot: str, folder: Path) -> NotebookNode:
    """``notebook`` with ``foot`` as its last cell, and with the links in its texts mended."""
    from nbformat.v4 import new_markdown_cell

    cells = [cell for cell in notebook.cells if not _is_foot(cell)]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = mend_links(cell.source, folder)
    metadata: dict = {"tags": [FOOT]}
    if folder.name == "solutions":  # nbgrader wants to know of every cell of a lab
        metadata["nbgrader"] = {
            "grade": False,
            "grade_id": FOOT,
            "locked": True,
            "schema_version": 3,
            "solution": False,
            "task": False,
        }
    notebook.cells = [*cells, new_markdown_cell(foot, metadata=metadata)] if foot else cells
    return notebook


def _is_foot(cell: NotebookNode) -> bool:
    return FOOT in cell.metadata.get("tags", ())


# --- The project's address --------------------------------------------------------------------


def colab_badge(lesson: Lesson, repository: str) -> str | None:
    """A badge that opens the lesson in Colab; None without a real address on GitHub."""
    place = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    if place is None or setup_cell.PLACEHOLDER in repository:
        return None
    notebook = f"{COLAB}/github/{place[1]}/blob/main/notebooks/{lesson.path.name}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({notebook})"


# --- Links ------------------------------------------------------------------------------------


def mend_links(text: str, folder: Path) -> str:
    """Let links to a notebook that was renumbered follow it: what stays is its topic."""

    def mended(link: re.Match) -> str:
        path, mark, place = link[2].partition("#")
        if ELSEWHERE.match(path) or not path.endswith(".ipynb") or _exists(folder / path):
            return link[0]
        old = folder / path
        topic = topic_of(old.stem)
        new = [p.name for p in _source(old).parent.glob("*.ipynb") if topic_of(p.stem) == topic]
        return f"{link[1]}{path.removesuffix(old.name)}{new[0]}{mark}{place}" if new else link[0]

    return LINK.sub(mended, text)


def _source(path: Path) -> Path:
    """A lab is there as soon as its solution is."""
    inside_labs = path.parent.name == "labs"
    return path.parent.parent / "solutions" / path.name if inside_labs else path


def _exists(path: Path) -> bool:
    return _source(path).exists()


def dead_links(root: Path) -> list[str]:
    """Links of notebooks, README and docs that lead nowhere inside the checkout."""
    problems = []
    for path, text in _texts(root):
        for link in LINK.finditer(NOT_LINKS.sub("", text)):
            target, _, place = link[2].partition("#")
            goal = path.parent / target if target else path
            if ELSEWHERE.match(target):
                continue
            if not _exists(goal):
                problems.append(f"{path.relative_to(root)}: {link[2]} does not exist")
            elif place and goal.suffix == ".md" and place not in _places(goal):
                problems.append(f"{path.relative_to(root)}: {link[2]} is no heading there")
    return problems


def _texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every Markdown text of the checkout, with the file that it stands in."""
    for path in sorted([*root.glob("*.md"), *(root / "docs").glob("*.md")]):
        yield path, path.read_text(encoding="utf-8")
    for folder in ("notebooks", "solutions", "labs"):
        for path in sorted((root / folder).glob("*.ipynb")):
            for cell in read(path).cells:
                if cell.cell_type == "markdown":
                    yield path, cell.source


def _places(path: Path) -> set[str]:
    """The names that GitHub gives to the headings of a Markdown file."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
