"""The two forms of a log line."""

import json
import logging
import sys
from datetime import datetime

from shared.logs import JsonFormatter


def record(text: str, *arguments: object, **extra: object) -> logging.LogRecord:
    """A warning of the worker's loop."""
    made = logging.LogRecord(
        "gpu_worker.worker", logging.WARNING, __file__, 1, text, arguments, None
    )
    vars(made).update(extra)
    return made


def test_a_record_is_one_object_on_one_line() -> None:
    text = JsonFormatter("worker-0").format(record('two\nlines and "%s"', "ü"))
    assert "\n" not in text
    line = json.loads(text)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "WARNING",
        "room": "worker-0",
        "logger": "gpu_worker.worker",
        "message": 'two\nlines and "ü"',
    }


def test_a_traceback_is_part_of_the_object() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        caught = sys.exc_info()
    text = JsonFormatter("worker-0").format(record("failed", exc_info=caught))
    assert "\n" not in text
    assert json.loads(text)["traceback"].endswith("ValueError: boom")
