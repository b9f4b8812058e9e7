"""The first code cell of every lesson and lab: it installs Shipyard where it is missing.

The cell is the same everywhere but for the extra that a notebook needs, which stands in
``metadata.shipyard.extra``. The imports of the notebook follow in a cell of their own.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from shipyard.errors import AuthoringError

if TYPE_CHECKING:
    from nbformat import NotebookNode

TAG = "setup"
PLACEHOLDER = "YOUR_ORGANISATION"  # in the address of a project that has none yet
# What is imported first from each extra that a notebook may need: it shows whether it is there.
PROBES = {"": ("shipyard",), "serve": ("shipyard", "onnxruntime")}
TEMPLATE = """\
import os
from importlib.util import find_spec
from pathlib import Path

found = [getattr(find_spec(name), "origin", None) for name in {probes}]
if not all(found):  # a new machine, such as Colab's (a mere folder of this name has no origin)
    source = os.environ.get("SHIPYARD_SOURCE", "{address}")
    if "/{placeholder}/" in source:
        raise ModuleNotFoundError(
            "Shipyard is not installed here, and no address is known. Write the Git address or the "
            "folder of your copy into a cell above, %env SHIPYARD_SOURCE=…, and run both cells."
        )
    url = Path(source).resolve().as_uri() if Path(source).is_dir() else f"git+{{source}}"
    %pip install --quiet "shipyard{extra} @ {{url}}\""""


def setup_source(extra: str, address: str) -> str:
    """The source of the cell.

    Args:
        extra: the extra of pyproject.toml that the notebook needs, or "".
        address: Git address of the project, which ``SHIPYARD_SOURCE`` overrides.

    Raises:
        AuthoringError: there is no such extra for notebooks.
    """
    if extra not in PROBES:
        known = ", ".join(repr(name) for name in PROBES)
        raise AuthoringError(f"metadata.shipyard.extra is {extra!r}; notebooks know {known}.")
    probes = str(PROBES[extra]).replace("'", '"')
    return TEMPLATE.format(
        probes=probes,
        address=address,
        placeholder=PLACEHOLDER,
        extra=f"[{extra}]" if extra else "",
    )


def repository_address(root: Path) -> str:
    """``[project.urls] Repository`` of pyproject.toml: the one place where the address stands."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["urls"]["Repository"]


def is_setup(cell: NotebookNode) -> bool:
    """Whether ``cell`` is the setup cell of its notebook."""
    return TAG in cell.metadata.get("tags", ())


def write_setup(notebook: NotebookNode, path: Path) -> None:
    """Write the setup cell anew; a notebook without one stays as it is.

    Args:
        path: the notebook's file, in a folder of the checkout.
    """
    for cell in filter(is_setup, notebook.cells):
        extra = notebook.metadata.get("shipyard", {}).get("extra", "")
        cell.source = setup_source(extra, repository_address(path.resolve().parents[1]))
