"""A hand-in, rebuilt: the solution's notebook with the learner's text in its answer cells.

Nothing else of the hand-in counts: which cells there are, what they give and how they are marked
is read from the solution alone.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipyard.authoring.files import read
from shipyard.authoring.labs import CODE_STUB
from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

LARGEST = 50 << 20  # bytes of a hand-in


@dataclass(frozen=True)
class Cell:
    """One code cell of a rebuilt hand-in: ``kind`` is "locked", "answer", "check" or "by-hand"."""

    kind: str
    name: str
    source: str
    points: float = 0.0
    defines: tuple[str, ...] = ()  # what the solution's answer binds


@dataclass(frozen=True)
class Handin:
    """The cells to run, the lab's name, and what the learner should know about the rebuilding."""

    lab: str
    cells: tuple[Cell, ...]
    note: str = ""


def rebuild(path: Path, solutions: Path) -> Handin:
    """Read the hand-in at ``path`` and put its answers into its solution.

    Raises:
        AuthoringError: the file is no notebook, or of no lab of the folder ``solutions``.
    """
    if path.is_file() and path.stat().st_size > LARGEST:
        raise AuthoringError(f"The file is larger than {LARGEST >> 20} MB.")
    submission = read(path)
    solution = find_solution(submission, path, solutions)
    texts, own = answers_in(submission, read(solution))
    cells = []
    for cell in read(solution).cells:
        about = cell.metadata.get("nbgrader", {})
        name = about.get("grade_id", "")
        if about.get("grade"):
            kind = "by-hand" if about.get("solution") or cell.cell_type != "code" else "check"
            task, points = name.removeprefix("check-"), float(about["points"])
            cells.append(Cell(kind, task, cell.source, points))
        elif about.get("solution") and cell.cell_type == "code":
            cells.append(Cell("answer", name, texts.get(name, ""), 0.0, bound_names(cell.source)))
        elif cell.cell_type == "code":
            cells.append(Cell("locked", name, cell.source))
    note = ""
    if own:
        note = (
            f"Only the answer cells are run. Code cells of your own: {own}. If an answer needs "
            "what stands in them, move it into the answer cell."
        )
    return Handin(solution.stem, tuple(cells), note)


def answers_in(submission: NotebookNode, solution: NotebookNode) -> tuple[dict[str, str], int]:
    """The learner's text for each answer cell by name, and the number of other code cells.

    A cell is known by nbgrader's name for it, or by its id; one that has lost both is known by
    what it defines. Of copies the last one counts that is not the stub.
    """
    wanted, others = {}, set()
    for cell in solution.cells:
        name = name_of(cell)
        if cell.metadata.get("nbgrader", {}).get("solution"):
            wanted[name] = bound_names(cell.source)
        else:
            others |= {name, cell.source.strip()}
    texts: dict[str, str] = {}
    nameless = []
    for cell in submission.cells:
        source = cell.get("source")
        if not isinstance(source, str) or cell.get("cell_type") != "code":
            continue
        found = [name for name in (name_of(cell), cell.get("id")) if name in wanted]
        if not found:
            is_ours = name_of(cell) in others or source.strip() in others
            nameless += [] if is_ours or not source.strip() else [source]
        elif found[0] not in texts or CODE_STUB not in source:
            texts[found[0]] = source
    own = 0
    for source in nameless:
        defined = bound_names(source)
        fits = [n for n, names in wanted.items() if names and set(names) <= set(defined)]
        lost = [name for name in fits if name not in texts]
        texts.update(dict.fromkeys(lost[:1], source))
        own += not lost
    return texts, own


def name_of(cell: Any) -> str:
    """nbgrader's name of a cell; empty where its metadata says none, or is of another form."""
    metadata = cell.get("metadata")
    about = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = about.get("grade_id") if isinstance(about, dict) else None
    return name if isinstance(name, str) else ""


def bound_names(source: str) -> tuple[str, ...]:
    """The names that a cell binds at its top level; none where it is no plain Python."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    found = []
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = getattr(statement, "targets", None) or [statement.target]
            nodes = [node for target in targets for node in ast.walk(target)]
            found += [node.id for node in nodes if isinstance(node, ast.Name)]
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found += [(alias.asname or alias.name).split(".")[0] for alias in statement.names]
    return tuple(dict.fromkeys(found))


def find_solution(submission: NotebookNode, path: Path, solutions: Path) -> Path:
    """The solution of a hand-in: the one that it names, else the one with its cells, else by name.

    Raises:
        AuthoringError: there is none.
    """
    known = {solution.stem: solution for solution in sorted(solutions.glob("*.ipynb"))}
    if not known:
        raise AuthoringError(f"{solutions.name}/ holds no solution notebooks to grade against.")
    about = submission.metadata.get("shipyard")
    named = about.get("solution") if isinstance(about, dict) else None
    if isinstance(named, str) and named in known:
        return known[named]
    names = {name_of(cell) for cell in submission.cells}
    for stem, solution in known.items():
        graded = [c for c in read(solution).cells if c.metadata.get("nbgrader", {}).get("grade")]
        if names & set(map(name_of, graded)) or path.stem.startswith(stem):
            return solution
    raise AuthoringError(
        f"{path.name} belongs to no known lab: it names none and holds none of their checks. "
        f"Known: {', '.join(known)}."
    )
