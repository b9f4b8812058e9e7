"""Messages between two processes: JSON, with its length before it."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

LIMIT = 8 << 20  # bytes of one message; an honest answer has thousands


def send(stream: BinaryIO, message: dict) -> None:
    """Write one message."""
    data = json.dumps(message).encode("utf-8")
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message; None where the stream ends, or holds what is no message."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > LIMIT:
        return None
    data = stream.read(size)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
