"""Notebook files: read them, write them, and bring them into the one committed form."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from shipyard.authoring import setup_cell
from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}

# What editors and runners leave behind in a cell's metadata.
NOISE = ("execution", "papermill", "collapsed", "scrolled", "ExecuteTime", "trusted", "vscode",
         "id", "outputId", "colab")  # fmt: skip
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
EXPLORER_PLACEHOLDER = "An interactive explorer stands here: run this cell to use it."
# tqdm's bar, drawn ("45%|####  | 9/20") or counting without a total ("9it [00:01, 8.2it/s]").
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+(it|[kMG]?B)? \[\d+:\d+.*(/s|s/it)\]")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,}")


def topic_of(name: str) -> str:
    """``"05_attention"`` → ``"attention"``: what stays when lessons are renumbered."""
    return re.sub(r"^\d+_", "", name)


def read(path: Path | str) -> NotebookNode:
    """Read a notebook in format 4.

    Raises:
        AuthoringError: the file is missing, is not JSON or is not a notebook.
    """
    import nbformat

    path = Path(path)
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise AuthoringError(f"{path} does not exist.") from None
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError,
            TypeError, UnicodeDecodeError) as error:  # fmt: skip
        reason = str(error).strip().split("\n")[0][:200]
        raise AuthoringError(
            f"{path} is not a Jupyter notebook that can be read: {reason}. "
            "Open it in JupyterLab and save it again, or take a fresh copy."
        ) from error


def to_text(notebook: NotebookNode) -> str:
    """The bytes of a notebook file: sorted keys, one space of indent, one final newline."""
    import nbformat

    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def write(notebook: NotebookNode, path: Path | str) -> None:
    """Write a notebook in one step: a reader sees the old file or the new one."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(to_text(notebook), encoding="utf-8")
    unfinished.replace(path)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return a copy in the committed form, in which two equal runs differ in no line.

    Runs leave times, random ids, widget states and progress bars behind. They go; sources,
    results, figures and execution counts stay. ``normalise(normalise(n)) == normalise(n)``.
    """
    notebook = copy.deepcopy(notebook)
    kept = {key: notebook.metadata[key] for key in ("shipyard",) if key in notebook.metadata}
    notebook.metadata.clear()
    notebook.metadata.update(
        kernelspec=dict(KERNELSPEC), language_info=copy.deepcopy(LANGUAGE_INFO), **kept
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in notebook.cells:
        for key in NOISE:
            cell.metadata.pop(key, None)
        cell.metadata.get("jupyter", {}).pop("outputs_hidden", None)
        for key in ("tags", "jupyter"):
            if not cell.metadata.get(key, True):
                del cell.metadata[key]
        cell.id = _stable_id(cell, taken)
        if cell.cell_type == "code":
            cell.outputs = _normalised_outputs(cell.outputs)
    return notebook


def normalise_file(path: Path | str, check: bool = False) -> bool:
    """Normalise one file in place, its setup cell too, which tells of the project's address.

    Returns True where the file was (or, with ``check``, is) in another form.
    """
    path = Path(path)
    notebook = read(path)
    setup_cell.write_setup(notebook, path)
    notebook = normalise(notebook)
    if path.read_text(encoding="utf-8") == to_text(notebook):
        return False
    if not check:
        write(notebook, path)
    return True


def _stable_id(cell: NotebookNode, taken: set[str]) -> str:
    """An id that follows from the cell itself: its nbgrader name, or a hash of its source."""
    name = cell.metadata.get("nbgrader", {}).get("grade_id")
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    base = re.sub(r"[^a-zA-Z0-9_-]", "-", name)[:56] if name else digest
    chosen, copies = base, 1
    while chosen in taken:
        copies += 1
        chosen = f"{base}-{copies}"
    taken.add(chosen)
    return chosen


def _normalised_outputs(outputs: list) -> list:
    """Merge streams, resolve carriage returns, drop bars and widget views, hide addresses.

    stdout and stderr reach a notebook in an order that changes from run to run; between two
    displays, stdout goes first.
    """
    from nbformat.v4 import new_output

    kept = [o for o in outputs if o.output_type in ("stream", "error") or _normalise_data(o)]
    result = []
    for streams, group in groupby(kept, key=lambda output: output.output_type == "stream"):
        if not streams:
            result.extend(group)
            continue
        texts = {"stdout": "", "stderr": ""}
        for output in group:
            texts[output.name] += output.text
        for name, text in texts.items():
            text = _final_text(text, drop_bars=name == "stderr")
            if text.strip():
                result.append(new_output("stream", name=name, text=text))
    return result


def _final_text(text: str, drop_bars: bool) -> str:
    """What a terminal shows in the end: after a carriage return a line starts anew."""
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    if drop_bars:
        lines = [line for line in lines if not PROGRESS_BAR.search(line)]
    return ADDRESS.sub("0x0", "\n".join(lines))


def _normalise_data(output: NotebookNode) -> bool:
    """Clean one display in place; False where nothing worth keeping is left."""
    data = output.data
    text = str(data.get("text/plain", ""))
    if data.pop(WIDGET_VIEW, None) is not None:
        others = set(data) - {"text/plain"}
        if not others and PROGRESS_BAR.search(text):
            return False
        if not others:
            data["text/plain"] = EXPLORER_PLACEHOLDER
        output.metadata.pop(WIDGET_VIEW, None)
    for mime in ("text/plain", "text/html"):
        if mime in data:
            data[mime] = ADDRESS.sub("0x0", str(data[mime]))
    return bool(data)
