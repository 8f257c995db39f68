"""The server's log: one JSON object a line, whoever wrote it: we, BentoML, uvicorn, asyncio, Python."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class Fields:
    """The message of a log record that is data. As text it is JSON, for handlers that know nothing of it."""

    def __init__(self, **fields: str | float | None) -> None:
        self.fields = {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        return json.dumps(self.fields)


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", ...}`.

    Then the fields of a `Fields`, or a `message`, and an `exception` where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; JSON leaves no line end in it."""
        line: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, Fields):
            line |= record.msg.fields
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def utc(seconds: float) -> str:
    """Seconds since 1970 as text, to a millisecond: 2026-01-31T12:00:00.000Z."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
