"""Around every request, whatever it asks: its id, the API key, its line in the log."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shipyard.serving.logs import LOGGER
from shipyard.serving.refusals import Refused

OPEN = {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


class Envelope:
    """ASGI middleware: X-Request-ID in and out, the API key, one line in the log.

    ``api_key`` is asked of all but the page and the health checks, as ``Authorization: Bearer
    KEY`` or ``X-API-Key: KEY``; None asks nobody. While ``app.state.stopping`` holds, every answer
    asks the client to close its connection.
    """

    def __init__(self, app: ASGIApp, api_key: str | None):
        self.app = app
        self.api_key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if GOOD_ID.fullmatch(given) else os.urandom(8).hex()
        # `measured` is filled by those who answer, and stands in the log.
        state = scope.setdefault("state", {})
        measured = state["measured"] = {}
        status = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                marked["X-Request-ID"] = request_id
                if scope["app"].state.stopping:
                    marked["Connection"] = "close"
            await send(message)

        failure = None
        try:
            if self._is_allowed(scope["path"], headers):
                await self.app(scope, receive, send_marked)
            else:
                await _wrong_key().response(scope, receive, send_marked)
        except Exception as error:  # the client has its 500; the log gets the reason
            failure = error
            if status is None:
                raise
        finally:
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": _milliseconds(time.perf_counter() - began),
                "client": scope["client"][0] if scope.get("client") else None,
                **measured,
            }
            log = LOGGER.error if failure else LOGGER.info
            log("request", extra={"fields": fields}, exc_info=failure)

    def _is_allowed(self, path: str, headers: Headers) -> bool:
        if self.api_key is None or path in OPEN:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Header bytes arrive as Latin-1.
        return hmac.compare_digest(_digest(given.encode("latin-1")), self.api_key)


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that comparing tells nothing of the length either."""
    return hashlib.sha256(key).digest()


def _wrong_key() -> Refused:
    return Refused(
        401,
        "The API key is missing or wrong.",
        "The header Authorization: Bearer KEY, or X-API-Key: KEY.",
        {"WWW-Authenticate": "Bearer"},
    )


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 3)
