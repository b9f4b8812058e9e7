"""The setup cell: what it says, and that it installs Shipyard where Shipyard is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import threading
import tomllib
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement

from shipyard import authoring
from shipyard.authoring import setup_cell
from shipyard.errors import AuthoringError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLACEHOLDER = "https://github.com/YOUR_ORGANISATION/shipyard"


def code_cells(path: Path) -> list:
    return [cell for cell in authoring.read(path).cells if cell.cell_type == "code"]


def test_without_shipyard_and_without_an_address_the_cell_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("SHIPYARD_SOURCE", raising=False)
    source = TransformerManager().transform_cell(setup_cell.setup_source("", PLACEHOLDER))
    with pytest.raises(ModuleNotFoundError, match="%env SHIPYARD_SOURCE="):
        exec(source, {})


def test_normalising_writes_the_cell_with_the_address_of_pyproject(course):
    address = "https://github.com/example/course"
    (course.root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
    cells = [new_code_cell("import os", metadata={"tags": ["setup"]}), new_code_cell("import os")]
    notebook = new_notebook(cells=cells, metadata={"shipyard": {"extra": "serve"}})
    path = course.write(course.root / "notebooks" / "01_new.ipynb", notebook)
    assert authoring.normalise_file(path)
    assert not authoring.normalise_file(path)
    setup, other = code_cells(path)
    assert setup.source == setup_cell.setup_source("serve", address)
    assert f'"{address}"' in setup.source
    assert "shipyard[serve] @" in setup.source
    assert other.source == "import os"


def test_an_unknown_extra_is_refused():
    with pytest.raises(AuthoringError, match="notebooks know '', 'serve'"):
        setup_cell.setup_source("server", PLACEHOLDER)


def what_pip_installs(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """The installed distributions that these requirements stand for, and all that they need."""
    found: dict[str, metadata.Distribution] = {}
    waiting, seen = [Requirement(text) for text in requirements], set()
    while waiting:
        needed = waiting.pop()
        if str(needed) in seen:
            continue
        seen.add(str(needed))
        found[needed.name] = metadata.distribution(needed.name)
        for one in map(Requirement, found[needed.name].requires or ()):
            extras = [{"extra": extra} for extra in ("", *needed.extras)]
            if one.marker is None or any(map(one.marker.evaluate, extras)):
                waiting.append(one)
    return found


def new_machine(folder: Path, requirements: list[str]) -> Path:
    """A Python that can import these packages, and neither Shipyard nor any other."""
    (libraries := folder / "libraries").mkdir(parents=True)
    for package in what_pip_installs(requirements).values():
        tops = {file.parts[0] for file in package.files or () if ".." not in file.parts}
        for top in tops - {"__pycache__"}:
            if not (libraries / top).exists():
                (libraries / top).symlink_to(package.locate_file(top))
    venv.create(folder / "machine", symlinks=True)
    (site,) = folder.glob("machine/lib/python*/site-packages")
    (site / "libraries.pth").write_text(str(libraries))
    return folder / "machine" / "bin" / "python"


def copy_of_the_checkout(folder: Path) -> Path:
    """What an installation needs, so that no test builds inside the checkout."""
    shutil.copytree(ROOT / "utils", folder / "utils", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """The address of ``folder`` as a Git repository, served on loopback."""
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in ("init -q", "add .", "commit -qm Copy", "update-server-info"):
        subprocess.run([*git, *command.split()], check=True)
    handler = partial(SimpleHTTPRequestHandler, directory=folder / ".git")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="builds an environment out of symbolic links")
@pytest.mark.parametrize(("extra", "address_of"), [("", nullcontext), ("serve", git_server)])
def test_on_a_new_machine_the_cell_installs_all_that_its_notebooks_import(
    tmp_path, extra, address_of
):
    """From a folder, and from Git; with nothing there but what pip would install with Shipyard."""
    notebooks = [
        path
        for path in sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("labs/*.ipynb")])
        if authoring.read(path).metadata["shipyard"].get("extra", "") == extra
    ]
    cells = [code_cells(path) for path in notebooks]
    (setup,) = {first.source for first, *_ in cells}
    program = tmp_path / "first_cells.ipy"
    imports = [second.source for _, second, *_ in cells]
    end = "import shipyard\nprint(shipyard.__file__)"
    program.write_text("\n".join([setup, *imports, end]), encoding="utf-8")

    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, ())]
    python = new_machine(tmp_path, [*requirements, "pip", "setuptools"])
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PIP_NO_INDEX": "1",  # all is there, so pip replaces nothing and needs no network
        "PIP_NO_BUILD_ISOLATION": "0",  # 0 is how pip spells "no isolation" in the environment
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    command = [python, "-m", "IPython", "--colors=NoColor", program]
    with address_of(checkout) as address:
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, "SHIPYARD_SOURCE": str(address)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    installed = done.stdout.splitlines()[-1]
    assert installed.startswith(str(tmp_path / "machine")), done.stdout + done.stderr
