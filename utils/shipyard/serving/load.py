"""Open-loop load: requests leave at their own times, whether or not earlier ones were answered.

A closed loop sends a request when the last one is answered. It so slows down with the server, and
never measures the queue that real clients, who do not know of each other, would build up. Here the
latency of a request counts from the time at which it was due, so that a generator or a server that
falls behind does not hide it ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

NOT_SENT = "not sent"  # nobody listened, or no connection was free


@dataclass(frozen=True)
class Outcome:
    """One request: when it was due, seconds until its answer, and the answer.

    ``status`` is 0 where no answer came; ``error`` then says why, and is `NOT_SENT` where the
    server cannot have seen the request.
    """

    due: float
    seconds: float
    status: int
    headers: bytes = b""
    body: bytes = b""
    error: str = ""


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of an HTTP/1.1 request, as a client that keeps its connection sends them."""
    parts = urlsplit(url)
    lines = {"Host": parts.netloc, "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def open_loop(
    url: str,
    request: Callable[[int], bytes],
    due: Sequence[float],
    *,
    timeout: float = 10.0,
    connections: int = 1000,
) -> list[Outcome]:
    """Send ``request(i)`` to the server at ``url`` at ``due[i]`` seconds from now, for every i.

    Connections are kept and used again; more are opened while all of them wait, up to
    ``connections``.
    """
    client = _Client(urlsplit(url), connections)
    began = time.perf_counter()
    tasks = []
    for number, moment in enumerate(due):
        pause = began + moment - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        send = client.send(request(number), began + moment, timeout, moment)
        tasks.append(asyncio.create_task(send))
    outcomes = await asyncio.gather(*tasks)
    client.close()
    return outcomes


class _Client:
    def __init__(self, address, most: int):
        self.address = address
        self.most = most
        self.idle: list[_Connection] = []
        self.open = 0

    async def send(self, request: bytes, began: float, timeout: float, due: float) -> Outcome:
        def outcome(status: int = 0, **more) -> Outcome:
            return Outcome(due, time.perf_counter() - began, status, **more)

        connection = None
        try:
            async with asyncio.timeout(timeout):
                connection = await self._connection()
                if connection is None:
                    return outcome(error=NOT_SENT)
                status, headers, body = await connection.ask(request)
        except ConnectionRefusedError:
            return outcome(error=NOT_SENT)
        except (OSError, TimeoutError) as error:
            return outcome(error=f"{type(error).__name__}: {error}")
        finally:
            if connection is not None:
                self._give_back(connection)
        return outcome(status, headers=headers, body=body)

    async def _connection(self) -> _Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if not connection.lost:
                return connection
        if self.open >= self.most:
            return None
        self.open += 1
        try:
            loop = asyncio.get_running_loop()
            address = self.address.hostname, self.address.port
            return (await loop.create_connection(lambda: _Connection(self), *address))[1]
        except BaseException:
            self.open -= 1
            raise

    def _give_back(self, connection: _Connection) -> None:
        if connection.waiting is not None:  # timed out: its answer may still come
            connection.transport.abort()
        elif not connection.lost:
            self.idle.append(connection)

    def close(self) -> None:
        for connection in self.idle:
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: _Client):
        self.client = client
        self.received = bytearray()
        self.waiting: asyncio.Future | None = None
        self.lost = False

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        self.waiting = asyncio.get_running_loop().create_future()
        self.received.clear()
        self.transport.write(request)
        return await self.waiting

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator or self.waiting is None:
            return
        lines = bytes(head).lower().split(b"\r\n")
        fields = dict(line.partition(b":")[::2] for line in lines[1:])
        length = int(fields.get(b"content-length", b"-1"))
        if length < 0:
            self._finish(error=ConnectionError("an answer without Content-Length"))
        elif len(rest) >= length:
            if fields.get(b"connection", b"").strip() == b"close":
                self.lost = True
                self.transport.close()
            self._finish((int(lines[0].split()[1]), bytes(head), bytes(rest[:length])))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.client.open -= 1
        self._finish(error=error or ConnectionError("closed without an answer"))

    def _finish(self, result: tuple | None = None, error: Exception | None = None) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(result)
        else:
            waiting.set_exception(error)
