"""One connection to the server: a request's head must arrive soon, or the connection is closed."""

from __future__ import annotations

import asyncio

try:  # about a quarter of h11's processor time; it comes with the extra `serve`
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
except ImportError:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

HEAD_SECONDS = 10.0


class Connection(Protocol):
    """HTTP/1.1 in which the request line and the headers have ``head_seconds`` to arrive.

    uvicorn itself waits for them without limit, so that whoever opens connections and sends
    nothing, or a byte now and then, holds a file descriptor of the server for each of them. The
    time for a body is `create_app`'s ``body_seconds``.
    """

    head_seconds = HEAD_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_a_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._deadline is None:  # the head of a further request has begun
            self._wait_for_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_a_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self._is_answering():
            self.transport.close()
