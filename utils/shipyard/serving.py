"""An ONNX image classifier behind HTTP: load, preprocess, predict, serve. No torch.

    PNG or JPEG bytes → decode → resize → normalise → ONNX Runtime → softmax → JSON

The model file says by itself how to use it: `shipyard.onnx_export` wrote the class names and
the preprocessing into its metadata.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image, ImageOps
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

MEDIA_TYPES = ("image/png", "image/jpeg")
MAX_BYTES = 10 * 2**20  # a photo of a phone is 3 to 8 MB
MAX_PIXELS = 40_000_000  # decoded: 120 MB


class ServingError(Exception):
    """A problem that the reader can mend; the message says what is wrong and what to do."""


class ModelError(ServingError):
    """The model file is missing, damaged, or does not say how to use it."""


class ImageError(ServingError):
    """The bytes are not a picture that can be used."""


# --- The model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputSpec:
    """How a picture becomes an input: ``(pixel * scale - mean) / std``, channels first."""

    height: int
    width: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) → float32 (3, height, width)."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        x = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(x.transpose(2, 0, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(z - max z) / Σ exp(z - max z) over the last axis: no overflow for any finite z."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """PNG or JPEG bytes → RGB picture, turned as its EXIF orientation says, on white.

    The size is read from the header and checked before any pixel is decoded, so that a small
    file that claims to be huge (a decompression bomb) costs nothing.

    Raises:
        ImageError: no PNG or JPEG, damaged, or more than ``max_pixels`` pixels.
    """
    if not data:
        raise ImageError("The body is empty; send the bytes of a PNG or JPEG file.")
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError as error:
        raise ImageError(f"The picture is too large: {error}") from error
    except Exception as error:  # hostile bytes can raise nearly anything in a decoder
        raise ImageError(
            f"The {len(data)} bytes are not a PNG or JPEG picture; they begin with {data[:8]!r}."
        ) from error
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"The picture has {image.width} × {image.height} pixels; "
            f"at most {max_pixels:,} are accepted. Make it smaller and send it again."
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits per pixel
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception as error:
        raise ImageError(f"The picture is damaged and cannot be decoded: {error}") from error


def resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part with the target's shape, resized to height × width.

    Like "resize the shortest side to fit, then crop the centre", in one step.
    """
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Classifier:
    """A loaded model. Thread-safe: several threads may predict at once."""

    name: str
    version: str
    exported_by: str
    classes: tuple[str, ...]
    input: InputSpec
    sha256: str
    bytes: int
    session: onnxruntime.InferenceSession = field(repr=False)

    def preprocess(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """PNG or JPEG bytes → float32 (3, height, width), as the model wants it.

        Raises:
            ImageError: the bytes are no usable picture.
        """
        image = resize_and_crop(decode(data, max_pixels), self.input.height, self.input.width)
        return self.input.normalise(np.asarray(image))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Preprocessed images (batch, 3, height, width) → logits (batch, classes)."""
        images = np.asarray(images, dtype=np.float32)
        height, width = self.input.height, self.input.width
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ImageError(
                f"images has shape {images.shape}; expected (batch, 3, {height}, {width})."
            )
        feed = self.session.get_inputs()[0].name
        return self.session.run(None, {feed: images})[0]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Preprocessed images (batch, 3, height, width) → probabilities (batch, classes)."""
        return softmax(self.logits(images))

    def describe(self) -> dict:
        """What a client may want to know, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "exported_by": self.exported_by,
            "classes": list(self.classes),
            "input": asdict(self.input),
            "sha256": self.sha256,
            "bytes": self.bytes,
        }


def _read_metadata(entries: dict[str, str], path: Path) -> tuple[tuple[str, ...], InputSpec]:
    missing = [key for key in ("classes", "preprocessing") if key not in entries]
    if missing:
        raise ModelError(
            f"{path} has no metadata for {' and '.join(missing)}, so nobody can know how to feed "
            "it. Write the file with shipyard.onnx_export.export, which puts them in."
        )
    try:
        classes = json.loads(entries["classes"])
        how = json.loads(entries["preprocessing"])
        height, width = map(int, how["size"])
        mean, std = tuple(map(float, how["mean"])), tuple(map(float, how["std"]))
        spec = InputSpec(height, width, float(how["scale"]), mean, std)
        problems = {
            "classes is not a list of names": not isinstance(classes, list)
            or not classes
            or not all(isinstance(name, str) for name in classes),
            "size is not positive": min(height, width) < 1,
            "mean and std need 3 numbers each": len(mean) != 3 or len(std) != 3,
            "a number is not finite, or std is 0": not np.isfinite([*mean, *std, spec.scale]).all()
            or 0 in std,
            "layout is not NCHW or color is not RGB": (how["layout"], how["color"])
            != ("NCHW", "RGB"),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: its metadata cannot be read: {error!r}. Export it again."
        ) from error
    for problem, found in problems.items():
        if found:
            raise ModelError(f"{path}: in its metadata {problem}. Export it again.")
    return tuple(classes), spec


def load_model(path: str | os.PathLike[str], threads: int = 1) -> Classifier:
    """Load an ONNX file that `shipyard.onnx_export.export` wrote, and try it once.

    Args:
        threads: CPU threads inside one prediction. 1 suits a server, which runs several
            predictions side by side; more can help a large model with a single user.

    Raises:
        ModelError: no such file, not ONNX, metadata missing or wrong, or the graph does not
            take the input and give the outputs that the metadata promise.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"Cannot read the model {path}: {error.strerror}. Give the path of an .onnx file."
        ) from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own error types have no public base class
        raise ModelError(
            f"{path} is not a model that ONNX Runtime can load ({len(content):,} bytes): {error}"
        ) from error

    entries = session.get_modelmeta().custom_metadata_map
    classes, spec = _read_metadata(entries, path)
    classifier = Classifier(
        name=entries.get("name", path.stem),
        version=entries.get("version", "unknown"),
        exported_by=f"shipyard {entries.get('shipyard_version', '(unknown version)')}",
        classes=classes,
        input=spec,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        session=session,
    )
    try:
        logits = classifier.logits(np.zeros((1, 3, spec.height, spec.width)))
    except Exception as error:
        raise ModelError(
            f"{path} does not take one picture of {spec.height} × {spec.width}, which its "
            f"metadata promise: {error}"
        ) from error
    if logits.shape != (1, len(classes)):
        raise ModelError(
            f"{path} gives outputs of shape {logits.shape} for one picture, but its metadata "
            f"name {len(classes)} classes. Export it again with the right class names."
        )
    return classifier


# --- The application -------------------------------------------------------------------------


class _Refused(Exception):  # noqa: N818 (an answer, not a defect)
    """An answer other than 200: the status, what was wrong, and what to send instead."""

    def __init__(self, status: int, error: str, send: str, headers: dict | None = None):
        super().__init__(error)
        self.response = JSONResponse({"error": error, "send": send}, status, headers)


def _media_type(request: Request) -> None:
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sent not in MEDIA_TYPES:
        raise _Refused(
            415,
            f"Content-Type is {sent or 'missing'}.",
            f"The bytes of a picture with Content-Type {' or '.join(MEDIA_TYPES)}.",
        )


async def _read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The body, counted while it arrives: never more than ``max_bytes`` are held in memory."""
    too_large = _Refused(
        413,
        f"The body is larger than {max_bytes:,} bytes.",
        "A smaller picture: the model sees few pixels anyway.",
        {"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise _Refused(
            408,
            f"The body did not arrive within {seconds:g} seconds.",
            "The same request over a faster connection, or a smaller picture.",
            {"Connection": "close"},
        ) from error
    return bytes(body)


def _answer(classifier: Classifier, data: bytes, top: int, max_pixels: int) -> dict:
    began = time.perf_counter()
    (probabilities,) = classifier.predict(classifier.preprocess(data, max_pixels)[np.newaxis])
    best = np.argsort(-probabilities, kind="stable")[:top]
    ranking = [
        {"label": classifier.classes[i], "probability": float(probabilities[i])} for i in best
    ]
    return {**ranking[0], "top": ranking, "milliseconds": 1e3 * (time.perf_counter() - began)}


def create_app(
    path: str | os.PathLike[str],
    *,
    workers: int = 2,
    max_waiting: int = 64,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    body_seconds: float = 20.0,
) -> FastAPI:
    """The HTTP application around the model at ``path``.

    ``GET /`` a page to try it · ``GET /healthz`` the process lives · ``GET /readyz`` it can
    answer · ``GET /model`` name, classes, input, version, hash · ``POST /predict?top=3`` the raw
    bytes of a picture → label and probabilities.

    Decoding and prediction run in ``workers`` threads, never on the event loop. At most
    ``max_waiting`` more requests wait; beyond that the answer is 503 with Retry-After, at once,
    which serves a client better than a queue that only grows. Every refusal is JSON with
    ``error`` (what was wrong) and ``send`` (what to send instead).

    Args:
        workers: predictions that run at the same time; each uses one CPU thread.
        max_waiting: requests that may wait for a worker, or for their own body to arrive.
        max_bytes: a larger body is refused (413) as soon as that is known.
        max_pixels: a larger picture is refused (400) before it is decoded.
        body_seconds: a body that takes longer to arrive is given up (408).

    Raises:
        ModelError: the file cannot be served.
    """
    classifier = load_model(path)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")
    places = workers + max_waiting

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = True
        yield
        app.state.ready = False
        pool.shutdown(wait=True)

    app = FastAPI(
        title="Shipyard", version=classifier.version, docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.classifier = classifier
    app.state.ready = False
    app.state.busy = 0  # touched on the event loop only

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        policy = "default-src 'self' 'unsafe-inline'; img-src blob: data:"
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy})

    @app.get("/healthz")
    async def healthz() -> dict:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        if not app.state.ready:
            raise _Refused(503, "Starting or stopping.", "Try again soon.", {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    @app.get("/model")
    async def model() -> dict:
        return app.state.classifier.describe()

    @app.post("/predict")
    async def predict(request: Request, top: int | None = None) -> dict:
        classifier = app.state.classifier
        _media_type(request)
        most = len(classifier.classes)
        top = min(3, most) if top is None else top
        if not 1 <= top <= most:
            raise _Refused(422, f"top is {top}.", f"A whole number from 1 to {most}: ?top=3")
        if app.state.busy >= places:
            raise _Refused(
                503,
                f"Overloaded: {places} requests are being answered or wait.",
                "The same request again in a second.",
                {"Retry-After": "1"},
            )
        app.state.busy += 1
        try:
            body = await _read_body(request, max_bytes, body_seconds)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, _answer, classifier, body, top, max_pixels)
        finally:
            app.state.busy -= 1

    @app.exception_handler(_Refused)
    async def refused(request: Request, error: _Refused) -> JSONResponse:
        return error.response

    @app.exception_handler(ImageError)
    async def bad_image(request: Request, error: ImageError) -> JSONResponse:
        return _Refused(400, str(error), "The bytes of a PNG or JPEG file as the body.").response

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        return _Refused(500, "The server failed; its log tells why.", "Nothing else.").response

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        most = len(app.state.classifier.classes)
        wrong = "; ".join(f"{e['loc'][-1]} is {e.get('input')!r}" for e in error.errors())
        return _Refused(422, f"{wrong}.", f"A whole number from 1 to {most}: ?top=3").response

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return _Refused(
            error.status_code,
            f"{request.method} {request.url.path}: {error.detail}.",
            "GET /, /healthz, /readyz or /model, or POST /predict.",
            error.headers,
        ).response

    return app


# --- The server ------------------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ServingError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Is another server running there? "
            "Choose another port; port 0 takes any free one."
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _server(app: FastAPI, log_level: str) -> uvicorn.Server:
    config = uvicorn.Config(app, log_level=log_level, lifespan="on", timeout_graceful_shutdown=10)
    return uvicorn.Server(config)


def serve(path: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the model at ``path`` until Ctrl-C or SIGTERM; requests under way are finished.

    Raises:
        ModelError: the file cannot be served.
        ServingError: the port is taken or the host is not one of this machine.
    """
    app = create_app(path)
    with _listen(host, port) as listener:
        print(f"Serving {path} at {_url(listener)} (Ctrl-C stops it)", flush=True)
        try:
            _server(app, "info").run(sockets=[listener])
        except KeyboardInterrupt:
            print("Stopped.")


@dataclass(frozen=True)
class RunningServer:
    """A server in a process of its own. ``url`` is where it listens, ``pid`` its process."""

    url: str
    pid: int

    def __str__(self) -> str:
        return self.url


def _serve_child(path: str, host: str, port: int) -> None:
    """The other end of `serve_in_background`: report the address, stop when stdin closes.

    The pipe closes in every case in which the parent stops, kill -9 included, so that no server
    is ever left behind.
    """
    try:
        app = create_app(path)
        listener = _listen(host, port)
    except ServingError as error:
        print(json.dumps({"error": str(error), "type": type(error).__name__}), flush=True)
        sys.exit(1)
    server = _server(app, "warning")

    def stop_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    print(json.dumps({"url": _url(listener)}), flush=True)
    server.run(sockets=[listener])


def _first_line(process: subprocess.Popen, seconds: float) -> str | None:
    """The first line that the process writes: "" when it ended before, None when too slow."""
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True)
    reader.start()
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None


def _wait_until_ready(url: str, seconds: float) -> None:
    # An address of this machine: never through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with opener.open(f"{url}/readyz", timeout=max(deadline - time.monotonic(), 0.1)):
                return
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def serve_in_background(
    path: str | os.PathLike[str],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    start_seconds: float = 60.0,
) -> Iterator[RunningServer]:
    """Serve the model at ``path`` from a process of its own while the block runs.

    Yields a `RunningServer` once the server answers. ``port=0`` takes a free port. The server
    stops at the end of the block, after an error in it too, and also when this process dies.
    Works where an event loop already runs, as in a notebook.

    Raises:
        ModelError: the file cannot be served.
        ServingError: the port is taken, or the server did not start; the message tells why.
    """
    detached = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        if sys.platform == "win32"
        else {"start_new_session": True}  # interrupting the notebook does not reach the server
    )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shipyard.serving", os.fspath(path), host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            **detached,
        )

        def why() -> str:
            log.seek(0)
            return log.read().decode(errors="replace").strip()[-2000:] or "it printed nothing"

        try:
            line = _first_line(process, start_seconds)
            if line is None:
                process.kill()
                raise ServingError(
                    f"The server was not ready after {start_seconds:g} seconds; its log: {why()}"
                )
            report = json.loads(line) if line.startswith("{") else {}
            if "error" in report:
                raise (ModelError if report["type"] == "ModelError" else ServingError)(
                    report["error"]
                )
            if "url" not in report:
                raise ServingError(f"The server stopped while starting; its log: {why()}")
            try:
                _wait_until_ready(report["url"], start_seconds)
            except OSError as error:
                raise ServingError(
                    f"The server does not answer: {error}; its log: {why()}"
                ) from error
            yield RunningServer(report["url"], process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


# --- The page --------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shipyard: what is in this picture?</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6b7b; --line: #c9d3dd;
          --paper: #ffffff; --back: #f3f6f9; --bar: #0072B2; --bad: #b3420a; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e8eef4; --soft: #9fb0c0; --line: #3a4856; --paper: #1b242d;
            --back: #11181f; --bar: #56B4E9; --bad: #ff9d6b; } }
  * { box-sizing: border-box; }
  body { margin: 0; padding: 2rem 1rem; background: var(--back); color: var(--ink);
         font: 16px/1.5 system-ui, sans-serif; }
  main { max-width: 34rem; margin: 0 auto; padding: 1.75rem; background: var(--paper);
         border: 1px solid var(--line); border-radius: 12px; }
  h1 { margin: 0 0 .25rem; font-size: 1.4rem; }
  p { margin: 0 0 1rem; color: var(--soft); }
  label { display: block; padding: 1.75rem 1rem; text-align: center; cursor: pointer;
          border: 2px dashed var(--line); border-radius: 10px; }
  label:hover, label.over, input:focus-visible + span { border-color: var(--bar); }
  label:focus-within { outline: 3px solid var(--bar); outline-offset: 2px; }
  input { position: absolute; opacity: 0; width: 1px; height: 1px; }
  #result { display: flex; flex-wrap: wrap; gap: 1.25rem; margin-top: 1.25rem; }
  [hidden] { display: none !important; }
  img { width: 9rem; height: 9rem; object-fit: contain; border-radius: 8px;
        background: var(--back); }
  #answer { flex: 1 1 14rem; min-width: 0; }
  .row { margin-bottom: .6rem; }
  .row div { display: flex; justify-content: space-between; }
  .track { height: .6rem; border-radius: 99px; background: var(--back); overflow: hidden; }
  .track i { display: block; height: 100%; background: var(--bar); }
  .error { color: var(--bad); overflow-wrap: anywhere; }
  footer { margin-top: 1.25rem; font-size: .85rem; color: var(--soft);
           overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
  <h1>What is in this picture?</h1>
  <p id="about">Choose a picture; the model names what it sees.</p>
  <label id="drop"><input id="file" type="file" accept="image/png,image/jpeg">
    <span>Drop a PNG or JPEG here, or <u>choose a file</u></span></label>
  <section id="result" aria-live="polite" hidden>
    <img id="picture" alt="The picture that you chose"><div id="answer"></div>
  </section>
  <footer id="model"></footer>
</main>
<script>
const at = id => document.getElementById(id);
const element = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
fetch("model").then(r => r.json()).then(m => {
  at("about").textContent = "The model knows: " + m.classes.join(", ") + ".";
  at("model").textContent = `${m.name} · version ${m.version} · ${m.input.width} × ` +
    `${m.input.height} pixels · sha256 ${m.sha256.slice(0, 12)}…`;
});
function bar(entry) {
  const row = element("div", undefined, "row"), head = element("div");
  const track = element("div", undefined, "track"), fill = element("i");
  const percent = (100 * entry.probability).toFixed(1) + " %";
  head.append(element("span", entry.label), element("span", percent));
  fill.style.width = percent.replace(" ", "");
  track.append(fill);
  row.append(head, track);
  return row;
}
let latest = 0;
async function ask(file) {
  if (!file) return;
  const mine = ++latest;
  at("result").hidden = false;
  URL.revokeObjectURL(at("picture").src);
  at("picture").src = URL.createObjectURL(file);
  at("answer").replaceChildren(element("span", "Asking the model…"));
  let parts;
  try {
    const reply = await fetch("predict?top=3", {
      method: "POST", body: file, headers: { "Content-Type": file.type || "unknown" } });
    const said = await reply.json();
    parts = reply.ok
      ? [...said.top.map(bar), element("small", said.milliseconds.toFixed(1) + " ms on the server")]
      : [element("div", said.error + " Send: " + said.send, "error")];
  } catch (problem) {
    parts = [element("div", "The server did not answer: " + problem.message, "error")];
  }
  if (mine === latest) at("answer").replaceChildren(...parts);
}
at("file").addEventListener("change", event => {
  ask(event.target.files[0]);
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover"])
  addEventListener(kind, event => { event.preventDefault(); at("drop").classList.add("over"); });
for (const kind of ["dragleave", "drop"])
  addEventListener(kind, event => { event.preventDefault(); at("drop").classList.remove("over"); });
at("picture").onload = at("picture").onerror = event =>
  at("picture").hidden = event.type === "error";
addEventListener("drop", event => ask(event.dataTransfer.files[0]));
</script>
</body>
</html>
"""


def _main() -> None:
    parser = argparse.ArgumentParser(description="Used by serve_in_background.")
    parser.add_argument("path")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    _serve_child(arguments.path, arguments.host, arguments.port)


if __name__ == "__main__":
    _main()
