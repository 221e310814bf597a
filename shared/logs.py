"""One logging set-up for every room: level, process name, message; for people or for machines."""

import json
import logging
import sys
from datetime import UTC, datetime


def set_up(room: str, level: str, log_format: str = "text") -> None:
    """Sends this process's log to standard error; third-party chatter starts at WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(room) if log_format == "json" else _text_formatter(room))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("frontend", "gpu_worker", "launcher", "scheduler", "shared", "tokenizer_proc"):
        logging.getLogger(ours).setLevel(level)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, room, logger, message, and a traceback if any."""

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "room": self._room,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _text_formatter(room: str) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s %(levelname)s {room} %(message)s", "%m-%d %H:%M:%S")
