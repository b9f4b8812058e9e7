"""The server as a process: in the foreground, or beside a notebook for as long as a block runs."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import IO

import uvicorn
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from shipyard.errors import ModelError, ServingError
from shipyard.serving import logs
from shipyard.serving.app import create_app
from shipyard.serving.connections import Connection
from shipyard.serving.limits import Limits

HEAD_STARTS = 0.2  # seconds in which a client that has connected sends its request


def serve(
    path: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: Limits | None = None,
    linger: float = 1.0,
) -> None:
    """Serve the model at ``path`` until Ctrl-C or SIGTERM, then answer what was accepted.

    After SIGTERM the server says that it is not ready, and takes requests for ``linger`` seconds
    more, so that a load balancer has the time to send them elsewhere. Then, as at once after
    Ctrl-C, it stops listening, answers all that is inside, and returns; a second Ctrl-C ends it
    without. Where the variable SHIPYARD_API_KEY is set, clients must send that key.

    Raises:
        ModelError: the file cannot be served.
        ServingError: the port is taken, the host is not one of this machine, or the API key is
            empty.
    """
    server = Server(_create_app(path, limits), "info", linger)
    with _listen(host, port) as listener:
        print(f"Serving {path} at {_url(listener)} (Ctrl-C stops it)", flush=True)
        _warn_if_open_to_all(listener)
        server.run(sockets=[listener])
        print("Stopped.")


class Server(uvicorn.Server):
    """uvicorn's server, which stops in the order of `serve` and then returns."""

    def __init__(self, app: FastAPI, log_level: str, linger: float = 0.0):
        limits = app.state.house.limits
        longest = math.ceil(limits.body_seconds + limits.answer_seconds) + 1
        super().__init__(
            uvicorn.Config(
                app, http=Connection, lifespan="on", access_log=False,
                log_config=logs.settings(log_level), timeout_graceful_shutdown=longest,
            )
        )  # fmt: skip
        self.app = app
        self.linger = linger

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if sig == signal.SIGINT:  # someone at the keyboard; no load balancer to wait for
            self.linger = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, but a signal that was obeyed is not raised again: the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {s: signal.signal(s, self.handle_exit) for s in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.stopping = True
        logs.LOGGER.info("stopping", extra={"fields": {"linger": self.linger}})
        until = time.monotonic() + self.linger
        while time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.05)
        await self._stop_listening(sockets or [])
        await asyncio.sleep(HEAD_STARTS)
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take the clients that the system has connected already, and refuse those that follow.

        The system connects clients before the program asks for them. Closing alone would reset
        those that wait there, some of which have sent their request.
        """
        twins = [listener.dup() for listener in sockets]
        for server in self.servers:
            server.close()  # the twin still listens
        clients = []
        for twin in twins:
            twin.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    clients.append(twin.accept()[0])
            twin.close()
        loop = asyncio.get_running_loop()
        for client in clients:
            client.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> Connection:
        return Connection(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


@dataclass(frozen=True)
class RunningServer:
    """A server in a process of its own. ``url`` is where it listens, ``pid`` its process."""

    url: str
    pid: int

    def __str__(self) -> str:
        return self.url


@contextmanager
def serve_in_background(
    path: str | os.PathLike[str],
    port: int = 0,
    *,
    host: str = "127.0.0.1",
    limits: Limits | None = None,
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
    arguments = {"path": os.fspath(path), "host": host, "port": port}
    if limits is not None:
        arguments["limits"] = asdict(limits)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shipyard.serving", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            **detached,
        )

        try:
            url = _address_when_ready(process, log, start_seconds)
            yield RunningServer(url, process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def serve_for_parent(path: str, host: str, port: int, limits: dict | None = None) -> None:
    """The other end of `serve_in_background`: report the address, stop when stdin closes.

    The pipe closes in every case in which the parent stops, kill -9 included, so that no server
    is ever left behind.
    """
    try:
        app = _create_app(path, Limits(**limits or {}))
        listener = _listen(host, port)
    except ServingError as error:
        print(json.dumps({"error": str(error), "type": type(error).__name__}), flush=True)
        sys.exit(1)
    server = Server(app, "warning")

    def stop_with_parent() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=stop_with_parent, daemon=True).start()
    print(json.dumps({"url": _url(listener)}), flush=True)
    server.run(sockets=[listener])


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


def _create_app(path: str | os.PathLike[str], limits: Limits | None) -> FastAPI:
    return create_app(path, limits, api_key=os.environ.get("SHIPYARD_API_KEY"))


def _warn_if_open_to_all(listener: socket.socket) -> None:
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback and "SHIPYARD_API_KEY" not in os.environ:
        print(f"Anyone who reaches {address} can use it: SHIPYARD_API_KEY is not set.", flush=True)


def _address_when_ready(process: subprocess.Popen, log: IO[bytes], seconds: float) -> str:
    """Where the server of ``process`` answers; an error says why it does not."""

    def why() -> str:
        log.seek(0)
        return log.read().decode(errors="replace").strip()[-2000:] or "it printed nothing"

    line = _first_line(process, seconds)
    if line is None:
        process.kill()
        raise ServingError(f"The server was not ready after {seconds:g} seconds; its log: {why()}")
    report = json.loads(line) if line.startswith("{") else {}
    if "error" in report:
        raise (ModelError if report["type"] == "ModelError" else ServingError)(report["error"])
    if "url" not in report:
        raise ServingError(f"The server stopped while starting; its log: {why()}")
    try:
        _wait_until_ready(report["url"], seconds)
    except OSError as error:
        raise ServingError(f"The server does not answer: {error}; its log: {why()}") from error
    return report["url"]


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
