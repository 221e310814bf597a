"""When a response last moved: keeps silent streams alive and ends those that are stuck.

One timer a response, which looks every few seconds; a token of a stream costs two readings of the
clock, not two timers.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from litestar.types import Send

from frontend.direct_body import DirectBody

KEEP_ALIVE_SECONDS = 15.0  # proxies close connections that are silent for 30 to 60 seconds


class WriteStalledError(Exception):
    """The client has not taken a byte for as long as it may."""


class Pulse:
    """Sends for one response, and calls `on_silence` when nothing was sent for a while.

    Used as a context of the task that writes; a write that is stuck for `write_seconds`, or half as
    long again, ends the context with WriteStalledError.
    """

    def __init__(
        self,
        send: Send,
        direct_body: DirectBody,
        *,
        write_seconds: float,
        on_silence: Callable[[], None],
    ) -> None:
        self._send = send
        self._write_seconds = write_seconds
        self._direct_body = direct_body
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()
        self._is_writing = False
        self._has_stalled = False

    async def send(self, message: Any) -> None:
        """Sends an ASGI message."""
        self._is_writing = True
        self._moved_at = self._loop.time()
        await self._send(message)
        self._is_writing = False
        self._moved_at = self._loop.time()

    @property
    def takes_more(self) -> bool:
        """True when more of the body may be written without waiting."""
        return not self._is_writing and self._direct_body.takes_more

    def write(self, data: bytes) -> None:
        """Sends a part of the body, after its start and before its end, while it `takes_more`."""
        self._direct_body.write(data)
        self._moved_at = self._loop.time()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._look_again()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._has_stalled and isinstance(error, asyncio.CancelledError):
            raise WriteStalledError from error

    def _look_again(self) -> None:
        interval = min(self._write_seconds, KEEP_ALIVE_SECONDS) / 2
        self._timer = self._loop.call_later(interval, self._look)

    def _look(self) -> None:
        still = self._loop.time() - self._moved_at
        if self._is_writing and still >= self._write_seconds:
            self._has_stalled = True
            assert self._task is not None, "entered by a task"
            self._task.cancel()
            return
        if not self._is_writing and still >= KEEP_ALIVE_SECONDS:
            self._on_silence()
        self._look_again()
