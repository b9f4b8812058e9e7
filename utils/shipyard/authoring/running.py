"""Run one notebook without a browser: papermill, with parameters that are checked first."""

from __future__ import annotations

import ast
import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipyard.authoring.files import read, topic_of
from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

ANSI = re.compile(r"\x1b\[[0-9;]*m")
SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS = {"int": int, "float": float, "bool": bool, "str": str}
TAKES = {
    int: "a whole number such as 3",
    float: "a number such as 0.01",
    bool: "true or false",
    str: "text",
    list: "a list such as [1, 2]",
    tuple: "a tuple such as (1, 2)",
    dict: "a dict such as {'a': 1}",
    None: "a number such as 3 or 0.01, or none",
}


# The kernel's own log would stand between our lines; what matters comes back as an exception.
QUIET_KERNEL = ["--IPKernelApp.log_level=50"]


class CellError(AuthoringError):
    """A cell stopped a run; the message quotes the cell and its error."""

    def __init__(self, notebook: str, cell: int, source: str, reason: str, output: Path | None):
        self.notebook, self.cell, self.source = notebook, cell, source
        self.reason, self.output = reason, output
        quoted = "\n".join(f"    {line}" for line in source.splitlines())
        kept = f"\nWhat ran until then is in {output}." if output else ""
        super().__init__(f"{notebook}, cell {cell} failed:\n\n{quoted}\n\n{reason}{kept}")


@dataclass(frozen=True)
class Parameter:
    """One name of the parameters cell, its default as written, and the type that it takes.

    ``kind`` is None where the default tells no type (``None``: the profile decides). Then it takes
    a number, or another literal; a text needs an annotation: ``NAME: str | None = None``.
    """

    name: str
    default: str
    kind: type | None


def find_notebook(name: str, folder: Path) -> Path:
    """``"02"``, ``"convolution"``, ``"02_convolution"`` or a path → the notebook's path.

    Raises:
        AuthoringError: there is no such notebook; the message lists those of ``folder``.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    wanted = Path(name).stem if name.endswith(".ipynb") else name
    number = wanted.zfill(2) if wanted.isdigit() else wanted
    matches = [
        stem for stem in known if wanted in (stem, topic_of(stem)) or stem.startswith(f"{number}_")
    ]
    if len(matches) == 1:
        return known[matches[0]]
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise AuthoringError(
        f"There is no notebook {name!r}.{hint} "
        f"Known: {', '.join(known) or f'none in {folder}'}. A path to an .ipynb file works too."
    )


def known_parameters(notebook: NotebookNode) -> dict[str, Parameter]:
    """The assignments in the cell tagged ``parameters``, by name, in order."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    found = {}
    for statement in ast.parse(cells[0].source).body if cells else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, kind = statement.targets[0].id, _kind(statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            name = statement.target.id
            kind = KINDS.get(ast.unparse(statement.annotation).partition(" ")[0])
        else:
            continue
        found[name] = Parameter(name, ast.unparse(statement.value), kind)
    return found


def _kind(value: ast.expr) -> type | None:
    """The type of a default: of a literal, of ``int(...)``, or text for ``os.environ.get``."""
    if isinstance(value, ast.Call):
        called = ast.unparse(value.func)
        return str if called in ("os.environ.get", "os.getenv") else KINDS.get(called)
    try:
        default = ast.literal_eval(value)
    except ValueError:
        return None
    return None if default is None else type(default)


def parse_parameter(parameter: Parameter, text: str) -> Any:
    """Read ``text`` as the type that the parameter's default has.

    Raises:
        AuthoringError: ``text`` is no such value; the message says what the parameter takes.
    """
    kind = parameter.kind
    words = {"none": "None", "true": "True", "false": "False"}
    try:
        if kind is str:
            return text
        if kind is bool:
            return SWITCH[text.lower()]
        if kind in (int, float):
            return kind(text)
        value = ast.literal_eval(words.get(text.lower(), text))
        if kind is not None and not isinstance(value, kind):
            raise ValueError
        return value
    except (KeyError, ValueError, SyntaxError):
        raise AuthoringError(
            f"{parameter.name} takes {TAKES[kind]} (default: {parameter.default}), not {text!r}."
        ) from None


def parse_parameters(notebook: NotebookNode, texts: Mapping[str, str], name: str) -> dict[str, Any]:
    """Texts from the command line → values for the parameters cell of ``notebook``."""
    known = known_parameters(notebook)
    unknown = [key for key in texts if key not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0].upper(), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        listed = ", ".join(f"{p.name} ({p.default})" for p in known.values()) or "none"
        raise AuthoringError(f"{name} has no parameter {unknown[0]!r}.{hint} Known: {listed}.")
    return {key: parse_parameter(known[key], text) for key, text in texts.items()}


def run_notebook(
    path: Path | str,
    output: Path | str,
    parameters: Mapping[str, str] | None = None,
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    cwd: Path | str | None = None,
) -> NotebookNode:
    """Run a notebook in a kernel of its own and write the executed copy to ``output``.

    The copy is written cell by cell: whatever stops the run, what was done until then is kept.

    Args:
        path: the notebook.
        output: the file to write; never the notebook itself.
        parameters: texts by name, read by the types of the defaults in the parameters cell.
        timeout: seconds that one cell may take; None for no limit.
        environment: variables for the kernel on top of this process's own.
        on_cell: called with (index from 0, number of cells) before each cell.
        cwd: the kernel's working folder; by default the notebook's own, as in JupyterLab.

    Raises:
        AuthoringError: unknown parameter or a wrong value for one; nothing was run.
        CellError: a cell raised, took too long, or ended the kernel.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    path, output = Path(path), Path(output)
    notebook = read(path)
    values = parse_parameters(notebook, parameters or {}, path.stem)
    if output.resolve() == path.resolve():
        raise AuthoringError(f"The output would overwrite {path}; choose another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    current = [0, ""]

    def starts(cell: NotebookNode, cell_index: int) -> None:
        current[:] = [cell_index, cell.source]
        if on_cell is not None:
            on_cell(cell_index, len(notebook.cells) + bool(values))

    try:
        with _environment(environment or {}):
            return papermill.execute_notebook(
                notebook,
                # papermill fills {braces} in paths
                str(output.resolve()).replace("{", "{{").replace("}", "}}"),
                values,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=str(cwd or path.resolve().parent),
                execution_timeout=timeout,
                on_cell_start=starts,
                extra_arguments=QUIET_KERNEL,
            )
    except papermill.PapermillExecutionError as error:
        reason = ANSI.sub("", f"{error.ename}: {error.evalue}")
        raise CellError(path.stem, error.cell_index + 1, error.source, reason, output) from None
    except CellTimeoutError:
        reason = f"The cell ran longer than {timeout:g} seconds and was stopped."
    except DeadKernelError:
        reason = (
            "The kernel ended while the cell ran. A common reason is too little memory: "
            "try a smaller BATCH_SIZE, or close other programs."
        )
    raise CellError(path.stem, current[0] + 1, current[1], reason, output)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which a kernel inherits, for the time of a run."""
    before = {key: os.environ.get(key) for key in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
