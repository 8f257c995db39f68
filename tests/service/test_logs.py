"""The log of a server: every line is JSON, whoever wrote it."""

from __future__ import annotations

import io
import json
import logging

from service.middleware.request_log import write_line
from service.telemetry.logs import Fields, JsonLines


def written(record: logging.LogRecord) -> dict[str, object]:
    text = JsonLines().format(record)
    assert "\n" not in text
    line: dict[str, object] = json.loads(text)
    return line


def record(message: object, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("bentoml", logging.WARNING, __file__, 1, message, arguments, info)
    made.created = 0.5
    return made


def test_a_message_of_anybody() -> None:
    assert written(record("one %s\nline", 'a"b')) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "bentoml",
        "message": 'one a"b\nline',
    }


def test_fields_are_keys_and_none_is_left_out() -> None:
    line = written(record(Fields(status=404, key=None, path="/é")))
    assert line["status"] == 404
    assert line["path"] == "/é"
    assert line.keys() & {"key", "message"} == set()


def test_a_failure_keeps_its_traceback_in_the_same_line() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        line = written(record("failed", error=error))
    assert "RuntimeError: broken" in str(line["exception"])


def test_a_line_about_a_request_is_json_under_any_handler() -> None:
    """As under `bentoml serve`, whose log is not ours."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("ducat_serve.access")
    log.addHandler(handler)
    try:
        write_line(status=400, reason="bad")
    finally:
        log.removeHandler(handler)
    assert json.loads(stream.getvalue()) == {"status": 400, "reason": "bad"}
