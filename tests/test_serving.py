"""serving: what the model file promises, what the server answers, and that it always stops."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from served_models import CLASSES, MEAN, STD, colour, encode, write_model
from shipyard import serving
from shipyard.serving import process
from shipyard.serving.connections import Connection


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    """Requests to this machine go nowhere else, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,::1")
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="module")
def classifier(path):
    return serving.load_model(path)


@pytest.fixture(scope="module")
def server(path):
    with serving.serve_in_background(path) as running:
        yield running


PNG = {"Content-Type": "image/png"}


def request_head(length):
    """The beginning of a request to predict, for tests that write to the socket themselves."""
    return (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def ask(app, *requests):
    """Answers of ``app``, called in this process, to (method, address, arguments) in parallel."""

    async def all_at_once():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.request(m, a, **kw) for m, a, kw in requests))

    return asyncio.run(all_at_once())


# --- without torch ---------------------------------------------------------------------------


def test_serving_loads_and_predicts_without_torch(path):
    code = (
        "import sys\n"
        "from shipyard import serving\n"
        "import numpy as np\n"
        f"classifier = serving.load_model({str(path)!r})\n"
        "classifier.predict(np.zeros((1, 3, 8, 8)))\n"
        f"serving.create_app({str(path)!r})\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- the model file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ("classes",)}, "no metadata for classes"),
        ({"drop": ("classes", "preprocessing")}, "classes and preprocessing"),
        ({"classes": "{"}, "cannot be read"),
        ({"classes": '"abc"'}, "not a list of names"),
        ({"classes": '["one", "two"]'}, "name 2 classes"),
        ({"preprocessing": "{}"}, "cannot be read"),
        ({"preprocessing": "[]"}, "cannot be read"),
        ({"size": (9, 9)}, "does not take one picture of 8 × 8"),
        ({"outputs": 4}, "name 3 classes"),
        ({"weight": np.nan}, "weights are not finite"),
        ({"weight": np.inf}, "weights are not finite"),
    ],
)
def test_a_model_file_that_breaks_its_promise_is_refused(tmp_path, changes, message):
    with pytest.raises(serving.ModelError, match=message):
        serving.load_model(write_model(tmp_path / "m.onnx", **changes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("std", [0.1, 0.0, 0.1], "std is 0"),
        ("std", [0.1, 0.1], "3 numbers"),
        ("mean", [0.1, float("nan"), 0.1], "not finite"),
        ("size", [0, 8], "not positive"),
        ("layout", "NHWC", "layout"),
    ],
)
def test_wrong_preprocessing_is_refused(tmp_path, path, key, value, message):
    entries = {e.key: e.value for e in onnx.load(path).metadata_props}
    how = {**json.loads(entries["preprocessing"]), key: value}
    with pytest.raises(serving.ModelError, match=message):
        serving.load_model(write_model(tmp_path / "m.onnx", preprocessing=json.dumps(how)))


def test_a_missing_file_and_a_file_that_is_no_model_are_named(tmp_path):
    with pytest.raises(serving.ModelError, match="No such file"):
        serving.load_model(tmp_path / "absent.onnx")
    for content in (b"", b"hello", bytes(1000)):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(content)
        with pytest.raises(serving.ModelError, match=r"broken\.onnx"):
            serving.load_model(broken)


# --- the mathematics -------------------------------------------------------------------------


FINITE = st.integers(-(2**100), 2**100).map(float) | st.floats(-100, 100)


@given(st.lists(FINITE, min_size=2, max_size=9).map(np.float32))
def test_softmax_is_a_distribution_for_any_finite_logits(logits):
    probabilities = serving.softmax(logits)
    assert (probabilities >= 0).all()
    assert probabilities.sum() == pytest.approx(1, rel=1e-5)
    assert probabilities[logits.argmax()] == probabilities.max()


def test_softmax_equals_the_formula_where_the_formula_can_be_computed():
    logits = np.array([[0.0, 1.0, 2.0]])
    np.testing.assert_allclose(serving.softmax(logits), np.exp(logits) / np.exp(logits).sum())


def test_preprocess_normalises_each_channel(classifier):
    x = classifier.preprocess(colour((255, 102, 0)))
    assert (x.shape, x.dtype) == ((3, 8, 8), np.float32)
    np.testing.assert_allclose(x[0], (1.0 - 0.5) / 0.25, rtol=1e-6)
    np.testing.assert_allclose(x[1], (0.4 - 0.4) / 0.2, atol=1e-6)
    np.testing.assert_allclose(x[2], (0.0 - 0.3) / 0.1, rtol=1e-6)


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel(classifier):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(
        classifier.preprocess(encode(pixels)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("width", "height"), [(120, 40), (40, 120), (33, 32), (5, 9)])
def test_the_shortest_side_is_resized_and_the_centre_is_kept(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))
    got = serving.resize_and_crop(image, 8, 8)
    ratio = 8 / min(width, height)
    whole = image.resize((round(width * ratio), round(height * ratio)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 8) // 2, (whole.height - 8) // 2
    expected = whole.crop((left, top, left + 8, top + 8))
    difference = np.abs(np.asarray(got, float) - np.asarray(expected, float))
    assert got.size == (8, 8)
    assert difference.mean() < 6, "up to half a pixel of shift is rounding"


def test_what_lies_outside_the_centre_is_not_seen(classifier):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 35:85, 1] = 255  # green in the middle, a little wider than the crop
    for data in (encode(pixels), encode(np.ascontiguousarray(pixels.transpose(1, 0, 2)))):
        np.testing.assert_allclose(classifier.preprocess(data)[1], (1 - 0.4) / 0.2, rtol=1e-4)


def test_a_picture_of_one_pixel_works(classifier):
    assert classifier.preprocess(colour((1, 2, 3), (1, 1))).shape == (3, 8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_obeyed(orientation):
    upright = Image.fromarray(
        np.kron(np.arange(4).reshape(2, 2) * 60, np.ones((16, 16))).astype("u1")
    )
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = serving.decode(encode(stored, "JPEG", quality=100, exif=exif))
    np.testing.assert_allclose(np.asarray(got)[..., 0], np.asarray(upright), atol=4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_becomes_rgb(mode):
    data = encode(Image.new(mode, (4, 4), 65535 if mode == "I;16" else None))
    assert serving.decode(data).mode == "RGB"


def test_grey_values_of_16_bits_keep_their_brightness():
    pixels = np.full((4, 4), 257 * 100, np.uint16)
    assert (np.asarray(serving.decode(encode(pixels))) == 100).all()


def test_transparent_pixels_show_white_and_not_the_colour_hidden_below():
    data = encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert (np.asarray(serving.decode(data)) == 255).all()


def test_a_cmyk_jpeg_becomes_rgb():
    assert serving.decode(encode(Image.new("CMYK", (8, 8)), "JPEG")).mode == "RGB"


def bomb(width, height):
    """A PNG of a few bytes whose header promises width × height pixels."""

    def chunk(kind, body):
        return (
            len(body).to_bytes(4, "big") + kind + body
            + zlib.crc32(kind + body).to_bytes(4, "big")
        )  # fmt: skip

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(7_000, 7_000), (60_000, 60_000), (1, 39_999_999)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    began = time.perf_counter()
    with pytest.raises(serving.ImageError, match=r"too large|pixels"):
        serving.decode(bomb(*size))
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(serving.ImageError, match="PNG or JPEG"):
        serving.decode(data)


def test_other_formats_are_refused_though_the_library_could_read_them():
    with pytest.raises(serving.ImageError, match="not a PNG or JPEG"):
        serving.decode(encode(Image.new("RGB", (4, 4)), "GIF"))


VALID = [encode(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), kind) for kind in ("PNG", "JPEG")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.integers(0, 2000), st.binary(max_size=6), st.booleans())
def test_damaged_bytes_give_a_picture_or_an_image_error_and_nothing_else(data, at, noise, cut):
    at %= len(data)
    damaged = data[:at] + noise + (b"" if cut else data[at + len(noise) :])
    try:
        mode = serving.decode(damaged).mode
    except serving.ImageError:
        return
    assert mode == "RGB"


def test_predict_does_not_depend_on_the_rest_of_the_batch(classifier):
    images = np.random.default_rng(0).normal(size=(7, 3, 8, 8))
    whole = classifier.predict(images)
    single = np.concatenate([classifier.predict(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(whole, single, rtol=1e-5)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)


def test_predict_names_a_wrong_shape(classifier):
    with pytest.raises(serving.ImageError, match=r"expected \(batch, 3, 8, 8\)"):
        classifier.predict(np.zeros((3, 8, 8)))


# --- the server ------------------------------------------------------------------------------


def test_predict_answers_with_label_probabilities_and_time(server):
    reply = httpx.post(f"{server.url}/predict?top=2", content=colour((0, 255, 0)), headers=PNG)
    assert reply.status_code == 200
    said = reply.json()
    assert said["label"] == "green"
    assert said["top"][0] == {"label": "green", "probability": said["probability"]}
    assert len(said["top"]) == 2
    assert said["top"][0]["probability"] >= said["top"][1]["probability"]
    assert 0 < said["milliseconds"] < 5000


def test_all_classes_add_up_to_one(server):
    reply = httpx.post(f"{server.url}/predict?top=3", content=colour((9, 99, 200)), headers=PNG)
    assert sum(e["probability"] for e in reply.json()["top"]) == pytest.approx(1, rel=1e-5)


def test_a_jpeg_and_a_content_type_with_parameters_are_accepted(server):
    data = encode(Image.new("RGB", (300, 200), (255, 0, 0)), "JPEG")
    headers = {"Content-Type": "Image/JPEG; name=a.jpg"}
    assert (
        httpx.post(f"{server.url}/predict", content=data, headers=headers).json()["label"] == "red"
    )


def test_health_readiness_and_model_are_told(server, path):
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    model = httpx.get(f"{server.url}/model").json()
    assert model["name"] == "colours"
    assert model["version"] == "7"
    assert model["classes"] == CLASSES
    assert (model["input"]["height"], model["input"]["width"]) == (8, 8)
    assert model["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_page_uses_nothing_from_elsewhere(server):
    reply = httpx.get(server.url)
    assert reply.headers["content-type"].startswith("text/html")
    assert "http:" not in reply.text
    assert "https:" not in reply.text
    assert "predict" in reply.text


@pytest.mark.parametrize(
    ("status", "address", "content", "headers", "said"),
    [
        (400, "/predict", b"Dear server, this is a letter.", PNG, "begin with b'Dear ser'"),
        (400, "/predict", b"", PNG, "empty"),
        (400, "/predict", bomb(50_000, 50_000), PNG, "too large"),
        (415, "/predict", b"hello", {"Content-Type": "text/plain"}, "text/plain"),
        (415, "/predict", b"hello", {}, "missing"),
        (422, "/predict?top=0", colour("red"), PNG, "top is 0"),
        (422, "/predict?top=4", colour("red"), PNG, "top is 4"),
        (422, "/predict?top=many", colour("red"), PNG, "top is 'many'"),
        (404, "/nowhere", b"", {}, "/nowhere"),
    ],
)
def test_each_refusal_says_what_was_wrong_and_what_to_send(
    server, status, address, content, headers, said
):
    reply = httpx.post(server.url + address, content=content, headers=headers)
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert reply.json()["send"]


def test_the_wrong_method_is_named(server):
    reply = httpx.get(f"{server.url}/predict")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    assert "GET /predict" in reply.json()["error"]


def test_a_large_body_is_refused_by_its_length_and_while_it_streams(server):
    size = serving.MAX_BYTES + 1
    sent = 0

    def post(content):
        # The server answers and closes while the client still sends: on a busy machine the
        # reset can overtake the answer (RFC 9112, 9.6), and the client must ask again.
        for _ in range(4):
            with contextlib.suppress(httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
                return httpx.post(f"{server.url}/predict", content=content(), headers=PNG)
        return httpx.post(f"{server.url}/predict", content=content(), headers=PNG)

    assert post(lambda: bytes(size)).status_code == 413

    def chunks():
        nonlocal sent
        sent = 0
        while sent < 20 * size:
            sent += 2**16
            yield bytes(2**16)

    streamed = post(chunks)
    assert streamed.status_code == 413
    assert "larger than" in streamed.json()["error"]
    assert sent < 10 * size, "the server read on after the limit"


def test_fifty_requests_at_once_get_the_same_answers_as_one_by_one(server):
    rng = np.random.default_rng(0)
    pictures = [encode(rng.integers(0, 256, (8 + i, 60 - i, 3), dtype=np.uint8)) for i in range(50)]

    def predict(data):
        reply = client.post("/predict?top=3", content=data, headers=PNG)
        assert reply.status_code == 200
        return reply.json()["top"]

    with httpx.Client(base_url=server.url, timeout=30) as client:
        one_by_one = [predict(data) for data in pictures]
        with ThreadPoolExecutor(50) as threads:
            at_once = list(threads.map(predict, pictures))
    for together, alone in zip(at_once, one_by_one, strict=True):
        assert [entry["label"] for entry in together] == [entry["label"] for entry in alone]
        probabilities = [entry["probability"] for entry in alone]
        assert [entry["probability"] for entry in together] == pytest.approx(probabilities, 1e-4)
    assert len({json.dumps(answer) for answer in at_once}) > 25, "the pictures are all alike"


def test_a_client_that_goes_away_takes_no_place_with_it(server):
    host, port = server.url.removeprefix("http://").split(":")
    head = request_head(999)
    for _ in range(100):  # more than there are places
        with socket.create_connection((host, port)) as connection:
            connection.sendall(head + b"half")
    reply = httpx.post(f"{server.url}/predict", content=colour("red"), headers=PNG)
    assert reply.status_code == 200


def test_a_refused_request_gives_its_place_back(path):
    app = serving.create_app(path, serving.Limits(requests=1))
    bad, good = (
        {"content": b"no picture", "headers": PNG},
        {"content": colour("red"), "headers": PNG},
    )
    for _ in range(3):
        (reply,) = ask(app, ("POST", "/predict", bad))
        assert reply.status_code == 400
    (reply,) = ask(app, ("POST", "/predict", good))
    assert reply.status_code == 200
    assert (app.state.house.requests, app.state.house.held_bytes) == (0, 0)


def blocking(app):
    """Make the app's decoders wait for the event that is returned."""
    release, real = threading.Event(), app.state.classifier

    class Slow(type(real)):
        def preprocess(self, *arguments):
            assert release.wait(20)
            return super().preprocess(*arguments)

    app.state.classifier = Slow(**vars(real))
    return release


@pytest.mark.parametrize(("requests", "said"), [(9, "being decoded or wait"), (2, "2 requests")])
def test_pictures_that_wait_to_be_decoded_are_limited_and_given_up_too(path, requests, said):
    limits = serving.Limits(
        largest_batch=1, longest_queue=1, decoders=1, requests=requests, answer_seconds=0.5
    )
    app = serving.create_app(path, limits)
    release = blocking(app)
    post = {"content": colour("red"), "headers": PNG}
    try:
        replies = ask(app, *[("POST", "/predict", post)] * 4)
    finally:
        release.set()
    assert sorted(reply.status_code for reply in replies) == [503, 503, 504, 504]
    assert all(said in r.json()["error"] for r in replies if r.status_code == 503)
    (reply,) = ask(app, ("POST", "/predict", post))
    assert reply.status_code == 200
    assert app.state.house.in_decoding == app.state.house.requests == 0


def test_a_body_that_does_not_arrive_is_given_up(path):
    app = serving.create_app(path, serving.Limits(body_seconds=0.05))

    async def slow():
        yield b"\x89PNG"
        await asyncio.sleep(5)
        yield b""

    (reply,) = ask(app, ("POST", "/predict", {"content": slow(), "headers": PNG}))
    assert reply.status_code == 408


def test_the_server_is_not_ready_before_it_started(path):
    (reply,) = ask(serving.create_app(path), ("GET", "/readyz", {}))
    assert reply.status_code == 503


def test_a_defect_is_answered_in_json_and_not_hidden(path):
    app = serving.create_app(path)
    app.state.classifier = None
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def call():
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/model")

    reply = asyncio.run(call())
    assert reply.status_code == 500
    assert "its log" in reply.json()["error"]


def test_an_answer_that_is_not_finite_is_a_defect_and_never_a_probability(tmp_path):
    app = serving.create_app(write_model(tmp_path / "m.onnx", weight=2e38))  # overflows at white
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def call():
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"content": colour("white"), "headers": PNG}
            return await client.post("/predict", **body)

    reply = asyncio.run(call())
    assert reply.status_code == 500
    assert "its log" in reply.json()["error"]


def test_the_description_tells_of_the_body_and_of_every_refusal(path):
    (reply,) = ask(serving.create_app(path), ("GET", "/openapi.json", {}))
    predict = reply.json()["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/png", "image/jpeg"}
    assert predict["requestBody"]["required"]
    assert set(predict["responses"]) >= {"200", "400", "408", "413", "415", "422", "503"}


# --- connections -----------------------------------------------------------------------------


@contextlib.contextmanager
def listening(path):
    """The server in a thread of this process, as `serving.serve` sets it up: its address."""
    server = process.Server(serving.create_app(path), "warning")
    with process._listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def test_connections_that_send_no_request_are_closed_and_others_served(path, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 1.0)
    with listening(path) as address, contextlib.ExitStack() as stack:
        half_open = [
            stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(200)
        ]
        for number, client in enumerate(half_open):
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"")
        body = colour("red")
        answer = httpx.post(f"http://127.0.0.1:{address[1]}/predict", content=body, headers=PNG)
        assert answer.json()["label"] == "red"
        assert all(client.recv(1) == b"" for client in half_open)


def test_a_slow_body_is_not_taken_for_a_missing_head(path, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 0.5)
    body = colour("green")
    with listening(path) as address:
        client = http.client.HTTPConnection(*address, timeout=30)
        for _ in range(2):  # the second head arrives on a connection that is kept
            client.putrequest("POST", "/predict")
            client.putheader("Content-Type", "image/png")
            client.putheader("Content-Length", str(len(body)))
            client.endheaders()
            time.sleep(1.0)
            client.send(body)
            answer = client.getresponse()
            assert (answer.status, json.load(answer)["label"]) == (200, "green")
        client.close()


# --- starting and stopping -------------------------------------------------------------------


def can_connect(host, port):
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_server_stops_after_an_error_in_the_block_and_within_a_running_loop(path):
    async def as_in_a_notebook():
        with serving.serve_in_background(path) as running:
            seen.append(running)
            assert httpx.get(f"{running.url}/healthz").status_code == 200
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(as_in_a_notebook())
    assert not is_running(seen[0].pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{seen[0].url}/healthz")


def test_a_request_under_way_is_answered_before_the_server_stops(path):
    data = colour("blue")
    with contextlib.ExitStack() as server:
        running = server.enter_context(serving.serve_in_background(path))
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, port)) as connection, ThreadPoolExecutor(1) as thread:
            connection.sendall(request_head(len(data)) + data[:-1])
            assert httpx.get(f"{running.url}/healthz").status_code == 200
            stopped = thread.submit(server.close)
            while can_connect(host, port):
                time.sleep(0.01)
            connection.sendall(data[-1:])
            assert b" 200 " in connection.makefile("rb").readline()
            stopped.result(timeout=20)
    assert not is_running(running.pid)


def test_a_port_that_is_taken_gives_a_clear_error(path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(serving.ServingError, match=rf"127\.0\.0\.1:{port}.*another port"),
            serving.serve_in_background(path, port),
        ):
            pytest.fail("the server started on a taken port")
        with pytest.raises(serving.ServingError, match="another port"):
            serving.serve(path, port=port)


def test_a_bad_model_is_named_and_the_block_never_runs(tmp_path):
    with (
        pytest.raises(serving.ModelError, match="absent"),
        serving.serve_in_background(tmp_path / "absent.onnx"),
    ):
        pytest.fail("the server started without a model")


def test_a_server_that_is_too_slow_to_start_is_ended_and_said_so(path):
    before = time.perf_counter()
    with (
        pytest.raises(serving.ServingError, match=r"not ready after 0\.01 seconds"),
        serving.serve_in_background(path, start_seconds=0.01),
    ):
        pytest.fail("nothing starts in 10 ms")
    assert time.perf_counter() - before < 30


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_the_server_ends_when_the_process_that_started_it_is_killed(path):
    code = (
        "import sys, time\n"
        "from shipyard import serving\n"
        f"with serving.serve_in_background({str(path)!r}) as running:\n"
        "    print(running.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("handler", ["default_int_handler", "SIG_IGN"])
def test_serve_prints_its_address_and_ctrl_c_stops_it(path, handler):
    """SIG_IGN: a job that a script starts with & begins with Ctrl-C ignored."""
    code = (
        f"import signal; signal.signal(signal.SIGINT, signal.{handler});"
        f"from shipyard import serving; serving.serve({str(path)!r}, port=0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        url = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        assert httpx.get(f"{url}/readyz", timeout=20).status_code == 200
        process.send_signal(signal.SIGINT)
        assert "Stopped." in process.communicate(timeout=20)[0]
    assert process.returncode == 0
