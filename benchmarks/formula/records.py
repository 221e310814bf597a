"""What the rooms of a formula server measure of themselves, from the inside.

All times are seconds of the monotonic clock, which all processes of a machine share: whoever reads
the records cuts out the time that it is interested in. They are written when the server ends.
"""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

LAG_INTERVAL_SECONDS = 0.01
_RecordT = TypeVar("_RecordT")


@dataclass
class WorkerRecord:
    """The steps, in order."""

    started: list[float] = field(default_factory=list)
    num_decodes: list[int] = field(default_factory=list)

    def note_step(self, started: float, num_decodes: int) -> None:
        """One step begins."""
        self.started.append(started)
        self.num_decodes.append(num_decodes)


@dataclass
class FrontendRecord:
    """The responses, and how late the event loop was; columns are parallel."""

    started: list[float] = field(default_factory=list)  # the application was given the request
    seconds: list[float] = field(default_factory=list)  # from then to the start of the response
    statuses: list[int] = field(default_factory=list)
    looked_at: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  # uvloop's timers come up to 1 ms late

    def measured(self, app: ASGIApp) -> ASGIApp:
        """The same application; its first request starts the watch over the loop."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if not self.looked_at:
                self._look(time.monotonic())
            started = time.monotonic()

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._note_response(started, message["status"])
                await send(message)

            await app(scope, receive, note)

        return call

    def _note_response(self, started: float, status: int) -> None:
        self.started.append(started)
        self.seconds.append(time.monotonic() - started)
        self.statuses.append(status)

    def _look(self, due: float) -> None:
        now = time.monotonic()
        self.looked_at.append(now)
        self.lags.append(now - due)
        due = now + LAG_INTERVAL_SECONDS
        asyncio.get_running_loop().call_later(LAG_INTERVAL_SECONDS, self._look, due)


def write_record(directory: str, record: WorkerRecord | FrontendRecord) -> None:
    """Writes a room's record; without a directory, nothing."""
    if directory:
        path = Path(directory) / f"{type(record).__name__}.json"
        path.write_bytes(msgspec.json.encode(record))


def read_record(directory: str, kind: type[_RecordT]) -> _RecordT:
    """What a room has written at its end."""
    return msgspec.json.decode((Path(directory) / f"{kind.__name__}.json").read_bytes(), type=kind)
