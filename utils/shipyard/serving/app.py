"""The HTTP application: which requests are answered, and how."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from shipyard.errors import ServingError
from shipyard.serving import protocol, refusals
from shipyard.serving.batching import MicroBatcher, Served
from shipyard.serving.envelope import Envelope
from shipyard.serving.limits import House, Limits
from shipyard.serving.logs import LOGGER
from shipyard.serving.model import Classifier, load_model, softmax
from shipyard.serving.pictures import MEDIA_TYPES
from shipyard.serving.refusals import Refused, documented

PAGE = resources.files("shipyard.serving").joinpath("page.html").read_text(encoding="utf-8")

# For the description at /openapi.json: bodies are read by hand, so FastAPI cannot know of them.
PICTURE = {
    "required": True,
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES},
}
TENSORS = {
    "required": True,
    "content": {
        "application/json": {"schema": protocol.REQUEST_SCHEMA},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
TENSORS_BACK = {
    200: {
        "description": "The model's output, as JSON or with the numbers as raw bytes behind it.",
        "content": {**TENSORS["content"], "application/json": {"schema": {"type": "object"}}},
    }
}


class Application(FastAPI):
    """FastAPI inside an `Envelope`, which so sees the answers of FastAPI's own handlers too."""

    def __init__(self, api_key: str | None, **settings):
        super().__init__(**settings)
        self.envelope = Envelope(super().__call__, api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self.envelope(scope, receive, send)

    def openapi(self) -> dict:
        """FastAPI's description, with the one name and version that the model here has."""
        if self.openapi_schema is None:
            for path, operations in super().openapi()["paths"].items():
                for operation in operations.values():
                    if "{name}" in path:
                        operation["parameters"] = self._names_in(path)
        return self.openapi_schema

    def _names_in(self, path: str) -> list[dict]:
        known = {
            "name": self.state.classifier.name,
            "version": self.state.classifier.version,
        }
        return [
            {
                "name": part,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "enum": [value]},
            }
            for part, value in known.items()
            if f"{{{part}}}" in path
        ]


def create_app(
    path: str | os.PathLike[str], limits: Limits | None = None, *, api_key: str | None = None
) -> FastAPI:
    """The HTTP application around the model at ``path``.

    ``GET /`` a page to try it · ``GET /healthz`` the process lives · ``GET /readyz`` it takes
    requests · ``GET /model`` name, classes, input, version, hash · ``POST /predict?top=3`` the raw
    bytes of a picture → label and probabilities · ``/v2/…`` the Open Inference Protocol.

    Requests that arrive together go through the model together (`MicroBatcher`). Every refusal is
    JSON with ``error`` (what was wrong) and ``send`` (what to send instead).

    Args:
        limits: what the server takes at most; see `Limits`.
        api_key: asked of every request but those to the page and the health checks.

    Raises:
        ModelError: the file cannot be served.
        ServingError: the API key is empty, or the limits do not go together.
    """
    limits = limits or Limits()
    if api_key is not None and not api_key.strip():
        raise ServingError("The API key is empty. Set SHIPYARD_API_KEY to one, or unset it.")
    classifier = load_model(path)
    app = Application(
        api_key, title="Shipyard", version=classifier.version, docs_url=None, redoc_url=None,
        lifespan=_lifespan, exception_handlers=refusals.HANDLERS,
    )  # fmt: skip
    app.include_router(plain_routes)  # first: they are asked most often
    app.include_router(routes)
    app.state.classifier = classifier
    app.state.tensors = protocol.metadata(classifier)
    app.state.batcher = MicroBatcher(
        # Looked up for each batch, so that another one can take its place.
        lambda rows: app.state.classifier.logits(rows),
        largest_batch=limits.largest_batch if classifier.can_batch else 1,
        longest_wait=limits.longest_wait,
        longest_queue=limits.longest_queue,
    )
    app.state.house = House(limits)
    app.state.decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
    app.state.ready = False
    app.state.stopping = False
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    if not state.classifier.can_batch:
        LOGGER.warning("the model's answers depend on the batch, so each row runs alone")
    state.ready = True
    yield
    state.ready = False
    state.decoders.shutdown(wait=True)
    state.batcher.close()
    LOGGER.info(
        "stopped", extra={"fields": {"batches": dict(sorted(state.batcher.batches.items()))}}
    )


class PlainRoute(APIRoute):
    """A route whose function takes the request and returns the response: no model in between."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        return self.endpoint


routes = APIRouter(responses=documented(500))
plain_routes = APIRouter(route_class=PlainRoute, responses=documented(500))


# --- Health and pictures -----------------------------------------------------------------------


@routes.get("/", response_class=HTMLResponse)
async def page() -> HTMLResponse:
    policy = "default-src 'self' 'unsafe-inline'; img-src blob: data:"
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": policy})


@routes.get("/healthz")
async def healthz() -> dict:
    return {"status": "alive"}


@routes.get("/readyz", responses=documented(503))
async def readyz(request: Request) -> dict:
    _require_ready(request)
    return {"status": "ready"}


@routes.get("/model", responses=documented(401))
async def model(request: Request) -> dict:
    return request.app.state.classifier.describe()


@routes.post(
    "/predict",
    responses=documented(400, 401, 408, 413, 415, 422, 503, 504),
    openapi_extra={"requestBody": PICTURE},
)
async def predict(request: Request, top: int | None = None) -> JSONResponse:
    state = request.app.state
    classifier, limits = state.classifier, state.house.limits
    _require_media_type(request, MEDIA_TYPES)
    most = len(classifier.classes)
    top = min(3, most) if top is None else top
    if not 1 <= top <= most:
        raise refusals.wrong_top(f"top is {top}.", most)
    with state.house.place() as body:
        data = await body.read(request)
        began = time.perf_counter()
        async with _deadline(limits):
            with state.house.decoding():
                image = await asyncio.get_running_loop().run_in_executor(
                    state.decoders, classifier.preprocess, data, limits.max_pixels
                )
            served = await _through_the_model(request, image[np.newaxis])
    timing = _timing(request, served)
    milliseconds = 1e3 * (time.perf_counter() - began)
    answer = {**_ranking(classifier, served.rows[0], top), "milliseconds": milliseconds, **timing}
    return JSONResponse(answer, headers=_server_timing(timing))


def _ranking(classifier: Classifier, logits: np.ndarray, top: int) -> dict:
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:top]
    ranking = [
        {"label": classifier.classes[i], "probability": float(probabilities[i])} for i in best
    ]
    return {**ranking[0], "top": ranking}


# --- The Open Inference Protocol ---------------------------------------------------------------


@routes.get("/v2")
async def server_metadata(request: Request) -> dict:
    return {**protocol.SERVER, "version": request.app.version}


@routes.get("/v2/health/live")
async def live() -> dict:
    return {"live": True}


@routes.get("/v2/health/ready", responses=documented(503))
async def ready(request: Request) -> dict:
    _require_ready(request)
    return {"ready": True}


@routes.get("/v2/models/{name}", responses=documented(401, 404))
@routes.get("/v2/models/{name}/versions/{version}", responses=documented(401, 404))
async def model_metadata(request: Request, name: str, version: str | None = None) -> dict:
    _require_model(request)
    return request.app.state.tensors


@routes.get("/v2/models/{name}/ready", responses=documented(401, 404, 503))
@routes.get("/v2/models/{name}/versions/{version}/ready", responses=documented(401, 404, 503))
async def model_ready(request: Request, name: str, version: str | None = None) -> dict:
    _require_model(request)
    _require_ready(request)
    return {"name": request.app.state.classifier.name, "ready": True}


INFER = {
    "responses": {**TENSORS_BACK, **documented(400, 401, 404, 408, 413, 415, 503, 504)},
    "openapi_extra": {"requestBody": TENSORS},
}


@plain_routes.post("/v2/models/{name}/infer", **INFER)
@plain_routes.post("/v2/models/{name}/versions/{version}/infer", **INFER)
async def infer(request: Request) -> Response:
    state = request.app.state
    _require_model(request)
    with state.house.place() as body:
        data = await body.read(request)
        asked = protocol.read_request(
            data, request.headers.get(protocol.HEADER_LENGTH), state.tensors,
            state.batcher.largest_batch,
        )  # fmt: skip
        async with _deadline(state.house.limits):
            served = await _through_the_model(request, asked.rows)
    content, headers = protocol.write_response(served.rows, asked, state.tensors)
    return Response(content, headers=headers | _server_timing(_timing(request, served)))


# --- What they share ---------------------------------------------------------------------------


@asynccontextmanager
async def _deadline(limits: Limits) -> AsyncIterator[None]:
    """An answer in time, or 504; what waits for it leaves its queue."""
    seconds = limits.answer_seconds
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Refused(
            504, f"No answer within {seconds:g} seconds.", "The request later, or a smaller batch."
        ) from error


async def _through_the_model(request: Request, rows: np.ndarray) -> Served:
    """The rows (n, 3, height, width) after the model, or a refusal.

    A client that hangs up takes its rows out of the queue.
    """
    future = request.app.state.batcher.put(rows)

    def leave(watcher: asyncio.Task) -> None:
        if not future.done():
            future.set_exception(ClientDisconnect())

    watcher = asyncio.create_task(_until_client_is_gone(request))
    watcher.add_done_callback(leave)
    try:
        served = await future
    finally:
        watcher.cancel()
    if not np.isfinite(served.rows).all():
        raise FloatingPointError(f"the model answered {served.rows}")  # a defect: 500
    return served


async def _until_client_is_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timing(request: Request, served: Served) -> dict:
    """What the server measured, for the answer and for the log."""
    measured = request.state.measured
    measured.update(
        queue_ms=round(1e3 * served.queue_seconds, 3),
        model_ms=round(1e3 * served.model_seconds, 3),
        batch=served.batch,
    )
    return measured


def _server_timing(timing: dict) -> dict[str, str]:
    return {
        "Server-Timing": f"queue;dur={timing['queue_ms']}, model;dur={timing['model_ms']}, "
        f'batch;desc="{timing["batch"]}"'
    }


def _require_ready(request: Request) -> None:
    state = request.app.state
    if state.stopping or not state.ready:
        raise Refused(503, "Starting or stopping.", "Try again soon.", refusals.RETRY)


def _require_model(request: Request) -> None:
    asked, classifier = request.path_params, request.app.state.classifier
    version = asked.get("version", classifier.version)
    if (asked["name"], version) != (classifier.name, classifier.version):
        raise HTTPException(
            404, f"the model here is {classifier.name!r}, version {classifier.version!r}"
        )


def _require_media_type(request: Request, accepted: tuple[str, ...]) -> None:
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sent not in accepted:
        raise Refused(
            415,
            f"Content-Type is {sent or 'missing'}.",
            f"The bytes of a picture with Content-Type {' or '.join(accepted)}.",
        )
