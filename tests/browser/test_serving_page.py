"""The server's page in headless Chromium: a picture goes in, probabilities and times come out."""

from __future__ import annotations

import pytest

from served_models import colour, write_model
from shipyard import serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `test`")
pytestmark = [pytest.mark.browser]
DROP = """([name, kind, bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], name, { type: kind }));
    for (const event of ["dragenter", "dragover", "drop"])
        document.getElementById("drop").dispatchEvent(
            new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    assert page.problems == []
    page.close()


def drop(page, data, kind="image/png"):
    page.evaluate(DROP, ["a picture", kind, list(data)])


def test_a_dropped_picture_is_named_and_the_measurements_are_shown(page, path):
    with serving.serve_in_background(path) as server:
        page.goto(server.url)
        playwright.expect(page.locator("#about")).to_have_text("The model knows: red, green, blue.")
        with page.expect_response("**/predict?top=3") as reply:
            drop(page, colour((0, 255, 0)))
        said = reply.value.json()
        bars = page.locator("#answer .row")
        playwright.expect(bars).to_have_count(3)
        percent = f"{100 * said['probability']:.1f} %"
        playwright.expect(bars.first).to_have_text(f"green{percent}")
        table = page.get_by_role("table", name="What the server measured")
        shown = [row.split("\t")[-1].strip() for row in table.inner_text().splitlines()]
        assert shown[:3] == [f"{said['queue_ms']:.2f} ms", "1", f"{said['model_ms']:.2f} ms"]
        assert page.locator("#picture").evaluate("image => image.naturalWidth") == 8

        page.locator("#file").set_input_files(
            {"name": "b.png", "mimeType": "image/png", "buffer": colour((0, 0, 255))}
        )
        playwright.expect(bars.first).to_contain_text("blue")

        drop(page, b"Dear server", "text/plain")
        playwright.expect(page.locator("#answer")).to_contain_text("Content-Type is text/plain.")


def test_a_server_with_a_key_asks_for_it(page, path, monkeypatch):
    monkeypatch.setenv("SHIPYARD_API_KEY", "sesame")
    with serving.serve_in_background(path) as server:
        page.goto(server.url)
        playwright.expect(page.locator("#key")).to_be_visible()
        page.get_by_label("API key").fill("sesame")
        page.get_by_role("button", name="Use it").click()
        playwright.expect(page.locator("#key")).to_be_hidden()
        drop(page, colour((255, 0, 0)))
        playwright.expect(page.locator("#answer .row").first).to_contain_text("red")
