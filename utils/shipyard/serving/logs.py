"""The log: one JSON object a line on stderr, one line a request."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime

LOGGER = logging.getLogger("shipyard.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; ``extra={"fields": {…}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def settings(level: str) -> dict:
    """What `logging.config.dictConfig` takes, for our log and for uvicorn's."""
    ours = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            LOGGER.name: ours,
            "uvicorn": {**ours, "level": "WARNING"},
        },
    }
