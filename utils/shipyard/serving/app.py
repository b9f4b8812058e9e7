"""The HTTP application: which requests are answered, and how the others are refused."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shipyard.errors import ImageError
from shipyard.serving.model import Classifier, load_model
from shipyard.serving.pictures import MAX_PIXELS, MEDIA_TYPES

MAX_BYTES = 10 * 2**20  # a photo of a phone is 3 to 8 MB
PAGE = resources.files("shipyard.serving").joinpath("page.html").read_text(encoding="utf-8")

# For the description at /openapi.json: the body is read by hand, so FastAPI cannot know of it.
PICTURE = {
    "required": True,
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES},
}
REFUSALS = {
    400: {"description": "The body is no usable picture."},
    408: {"description": "The body took too long to arrive."},
    413: {"description": "The body is too large."},
    415: {"description": "The Content-Type is that of no picture."},
    422: {"description": "`top` is not from 1 to the number of classes."},
    500: {"description": "The server failed, for example at an answer that is not finite."},
    503: {"description": "Too many requests at once, or starting or stopping."},
}

routes = APIRouter()


@dataclass(frozen=True)
class Limits:
    """What the server takes at most, as `create_app` explains it."""

    places: int
    max_bytes: int
    max_pixels: int
    body_seconds: float


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
        max_pixels: a larger picture is refused (400) before it is decoded, and so is one with a
            side of more than `pictures.MAX_SIDE`.
        body_seconds: a body that takes longer to arrive is given up (408).

    Raises:
        ModelError: the file cannot be served.
    """
    classifier = load_model(path)
    app = FastAPI(
        title="Shipyard", version=classifier.version, docs_url=None, redoc_url=None,
        lifespan=_lifespan, exception_handlers=EXCEPTION_HANDLERS,
    )  # fmt: skip
    app.include_router(routes)
    app.state.classifier = classifier
    app.state.limits = Limits(workers + max_waiting, max_bytes, max_pixels, body_seconds)
    app.state.pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")
    app.state.ready = False
    app.state.busy = 0  # touched on the event loop only
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.ready = True
    yield
    app.state.ready = False
    app.state.pool.shutdown(wait=True)


# --- The requests ----------------------------------------------------------------------------


@routes.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    policy = "default-src 'self' 'unsafe-inline'; img-src blob: data:"
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy})


@routes.get("/healthz")
async def healthz() -> dict:
    return {"status": "alive"}


@routes.get("/readyz")
async def readyz(request: Request) -> dict:
    if not request.app.state.ready:
        raise Refused(503, "Starting or stopping.", "Try again soon.", {"Retry-After": "1"})
    return {"status": "ready"}


@routes.get("/model")
async def model(request: Request) -> dict:
    return request.app.state.classifier.describe()


@routes.post("/predict", responses=REFUSALS, openapi_extra={"requestBody": PICTURE})
async def predict(request: Request, top: int | None = None) -> dict:
    state: State = request.app.state
    classifier, limits = state.classifier, state.limits
    _require_media_type(request)
    most = len(classifier.classes)
    top = min(3, most) if top is None else top
    if not 1 <= top <= most:
        raise _wrong_top(f"top is {top}.", most)
    with _place(state):
        body = await _read_body(request, limits)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            state.pool, _answer, classifier, body, top, limits.max_pixels
        )


@contextmanager
def _place(state: State) -> Iterator[None]:
    """One of the server's places while the block runs, or a refusal at once."""
    places = state.limits.places
    if state.busy >= places:
        raise Refused(
            503,
            f"Overloaded: {places} requests are being answered or wait.",
            "The same request again in a second.",
            {"Retry-After": "1"},
        )
    state.busy += 1
    try:
        yield
    finally:
        state.busy -= 1


def _require_media_type(request: Request) -> None:
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sent not in MEDIA_TYPES:
        raise Refused(
            415,
            f"Content-Type is {sent or 'missing'}.",
            f"The bytes of a picture with Content-Type {' or '.join(MEDIA_TYPES)}.",
        )


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body, counted while it arrives: never more than the limit is held in memory."""
    too_large = Refused(
        413,
        f"The body is larger than {limits.max_bytes:,} bytes.",
        "A smaller picture: the model sees few pixels anyway.",
        {"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise Refused(
            408,
            f"The body did not arrive within {limits.body_seconds:g} seconds.",
            "The same request over a faster connection, or a smaller picture.",
            {"Connection": "close"},
        ) from error
    return bytes(body)


def _answer(classifier: Classifier, data: bytes, top: int, max_pixels: int) -> dict:
    began = time.perf_counter()
    with np.errstate(invalid="ignore"):
        (probabilities,) = classifier.predict(classifier.preprocess(data, max_pixels)[np.newaxis])
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(f"the model answered {probabilities}")  # a defect: 500
    best = np.argsort(-probabilities, kind="stable")[:top]
    ranking = [
        {"label": classifier.classes[i], "probability": float(probabilities[i])} for i in best
    ]
    return {**ranking[0], "top": ranking, "milliseconds": 1e3 * (time.perf_counter() - began)}


# --- The refusals ----------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818 (an answer, not a defect)
    """An answer other than 200: the status, what was wrong, and what to send instead."""

    def __init__(self, status: int, error: str, send: str, headers: dict | None = None):
        super().__init__(error)
        self.response = JSONResponse({"error": error, "send": send}, status, headers)


def _wrong_top(wrong: str, most: int) -> Refused:
    return Refused(422, wrong, f"A whole number from 1 to {most}: ?top=3")


async def _refused(request: Request, error: Refused) -> JSONResponse:
    return error.response


async def _bad_image(request: Request, error: ImageError) -> JSONResponse:
    return Refused(400, str(error), "The bytes of a PNG or JPEG file as the body.").response


async def _bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    wrong = "; ".join(f"{e['loc'][-1]} is {e.get('input')!r}" for e in error.errors())
    return _wrong_top(f"{wrong}.", len(request.app.state.classifier.classes)).response


async def _unknown(request: Request, error: HTTPException) -> JSONResponse:
    return Refused(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}.",
        "GET /, /healthz, /readyz or /model, or POST /predict.",
        error.headers,
    ).response


async def _client_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _defect(request: Request, error: Exception) -> JSONResponse:
    return Refused(500, "The server failed; its log tells why.", "Nothing else.").response


EXCEPTION_HANDLERS = {
    Refused: _refused,
    ImageError: _bad_image,
    RequestValidationError: _bad_parameter,
    HTTPException: _unknown,
    ClientDisconnect: _client_gone,
    Exception: _defect,
}
