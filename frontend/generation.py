"""One request as its HTTP handler holds it: wait for acceptance, then for what has arrived.

Leaving the `with` block, however it happens, gives the request back: no handler can leak one.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from frontend.events import Accepted, Event, Failed


class Generation:
    """The consumer's end of one request."""

    def __init__(self, request_id: str, release: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._release = release
        self._pending: list[Event] = []
        self._arrived = asyncio.Event()

    def push(self, event: Event) -> None:
        """The ledger's sink. Several pushes before the consumer runs are one wake-up."""
        self._pending.append(event)
        self._arrived.set()

    async def accepted(self) -> int:
        """Waits for the tokenizer; returns the prompt's tokens, or raises RequestError."""
        await self._arrived.wait()
        match self._pending[0]:
            case Accepted(prompt_tokens):
                del self._pending[0]
                return prompt_tokens
            case Failed(error):
                raise error
            case event:
                raise RuntimeError(f"{self.request_id}: {event} before it was accepted")

    async def next_events(self) -> list[Event]:
        """Waits until there is something, and returns all of it, in order."""
        if not self._pending:
            self._arrived.clear()
            await self._arrived.wait()
        events, self._pending = self._pending, []
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release(self.request_id)
