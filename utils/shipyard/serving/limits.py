"""How much the server takes at most, and the reading of a body within these limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from shipyard.serving.pictures import MAX_PIXELS
from shipyard.serving.refusals import Refused, overloaded

MAX_BYTES = 10 * 2**20  # a photo of a phone is 3 to 8 MB


@dataclass(frozen=True)
class Limits:
    """What the server takes at most.

    Args:
        largest_batch: rows that go through the model together, and rows of one request.
        longest_wait: seconds that a request waits for others to join its batch; at 0 only those
            form a batch that arrive while the model is busy.
        longest_queue: rows that may wait for the model, and pictures that may wait to be decoded;
            beyond them the answer is 503.
        answer_seconds: an answer that takes longer, from the end of the body, becomes 504.
        body_seconds: a body that takes longer to arrive is given up (408).
        max_bytes: a larger body is refused (413) as soon as that is known.
        max_pixels: a larger picture is refused (400) before it is decoded, and so is one with a
            side of more than `pictures.MAX_SIDE`.
        requests: requests in the house at once, those whose body still arrives among them.
        held_bytes: bytes of bodies in memory at once; beyond them the answer is 503.
        decoders: threads that decode pictures.
    """

    largest_batch: int = 32
    longest_wait: float = 0.0
    longest_queue: int = 64
    answer_seconds: float = 10.0
    body_seconds: float = 10.0
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    requests: int = 256
    held_bytes: int = 12 * MAX_BYTES
    decoders: int = 2


class House:
    """The requests that are inside, and the bytes that they hold. Touched on the loop only."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = 0
        self.held_bytes = 0
        self.in_decoding = 0

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """A decoder, or a place in the queue for one, or a refusal at once."""
        if self.in_decoding >= self.limits.decoders + self.limits.longest_queue:
            raise overloaded(f"{self.in_decoding} pictures are being decoded or wait for it")
        self.in_decoding += 1
        try:
            yield
        finally:
            self.in_decoding -= 1

    @contextmanager
    def place(self) -> Iterator[Body]:
        """Room for one request while the block runs, or a refusal at once."""
        if self.requests >= self.limits.requests:
            raise overloaded(f"{self.requests} requests are being answered or wait")
        self.requests += 1
        body = Body(self)
        try:
            yield body
        finally:
            self.requests -= 1
            self.held_bytes -= body.held


class Body:
    """The body of one request, counted while it arrives: memory never holds more than it may."""

    def __init__(self, house: House):
        self.house = house
        self.held = 0

    async def read(self, request: Request) -> bytes:
        limits = self.house.limits
        _refuse_compressed(request)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limits.max_bytes:
            raise _too_large(limits)
        chunks = []
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    self._hold(len(chunk))
                    chunks.append(chunk)
        except TimeoutError as error:
            raise Refused(
                408,
                f"The body did not arrive within {limits.body_seconds:g} seconds.",
                "The same request over a faster connection, or a smaller body.",
                {"Connection": "close"},
            ) from error
        return b"".join(chunks)

    def _hold(self, count: int) -> None:
        self.held += count
        self.house.held_bytes += count
        if self.held > self.house.limits.max_bytes:
            raise _too_large(self.house.limits)
        if self.house.held_bytes > self.house.limits.held_bytes:
            raise overloaded("the bodies of other requests fill the memory set aside for them")


def _refuse_compressed(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise Refused(415, f"Content-Encoding is {encoding}.", "The body as it is, not compressed.")


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413,
        f"The body is larger than {limits.max_bytes:,} bytes.",
        "A smaller picture, for the model sees few pixels anyway, or a smaller batch.",
        {"Connection": "close"},
    )
