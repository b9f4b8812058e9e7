"""Mistakes as edits: a catalogue says, in Markdown, what a wrong answer does to the reference.

``mistakes/<subject>.md`` stands beside the checks of ``<subject>``. A heading names one task or
several, a heading below it a mistake; then come its edits, and what to tell the learner:

    # normalize

    ## divided-by-256
    - `255` → `256` or `257`

    You divided by 256. A byte holds 0 to 255, so divide by 255.

Each point of the list is one form of the mistake, and each of the new texts that "or" joins gives
one more. Edits that belong to one form are joined by "and"; with "and/or" each of them alone is a
form, too. An edit must match the reference's source exactly once, or as often as it says:
"(twice)", "(3 times)", "(everywhere)". ``→ any order`` stands for every other order of the names
between the commas. Below a heading of several tasks, a form counts where it matches, and must
match somewhere.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "mistakes"
TIMES = {None: 1, "twice": 2, "everywhere": 0}

_CODE = r"(?:``.+?``|`[^`]*`)"
_NEW = rf"(?:{_CODE}|nothing|any order)"
_ONE = re.compile(
    rf"(?P<old>{_CODE}) → (?P<new>{_NEW}(?: or {_NEW})*)"
    r"(?: \((?P<times>twice|everywhere|\d+ times)\))?"
)


class CatalogueError(Exception):
    """A catalogue, or an edit in it, that its author must mend."""


@dataclass(frozen=True)
class Edit:
    """Put ``new`` in the place of ``old``, which stands ``times`` times in the source (0: any)."""

    old: str
    new: str
    times: int = 1

    def apply(self, source: str) -> str:
        """``source`` with the edit made.

        Raises:
            CatalogueError: ``old`` stands there more or less often than ``times``.
        """
        found = source.count(self.old)
        if found != (self.times or max(found, 1)):
            raise CatalogueError(
                f"`{self.old}` stands {found} times in the reference; expected {self.times}."
            )
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Entry:
    """A named mistake of a catalogue: each of its ``forms`` is a tuple of edits.

    ``shared`` by several tasks: not every form matches each of them.
    """

    slug: str
    advice: str
    forms: tuple[tuple[Edit, ...], ...]
    shared: bool = False


@functools.cache
def read(subject: str) -> dict[str, tuple[Entry, ...]]:
    """The entries of ``mistakes/<subject>.md`` by task, in their order; none without a file."""
    path = FOLDER / f"{subject}.md"
    if not path.is_file():
        return {}
    try:
        return parse(path.read_text(encoding="utf-8"))
    except CatalogueError as error:
        raise CatalogueError(f"{path.name}: {error}") from error


def entries(reference: Callable) -> tuple[Entry, ...]:
    """What the catalogue of the reference's module says about it, the likeliest first."""
    subject = reference.__module__.rpartition(".")[2]
    found = []
    for entry in read(subject).get(reference.__name__, ()):
        forms = tuple(form for form in entry.forms if not entry.shared or fits(reference, form))
        found.append(dataclasses.replace(entry, forms=forms))
    return tuple(found)


def fits(reference: Callable, form: tuple[Edit, ...]) -> bool:
    """Whether the edits match the source."""
    try:
        return bool(edited(reference, form))
    except CatalogueError:
        return False


def pairs(
    reference: Callable, known: Sequence[Entry], seconds: float
) -> Iterator[tuple[tuple[Entry, Entry], Callable]]:
    """Every two mistakes made at once, as far as their edits fit together, for ``seconds``."""
    stop = time.thread_time() + seconds
    for first, second in itertools.combinations(known, 2):
        for form in itertools.product(first.forms, second.forms):
            try:
                yield (first, second), edited(reference, form[0] + form[1])
            except CatalogueError:
                continue  # the first edit took away what the second one changes
            if time.thread_time() > stop:
                return


def parse(text: str) -> dict[str, tuple[Entry, ...]]:
    """The entries of a catalogue by task.

    Raises:
        CatalogueError: a mistake without a task, edits or advice, or with an unreadable edit.
    """
    entries: dict[str, tuple[Entry, ...]] = {}
    _, *parts = re.split(r"^# +", text, flags=re.MULTILINE)
    for part in parts:
        title, _, body = part.partition("\n")
        _, *mistakes = re.split(r"^## +", body, flags=re.MULTILINE)
        tasks = title.split(",")
        found = tuple(_entry(mistake, len(tasks) > 1) for mistake in mistakes)
        for task in tasks:
            entries[task.strip()] = (*entries.get(task.strip(), ()), *found)
    return entries


def _entry(text: str, shared: bool) -> Entry:
    slug, _, body = text.partition("\n")
    points = re.findall(r"^- (.*(?:\n  .*)*)", body, flags=re.MULTILINE)
    advice = re.sub(r"^- .*(?:\n  .*)*", "", body, flags=re.MULTILINE)
    forms = tuple(form for point in points for form in _forms(slug, " ".join(point.split("\n  "))))
    if not (forms and advice.strip()):
        raise CatalogueError(f"{slug.strip()} needs at least one edit, and an advice.")
    return Entry(slug.strip(), " ".join(advice.split()), forms, shared)


def _forms(slug: str, point: str) -> Iterator[tuple[Edit, ...]]:
    """The forms of one point: several where "or", "and/or" or "any order" stands in it."""
    found = list(_ONE.finditer(point))
    joints = set(re.sub(_ONE, "", point).split())
    if not found or joints not in (set(), {"and"}, {"and/or"}):
        raise CatalogueError(f"{slug}: cannot read the edits in {point!r}.")
    edits = [_edits(match) for match in found]
    if "any order" in point:  # several of them in one form change their names alike
        yield from zip(*edits, strict=True)
        return
    for count in range(1 if joints == {"and/or"} else len(edits), len(edits) + 1):
        for some in itertools.combinations(edits, count):
            yield from itertools.product(*some)


def _edits(match: re.Match) -> list[Edit]:
    """One for each of the new texts."""
    old = _code(match["old"])
    if match["new"] == "any order":
        names = old.split(", ")
        new = map(", ".join, list(itertools.permutations(names))[1:])
    else:
        new = map(_code, re.findall(_NEW, match["new"]))
    times = match["times"]
    times = TIMES[times] if times in TIMES else int(times.split()[0])
    return [Edit(old, text, times) for text in new]


def _code(text: str) -> str:
    """What stands between the backquotes; "nothing" stands for no text at all."""
    if not text.startswith("`"):
        return ""
    return text[2:-2].strip() if text.startswith("``") else text[1:-1]


@functools.cache
def source_of(function: Callable) -> str:
    """The source of ``function`` without its docstring and without indentation."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines = source.splitlines(keepends=True)
        del lines[first.lineno - 1 : first.end_lineno]
        source = "".join(lines)
    return source


@functools.cache
def edited(function: Callable, form: tuple[Edit, ...]) -> Callable:
    """``function`` with the edits of ``form`` made in its source, in their order.

    Args:
        function: a function of a module (not nested), so that its globals are all it needs.

    Raises:
        CatalogueError: an edit does not match, or what comes out is not Python.
    """
    source = source_of(function)
    for edit in form:
        source = edit.apply(source)
    try:
        return built(function, source)
    except SyntaxError as error:
        raise CatalogueError(
            f"{function.__name__} is no longer Python after the edits: {error.msg}\n{source}"
        ) from error


def built(function: Callable, source: str, more: dict | None = None) -> Callable:
    """What ``source`` defines under the name of ``function``, among its module's names and more."""
    namespace = (more or {}) | function.__globals__
    exec(compile(source, f"<{function.__name__}, edited>", "exec"), namespace)
    return namespace[function.__name__]
