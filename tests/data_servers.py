"""Servers on loopback that behave well, badly, or not at all, for the tests of downloads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does with each request; ``requests`` records their Range headers."""

    body: bytes
    ranges: bool = True  # honour the Range header
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    break_after: int | None = None  # close the connection after so many bytes of a body…
    breaks: int = 1  # …in so many of the first answers
    stall_after: int | None = None  # send so many bytes, then nothing more
    drip: float | None = None  # seconds between single bytes
    shift: int = 0  # begin a range so many bytes off
    requests: list[str | None] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""

    def do_GET(self) -> None:  # the name that http.server calls
        b = self.behaviour
        asked = self.headers.get("Range")
        b.requests.append(asked)
        if b.statuses:
            page = b"<html>an error page, long enough to be taken for data</html>" * 100
            self.send_response(b.statuses.pop(0))
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and b.ranges else 0
        if start and start >= len(b.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(b.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += b.shift if start else 0
        content = b.body[start:]
        self.send_response(206 if asked and b.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        if asked and b.ranges:
            last = len(b.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(b.body)}")
        self.end_headers()
        self._send(content)

    def _send(self, content: bytes) -> None:
        b = self.behaviour
        if b.break_after is not None and len(b.requests) <= b.breaks:
            self.wfile.write(content[: b.break_after])
            self.close_connection = True
        elif b.stall_after is not None:
            self.wfile.write(content[: b.stall_after])
            b.stopped.wait(20)
            self.close_connection = True
        elif b.drip is not None:
            for byte in content:
                if b.stopped.wait(b.drip):
                    return
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:  # the client has had enough
                    return
        else:
            self.wfile.write(content)


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Serve on a free loopback port; gives the address of a file."""
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    finally:
        behaviour.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """A loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
