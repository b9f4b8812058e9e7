"""Labs: what a learner fills in, generated from the solutions with nbgrader's own steps."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from shipyard.authoring.files import normalise, read, to_text, write
from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

CODE_STUB = 'raise NotImplementedError("Write this function, then run the check below.")'
TEXT_STUB = "Write your answer here."


def generate_lab(solution_path: Path | str) -> NotebookNode:
    """Solution notebook → lab notebook: solutions become stubs, outputs go, checks are locked.

    The steps are those of ``nbgrader generate_assignment``, without its database. The same
    solution always gives the same bytes.

    Raises:
        AuthoringError: the file is no solution, or its nbgrader metadata or markers are wrong.
    """
    require_nbgrader()
    from nbgrader.preprocessors import (
        CheckCellMetadata,
        ClearHiddenTests,
        ClearMarkScheme,
        ClearOutput,
        ClearSolutions,
        ComputeChecksums,
        LockCells,
    )

    path = Path(solution_path)
    lab = read(path)
    _check_markers(lab, path)
    stubs = ClearSolutions(code_stub={"python": CODE_STUB}, text_stub=TEXT_STUB)
    chain = (
        LockCells(), stubs, ClearOutput(), CheckCellMetadata(), ComputeChecksums(),
        ClearHiddenTests(), ClearMarkScheme(), ComputeChecksums(), CheckCellMetadata(),
    )  # fmt: skip
    lab = normalise(lab)
    try:
        for step in chain:
            lab, _ = step.preprocess(lab, {})
    except Exception as error:  # nbgrader raises many kinds; each means: mend the solution
        reason = str(error).strip() or type(error).__name__
        raise AuthoringError(f"{path.name} gives no lab: {reason}.") from error
    extra = lab.metadata.get("shipyard", {}).get("extra")
    lab.metadata["shipyard"] = {"solution": path.stem, "checksum": content_checksum(lab)}
    if extra:
        lab.metadata["shipyard"]["extra"] = extra
    return normalise(lab)


def require_nbgrader() -> None:
    """Raise `AuthoringError` with the way to install it where nbgrader is missing."""
    if importlib.util.find_spec("nbgrader") is None:
        raise AuthoringError(
            "Making and grading labs needs nbgrader, which is not installed here. Run: "
            'pip install --constraint constraints.txt --editable ".[teach]"'
        )


def content_checksum(notebook: NotebookNode) -> str:
    """SHA-256 over what a learner can write: every cell's type and source, in order."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        digest.update(f"{cell.cell_type}\0{cell.source}\0".encode())
    return digest.hexdigest()


def learner_changed(path: Path) -> bool:
    """True unless the lab at ``path`` is surely as it was generated: no edit and no output."""
    try:
        lab = read(path)
    except AuthoringError:
        return True
    recorded = lab.metadata.get("shipyard", {}).get("checksum")
    has_outputs = any(cell.get("outputs") for cell in lab.cells)
    return has_outputs or recorded != content_checksum(lab)


def write_lab(solution_path: Path | str, labs: Path | str) -> tuple[Path, str]:
    """Generate one lab into the folder ``labs``; return its path and what was done.

    What was done is "written", "unchanged", or "kept": then the lab there holds a learner's
    work and stays as it is, and the new one stands beside it as ``NN_topic.new.ipynb``.
    """
    lab = generate_lab(solution_path)
    text = to_text(lab)
    labs = Path(labs)
    labs.mkdir(parents=True, exist_ok=True)
    stem = Path(solution_path).stem
    names = [stem, f"{stem}.new", *(f"{stem}.new-{count}" for count in range(2, 100))]
    for name in names:
        target = labs / f"{name}.ipynb"
        done = "written" if name == stem else "kept"
        if target.exists():
            if target.read_bytes() == text.encode():
                return target, "unchanged" if name == stem else "kept"
            if learner_changed(target):
                continue
        write(lab, target)
        return target, done
    raise AuthoringError(f"{labs} holds 99 changed copies of {stem}: move some of them away.")


def _check_markers(solution: NotebookNode, path: Path) -> None:
    """Refuse a solution that nbgrader would turn into a wrong lab without a word."""
    tasks = checks = 0
    for number, cell in enumerate(solution.cells, start=1):
        about = cell.metadata.get("nbgrader", {})
        begins, ends = (
            cell.source.count("### BEGIN SOLUTION"),
            cell.source.count("### END SOLUTION"),
        )
        where = f"{path.name}, cell {number} ({about.get('grade_id', 'no grade_id')})"
        if begins != ends:
            raise AuthoringError(
                f"{where}: {begins} BEGIN SOLUTION and {ends} END SOLUTION; they come in pairs."
            )
        if begins and not about.get("solution"):
            raise AuthoringError(
                f"{where}: holds a solution but its nbgrader metadata does not say so "
                '("solution": true); the lab would give the answer away.'
            )
        if about.get("solution") and cell.cell_type == "code":
            tasks += 1
            if not begins:
                raise AuthoringError(
                    f"{where}: is a solution cell without ### BEGIN SOLUTION and ### END SOLUTION."
                )
        checks += bool(about.get("grade"))
    if not tasks or not checks:
        raise AuthoringError(
            f"{path.name} has {tasks} solution cells and {checks} graded cells; a lab needs both."
        )
