"""Lessons, labs and explorers in a real JupyterLab, in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from shipyard import authoring
from shipyard.authoring.files import EXPLORER_PLACEHOLDER

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
pytestmark = [pytest.mark.browser]

TOKEN = "only-for-this-test"
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run",
]  # fmt: skip
SETTINGS = {
    # No pop-up that asks for news from the network, and every cell in the page, seen or not.
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PARTS = [f".shipyard-explorer-{part}" for part in ("picture", "readout", "error")]
KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
SLIDER = "xpath=ancestor::*[contains(@class,'widget-slider')]"
TRACK = "xpath=ancestor::*[contains(@class,'noUi-target')]"
MINUTE = 60_000  # milliseconds
# Widgets' messages may travel beside the kernel's other work, so its status says nothing of them.
FOLLOW_MESSAGES = f"""() => {{
    window.sentMessages = 0;
    window.unansweredMessages = new Set();
    {KERNEL}.anyMessage.connect((kernel, {{direction, msg}}) => {{
        if (direction === "send" && msg.header.msg_type === "comm_msg") {{
            window.sentMessages += 1;
            window.unansweredMessages.add(msg.header.msg_id);
        }}
        if (direction === "recv" && msg.content.execution_state === "idle")
            window.unansweredMessages.delete(msg.parent_header.msg_id);
    }});
}}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyter(command: Callable[[list[str]], list[str]], base: Path) -> Iterator[str]:
    """JupyterLab on loopback with a token and settings of its own: its address.

    ``command`` adds the options that it is given to a command line that starts JupyterLab.
    """
    for name, values in SETTINGS.items():
        path = base / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = (base / "log.txt").open("w")
    options = [
        "--no-browser", "--expose-app-in-browser", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
    ]  # fmt: skip
    server = subprocess.Popen(
        command(options),
        env={
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(base / "config"),
            "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(base / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(base / "workspaces"),
            "SHIPYARD_RESULTS": str(base / "results"),
            "PROFILE": "fast",
            "MAKEFLAGS": "",
        },
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_server(f"{address}/api/status?token={TOKEN}", server, base / "log.txt")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # Jupyter then ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab for many tests: its address and its empty working folder."""
    base = tmp_path_factory.mktemp("jupyter")
    (work := base / "work").mkdir()
    start = [sys.executable, "-m", "jupyterlab", "--allow-root", "--ip=127.0.0.1",
             f"--ServerApp.root_dir={work}"]  # fmt: skip
    with jupyter(lambda options: [*start, *options], base) as address:
        yield address, work


def wait_for_server(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()}"
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not answer:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[playwright.BrowserContext]:
    """One context for all tests, so that JupyterLab's own files are loaded once."""
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(executable_path=chromium, args=QUIET)
        yield running.new_context(viewport={"width": 1400, "height": 1000})
        running.close()


@dataclass
class Opened:
    """A notebook in the browser, and all that went wrong in its page."""

    page: playwright.Page
    errors: list[str] = field(default_factory=list)

    def run_all(self) -> None:
        """Run all cells, and wait until the last one is done."""
        passed = self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        assert passed, f"a cell failed:\n{self.cell_errors()}"

    def cell_errors(self) -> list[str]:
        """The errors that the notebook in the page holds."""
        notebook = self.page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON()")
        outputs = (o for cell in notebook["cells"] for o in cell.get("outputs", ()))
        return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]


@contextmanager
def opened(
    lab: tuple[str, Path], browser: playwright.BrowserContext, notebook: Path
) -> Iterator[Opened]:
    """Open a copy of ``notebook`` with a kernel that is ready."""
    address, work = lab
    shutil.copy(notebook, work / notebook.name)
    page = browser.new_page()
    page.set_default_timeout(3 * MINUTE)
    result = Opened(page)
    page.on("pageerror", lambda error: result.errors.append(str(error)))
    page.goto(f"{address}/doc/tree/{notebook.name}?reset&token={TOKEN}")
    page.wait_for_function(f"{KERNEL}?.status === 'idle'")
    try:
        yield result
    finally:
        page.evaluate("jupyterapp.shell.currentWidget?.sessionContext?.shutdown()")
        page.close()


def arrows(handle: playwright.Locator) -> tuple[str, str]:
    """The key that moves a slider by one step away from its end, and the key that moves it back."""
    low, now = (float(handle.get_attribute(f"aria-value{end}")) for end in ("min", "now"))
    return ("ArrowLeft", "ArrowRight") if now > low else ("ArrowRight", "ArrowLeft")


def test_a_slider_follows_the_keyboard(lab, browser, course):
    source = (
        "import ipywidgets\n"
        "slider = ipywidgets.IntSlider(value=5, max=10)\n"
        "label = ipywidgets.Label()\n"
        "slider.observe(lambda change: setattr(label, 'value', f'now {change.new}'), 'value')\n"
        "ipywidgets.VBox([slider, label]).add_class('tiny-explorer')"
    )
    with opened(lab, browser, course.lesson("01_tiny", source)) as notebook:
        notebook.run_all()
        root = notebook.page.locator(".tiny-explorer")
        root.locator(".noUi-handle").press("ArrowLeft")
        playwright.expect(root).to_contain_text("now 4")
        assert notebook.errors == []


def test_a_failing_cell_is_not_overlooked(lab, browser, course):
    path = course.lesson("02_fails", "1 / 0")
    with opened(lab, browser, path) as notebook, pytest.raises(AssertionError, match="division"):
        notebook.run_all()


def shows_explorer(cell: NotebookNode) -> bool:
    """Whether a cell shows an explorer: each leaves a line of text in the lesson's file."""
    displays = (output.get("data", {}) for output in cell.get("outputs", ()))
    return any(data.get("text/plain") == EXPLORER_PLACEHOLDER for data in displays)


def explorers_in(path: Path) -> int:
    return sum(map(shows_explorer, authoring.read(path).cells))


def wait_for_document(page: playwright.Page, path: str) -> None:
    """Until ``path`` is the document in front, with a kernel that is ready."""
    page.wait_for_function(f"window.jupyterapp?.shell?.currentWidget?.context?.path === '{path}'")
    page.wait_for_function(f"{KERNEL}?.status === 'idle'")


@pytest.mark.slow
def test_make_lab_leads_from_lesson_to_lesson_to_a_lab_that_names_a_mistake(
    browser, root, tmp_path
):
    checkout = tmp_path / "checkout"
    for folder in ("notebooks", "labs"):
        shutil.copytree(root / folder, checkout / folder)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, checkout)
    # -o: the environment of this very test is installed, whatever the time stamps say.
    make = ["make", "-C", str(checkout), "lab", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.lab"]
    with jupyter(lambda options: [*make, f"LAB_OPTIONS={' '.join(options)}"], tmp_path) as address:
        page = browser.new_page()
        page.set_default_timeout(3 * MINUTE)
        page.goto(f"{address}/?token={TOKEN}")
        wait_for_document(page, "notebooks/00_start_here.ipynb")
        page.get_by_role("link", name="Convolution and pooling").first.click()
        wait_for_document(page, "notebooks/02_convolution.ipynb")
        page.locator("a[href*='labs/02_convolution.ipynb']").filter(visible=True).first.click()
        wait_for_document(page, "labs/02_convolution.ipynb")

        lab = Opened(page)
        with pytest.raises(AssertionError, match="output_size is not written yet"):
            lab.run_all()
        page.evaluate(
            """source => jupyterapp.shell.currentWidget.content.model.sharedModel.cells
                       .find(cell => cell.source.includes('def output_size')).setSource(source)""",
            "def output_size(size, kernel_size, stride=1, padding=0, dilation=1):\n"
            "    return (size + 2 * padding - kernel_size) // stride + 1",
        )
        with pytest.raises(AssertionError, match=r"CheckFailed: .*dilation"):
            lab.run_all()


@pytest.mark.slow
@pytest.mark.parametrize("path", list(filter(explorers_in, LESSONS)), ids=lambda path: path.stem)
def test_every_slider_of_an_explorer_changes_what_is_shown(lab, browser, path, tmp_path):
    lesson = authoring.read(path)
    lesson.cells = cells_for(lesson, shows_explorer)
    authoring.write(lesson, tmp_path / path.name)
    with opened(lab, browser, tmp_path / path.name) as notebook:
        notebook.page.evaluate(FOLLOW_MESSAGES)
        notebook.run_all()
        explorers = notebook.page.locator(".shipyard-explorer")
        playwright.expect(explorers).to_have_count(explorers_in(path))
        for explorer in explorers.all():
            playwright.expect(explorer).to_be_visible()
            drive(explorer)
        assert notebook.errors == []


def cells_for(lesson: NotebookNode, wanted: Callable[[NotebookNode], bool]) -> list[NotebookNode]:
    """The cells that are ``wanted``, and those that bind a name last before it is used there."""
    cells, names = [], set()
    for cell in reversed([c for c in lesson.cells if c.cell_type == "code"]):
        table = symtable.symtable(TransformerManager().transform_cell(cell.source), "cell", "exec")
        bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        if wanted(cell) or bound & names:
            cells.insert(0, cell)
            names = (names | global_names(table)) - bound
    return cells


def global_names(table: symtable.SymbolTable) -> set[str]:
    """The names that a cell, or a function in it, looks up outside itself."""
    found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return found.union(*map(global_names, table.get_children()))


def drive(explorer: playwright.Locator) -> None:
    """Move each slider by one step and back; picture or read-out must follow each time.

    A change arrives in pieces, some of them after the kernel has called itself idle. So each key
    is followed until the kernel has answered all the messages that it caused (FOLLOW_MESSAGES).
    """
    page = explorer.page
    name = explorer.get_attribute("class")
    picture, readout, error = (explorer.locator(part).first for part in PARTS)

    def state() -> tuple[str, ...]:
        return picture.get_attribute("src"), readout.inner_text(), error.inner_text()

    def press(handle: playwright.Locator, key: str) -> tuple[str, ...]:
        before, sent = state(), page.evaluate("window.sentMessages")
        handle.press(key)
        page.wait_for_function(f"window.sentMessages > {sent}")
        settle(page)
        label = handle.locator(SLIDER).inner_text().split("\n")[0]
        assert state() != before, f"{name}: the slider {label!r} changes nothing on {key}"
        return state()

    handles = [
        handle
        for handle in explorer.locator(".noUi-handle").all()
        if handle.locator(TRACK).get_attribute("disabled") is None
    ]
    assert handles
    settle(page)
    seen = [state()]
    for handle in handles:
        handle.scroll_into_view_if_needed()
        there, back = arrows(handle)
        seen += [press(handle, there), press(handle, back)]
    pictures, texts, errors = (set(values) for values in zip(*seen, strict=True))
    assert len(pictures) > 1, f"{name}: the picture never changed"
    assert len(texts) > 1, f"{name}: the read-out never changed"
    assert seen[-1][2] == "", f"{name}: an error stays: {errors}"


def settle(page: playwright.Page) -> None:
    """Until the kernel has answered every message of a widget, and the page shows the answers."""
    for _ in range(2):  # a widget may hold a message back until its last one is answered
        page.wait_for_function("window.unansweredMessages.size === 0")
        page.wait_for_timeout(100)


def shown_figures(page: playwright.Page) -> list[dict]:
    """What the page shows of each picture: its alternative text, and its widths in pixels."""
    return page.eval_on_selector_all(
        ".jp-OutputArea-output img[src^=data]",
        """all => all.map(img => ({alt: img.alt, shown: img.clientWidth, stored: img.naturalWidth,
                                   asked: img.width}))""",
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_an_untrusted_lesson_shows_its_figures_before_any_cell_runs(lab, browser, path):
    with opened(lab, browser, path) as notebook:
        cells = authoring.read(path).cells
        displays = [o.get("data", {}) for cell in cells for o in cell.get("outputs", ())]
        stored = [data["text/plain"] for data in displays if "<img " in data.get("text/html", "")]
        shown = shown_figures(notebook.page)
        assert stored
        assert [figure["alt"] for figure in shown] == stored
        assert all(figure["stored"] > 0 and figure["shown"] > 0 for figure in shown), shown
        trusted = "jupyterapp.shell.currentWidget.content.model.cells.get(1).trusted"
        assert not notebook.page.evaluate(trusted)
