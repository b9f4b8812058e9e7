"""Answers other than 200: always JSON with ``error`` (what was wrong) and ``send`` (instead)."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shipyard.errors import ImageError, RequestError
from shipyard.serving.batching import QueueFull

RETRY = {"Retry-After": "1"}
CLIENT_GONE = 499  # as nginx writes it into its log; nobody is there to read it


class Refused(Exception):  # noqa: N818 (an answer, not a defect)
    """An answer other than 200: the status, what was wrong, and what to send instead."""

    def __init__(self, status: int, error: str, send: str, headers: dict | None = None):
        super().__init__(error)
        self.response = JSONResponse({"error": error, "send": send}, status, headers)


def overloaded(what: str) -> Refused:
    """503: refusing at once serves a client better than a queue that only grows."""
    return Refused(503, f"Overloaded: {what}.", "The same request again in a second.", RETRY)


def wrong_top(wrong: str, most: int) -> Refused:
    return Refused(422, wrong, f"A whole number from 1 to {most}: ?top=3")


async def _refused(request: Request, error: Refused) -> JSONResponse:
    return error.response


async def _bad_image(request: Request, error: ImageError) -> JSONResponse:
    return Refused(400, str(error), "The bytes of a PNG or JPEG file as the body.").response


async def _bad_tensors(request: Request, error: RequestError) -> JSONResponse:
    where = request.url.path.removesuffix("/infer")
    return Refused(400, str(error), f"What GET {where} describes.").response


async def _queue_full(request: Request, error: QueueFull) -> JSONResponse:
    return overloaded("the queue for the model is full").response


async def _bad_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    wrong = "; ".join(f"{e['loc'][-1]} is {e.get('input')!r}" for e in error.errors())
    return wrong_top(f"{wrong}.", len(request.app.state.classifier.classes)).response


async def _unknown(request: Request, error: HTTPException) -> JSONResponse:
    return Refused(
        error.status_code,
        f"{request.method} {request.url.path}: {error.detail}.",
        "GET /, /healthz, /readyz, /model or /v2, or POST /predict or /v2/models/NAME/infer.",
        error.headers,
    ).response


async def _client_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    return Refused(500, "The server failed; its log tells why.", "Nothing else.").response


HANDLERS = {
    Refused: _refused,
    ImageError: _bad_image,
    RequestError: _bad_tensors,
    QueueFull: _queue_full,
    RequestValidationError: _bad_parameter,
    HTTPException: _unknown,
    ClientDisconnect: _client_gone,
    Exception: _defect,
}

# --- For the description at /openapi.json ------------------------------------------------------

_SCHEMA = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "send": {"type": "string"}},
    "required": ["error", "send"],
}
_MEANINGS = {
    400: "The body cannot be used.",
    401: "The server wants an API key.",
    404: "No model of this name or version.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The Content-Type or Content-Encoding is not one that can be read.",
    422: "`top` is not from 1 to the number of classes.",
    500: "The server failed, for example at an answer that is not finite.",
    503: "Too many requests at once, or starting or stopping.",
    504: "The answer took too long.",
}


def documented(*statuses: int) -> dict[int, dict]:
    """What FastAPI's ``responses`` says of these statuses."""
    content = {"application/json": {"schema": _SCHEMA}}
    return {s: {"description": _MEANINGS[s], "content": content} for s in statuses}
