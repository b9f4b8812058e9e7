"""The same ONNX file in Chromium and in Python: the static page of docs/web."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from shipyard import data, models, onnx_export

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
pytestmark = [pytest.mark.browser, pytest.mark.slow]

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
NAMES = tuple(f"class {k}" for k in range(10))


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, a network with random weights, and onnxruntime-web from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which is not on the PATH")
    folder = tmp_path_factory.mktemp("web")
    (command,) = (
        line.split()[1:]
        for line in (root / "docs" / "web" / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("npm install")
    )
    command = [npm, *command, "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    command[command.index("results/web")] = str(folder)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm could not fetch onnxruntime-web: {done.stderr.strip()[-300:]}")

    shutil.copy(root / "docs" / "web" / "index.html", folder)
    torch.manual_seed(0)
    model = onnx_export.FromPixels(models.ResidualNet(width=8), data.MEAN, data.STD).eval()
    pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    with onnx_export.quiet_exporter():
        program = torch.onnx.export(
            model, (pixels,), input_names=["pixels"], output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
        )  # fmt: skip
    onnx_export.write(program.model_proto, folder / "model.onnx")
    (folder / "classes.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path, chromium: str) -> Iterator[playwright.Page]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with playwright.sync_playwright() as api:
            browser = api.chromium.launch(executable_path=chromium, args=QUIET)
            page = browser.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.wait_for_selector("#file:enabled")
            yield page
            browser.close()
    finally:
        server.shutdown()


def picture(seed: int) -> np.ndarray:
    """Noise in blocks of four, so that the channels and the sides differ."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    return small.repeat(4, 0).repeat(2, 1)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_gives_the_probabilities_of_python(page, folder):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for seed in range(5):
        (expected,) = session.run(None, {"pixels": picture(seed)[np.newaxis]})
        page.evaluate("document.getElementById('answer').replaceChildren()")
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png",
                                       "buffer": png(picture(seed))})  # fmt: skip
        page.wait_for_selector("#answer tr")
        rows = page.eval_on_selector_all(
            "#answer tr",
            "all => all.map(r => [r.querySelector('th').textContent, +r.dataset.probability])",
        )
        got = dict(rows)
        assert [p for _, p in rows] == sorted(got.values(), reverse=True)
        np.testing.assert_allclose([got[name] for name in NAMES], expected[0], rtol=0, atol=1e-6)
        assert page.inner_text("#error") == ""


def test_a_file_that_is_no_picture_is_named_and_the_next_one_works(page):
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    page.wait_for_function("document.getElementById('error').textContent !== ''")
    assert "could not be classified" in page.inner_text("#error")
    assert page.locator("#answer tr").count() == 0
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png",
                                   "buffer": png(picture(9))})  # fmt: skip
    page.wait_for_selector("#answer tr")
    assert page.inner_text("#error") == ""
