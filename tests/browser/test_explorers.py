"""The explorers in a real JupyterLab, in headless Chromium, driven by the keyboard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shipyard import authoring

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
EXPLORERS = {
    "01_convolution_and_pooling": (
        "shipyard-kernel-explorer",
        "shipyard-pooling-explorer",
        "shipyard-output-size-explorer",
    ),
    "02_gated_recurrent_cells": ("shipyard-lstm-step-explorer", "shipyard-sentence-explorer"),
    "03_attention": ("shipyard-attention-explorer",),
    "04_optimizers": ("shipyard-optimizer-explorer",),
    "06_training_faster": ("shipyard-roofline-explorer",),
    "07_distributed_training": ("shipyard-scaling-explorer",),
}
SLIDER = "xpath=ancestor::*[contains(@class,'widget-slider')]"
TRACK = "xpath=ancestor::*[contains(@class,'noUi-target')]"
MINUTE = 60_000  # milliseconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """JupyterLab on loopback with a token: its address and its empty working folder."""
    base = tmp_path_factory.mktemp("jupyter")
    work = base / "work"
    work.mkdir()
    for name, values in SETTINGS.items():
        path = base / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = (base / "log.txt").open("w")
    server = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser",
            "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}",
        ],
        env={
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(base / "config"),
            "JUPYTER_RUNTIME_DIR": str(base / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(base / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(base / "workspaces"),
            "SHIPYARD_RESULTS": str(base / "results"),
            "PROFILE": "fast",
        },
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_server(f"{address}/api/status?token={TOKEN}", server, base / "log.txt")
        yield address, work
    finally:
        server.send_signal(signal.SIGTERM)  # Jupyter then ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


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
def browser(chromium: str) -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(executable_path=chromium, args=QUIET)
        yield running
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
def opened(lab: tuple[str, Path], browser: playwright.Browser, notebook: Path) -> Iterator[Opened]:
    """Open a copy of ``notebook`` with a kernel that is ready."""
    address, work = lab
    shutil.copy(notebook, work / notebook.name)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(3 * MINUTE)
    result = Opened(page)
    page.on("pageerror", lambda error: result.errors.append(str(error)))
    page.goto(f"{address}/doc/tree/{notebook.name}?reset&token={TOKEN}")
    session = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session"
    page.wait_for_function(f"{session}?.kernel?.status === 'idle'")
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


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORERS)
def test_every_slider_of_an_explorer_changes_what_is_shown(lab, browser, root, name):
    path = root / "notebooks" / f"{name}.ipynb"
    with opened(lab, browser, path) as notebook:
        notebook.run_all()
        for css_class in EXPLORERS[name]:
            explorer = notebook.page.locator(f".{css_class}").first
            playwright.expect(explorer).to_be_visible()
            drive(explorer, css_class)
        assert_figures_have_alt_texts(notebook.page, path)
        assert notebook.errors == []


def drive(explorer: playwright.Locator, css_class: str) -> None:
    """Move each slider by one step and back; the picture and the read-out must both follow."""
    parts = [explorer.locator(f".{css_class}-{part}").first for part in ("readout", "error")]
    picture = explorer.locator(f".{css_class}-picture").first

    def state() -> tuple[str, ...]:
        return picture.get_attribute("src"), *(part.inner_text() for part in parts)

    def press(handle: playwright.Locator, key: str) -> tuple[str, ...]:
        before, label = state(), handle.locator(SLIDER).inner_text().split("\n")[0]
        handle.press(key)
        for _ in range(600):
            if state() != before:
                return state()
            explorer.page.wait_for_timeout(50)
        raise AssertionError(f"{css_class}: the slider {label!r} changes nothing on {key}")

    handles = [
        handle
        for handle in explorer.locator(".noUi-handle").all()
        if handle.locator(TRACK).get_attribute("disabled") is None
    ]
    assert handles
    seen = [state()]
    for handle in handles:
        handle.scroll_into_view_if_needed()
        there, back = arrows(handle)
        seen += [press(handle, there), press(handle, back)]
    pictures, texts, errors = (set(values) for values in zip(*seen, strict=True))
    assert len(pictures) > 1, f"{css_class}: the picture never changed"
    assert len(texts) > 1, f"{css_class}: the read-out never changed"
    assert seen[-1][2] == "", f"{css_class}: an error stays: {errors}"


def assert_figures_have_alt_texts(page: playwright.Page, path: Path) -> None:
    """The alt texts that the notebook file holds are those of the page."""
    shown = page.eval_on_selector_all(
        ".jp-RenderedImage img, .jp-RenderedHTMLCommon img", "all => all.map(img => img.alt)"
    )
    figures = [
        output
        for cell in authoring.read(path).cells
        for output in cell.get("outputs", ())
        if any(mime.startswith("image/") for mime in output.get("data", ()))
    ]
    assert len(shown) >= len(figures)
    assert shown
    assert all(shown), f"{shown.count('')} of {len(shown)} figures have no alt text in the page"
