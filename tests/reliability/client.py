"""A streaming client that counts every end of an answer; raw, so that it costs little."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.raw_http import Connection, post

_CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")
OUTCOME_SECONDS = 60.0  # in which every request of these tests has an outcome
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@dataclass
class Outcome:
    """What a client saw of one request; times are monotonic seconds."""

    path: str
    body: dict[str, Any]
    started: float
    status: int = 0  # 0: the connection ended, or was refused, before a whole response
    ended: float = 0.0
    first_text_at: float | None = None
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    num_done: int = 0  # `[DONE]` events
    retry_after: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """True for an answer with its one good end."""
        return self.status == 200 and self.finish_reason is not None and self.error is None

    @property
    def code(self) -> str | None:
        """The code of its error, if it has one."""
        return None if self.error is None else self.error["code"]

    @property
    def num_ends(self) -> int:
        """How often it ended; once is right."""
        return (self.finish_reason is not None) + (self.error is not None) + self.is_cut

    @property
    def is_cut(self) -> bool:
        """True if the connection ended before the response did."""
        return self.status == 0

    def read(self, raw: bytes) -> None:
        """Reads a response, whole or cut."""
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")[1:]
        self.headers = dict(line.lower().split(": ", 1) for line in lines)
        self.retry_after = self.headers.get("retry-after")
        if self.headers.get("transfer-encoding") == "chunked":
            rest = dechunked(rest)
        if "text/event-stream" in self.headers.get("content-type", ""):
            self._read_events(rest.decode())
        elif self.status:
            self._read_body(json.loads(rest))

    def _read_events(self, text: str) -> None:
        for line in text.split("\n"):
            if line == "data: [DONE]":
                self.num_done += 1
            elif line.startswith("data: "):
                assert self.num_done == 0, f"text after the end: {text}"
                self._read_body(json.loads(line.removeprefix("data: ")))

    def _read_body(self, body: dict[str, Any]) -> None:
        if "error" in body:
            assert self.error is None, "two errors"
            self.error = body["error"]
        for choice in body.get("choices", ()):
            assert self.finish_reason is None, "text after the finish reason"
            content = choice.get("delta") or choice.get("message") or choice
            self.text += content.get("text", content.get("content")) or ""
            self.finish_reason = choice["finish_reason"]


def dechunked(raw: bytes) -> bytes:
    """The body of a chunked response, also of one that is cut."""
    parts = []
    while (size := _CHUNK.match(raw)) is not None and int(size[1], 16):
        end = size.end() + int(size[1], 16)
        parts.append(raw[size.end() : end])
        raw = raw[end + 2 :]
    return b"".join(parts)


class TimedConnection(Connection):
    """Notes when the first text of an answer comes."""

    def __init__(self) -> None:
        super().__init__(keeps_data=True)
        self.first_text_at: float | None = None

    def data_received(self, data: bytes) -> None:
        """Takes data."""
        if self.first_text_at is None and (b'"content":"' in data or b'"text":"' in data):
            self.first_text_at = time.monotonic()
        super().data_received(data)


async def ask(port: int, path: str, body: dict[str, Any]) -> Outcome:
    """Asks on a connection of its own; whatever happens is in the outcome."""
    outcome = Outcome(path, body, time.monotonic())
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(TimedConnection, "127.0.0.1", port)
        async with asyncio.timeout(OUTCOME_SECONDS):
            reply = await connection.ask(post(path, body))
        outcome.status, outcome.first_text_at = reply.status, connection.first_text_at
        outcome.read(b"".join(reply.data))
        connection.close()
    except TimeoutError as error:
        raise AssertionError(f"no outcome: {outcome}") from error
    except OSError:  # nobody listens
        outcome.status = 0
    outcome.ended = time.monotonic()
    return outcome
