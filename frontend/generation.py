"""One HTTP request as its handler holds it: wait for acceptance, then for what has arrived.

Leaving the `with` block, however it happens, gives the request back: no handler can leak one.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from frontend.events import (
    Accepted,
    Event,
    Failed,
    Finished,
    PromptRead,
    TextAdded,
    TextFound,
    TokensFound,
    VectorsFound,
)


class Generation:
    """The consumer's end of one request, which may have several prompts.

    Choices are numbered through all prompts, and there is one outcome: when all prompts are
    answered, or when the first of them fails.
    """

    def __init__(
        self,
        request_id: str,
        release: Callable[[], None],
        *,
        num_prompts: int = 1,
        num_choices: int = 1,
    ) -> None:
        self.request_id = request_id
        self._release = release
        self._num_prompts = num_prompts
        self._num_choices = num_choices
        self._accepted: dict[int, Accepted] = {}  # by prompt
        self._finished: list[Finished] = []
        self._failed: Failed | None = None
        self._pending: list[Event] = []
        self._changed = asyncio.Event()
        self._is_nudged = False
        self._take: Callable[[list[Event]], bool] | None = None
        self._is_offer_due = False

    def push(self, event: Event, prompt: int = 0) -> None:
        """The ledger's sink. Several pushes before the consumer runs are one wake-up."""
        if self._failed is not None:
            return
        match event:
            case TextAdded():  # first, as there is one for every token
                first = prompt * self._num_choices
                if first:
                    event = msgspec.structs.replace(event, choice=first + event.choice)
                self._pending.append(event)
            case Accepted():
                self._accepted[prompt] = event
            case PromptRead():
                self._pending.append(dataclasses.replace(event, prompt=prompt))
            case Finished():
                self._finish(event)
            case Failed():
                self._failed = event
                self._pending.append(event)
            case _:
                self._pending.append(event)
        self._tell()

    async def accepted(self) -> list[Accepted]:
        """Waits for the tokenizer; returns what it said of each prompt, or raises RequestError."""
        while len(self._accepted) < self._num_prompts:
            if self._failed is not None:
                raise self._failed.error
            self._changed.clear()
            await self._changed.wait()
        return [self._accepted[prompt] for prompt in range(self._num_prompts)]

    async def next_events(self) -> list[Event]:
        """Waits until there is something, and returns all of it, in order; after a nudge, []."""
        while not self._pending and not self._is_nudged:
            self._changed.clear()
            await self._changed.wait()
        self._is_nudged = False
        events, self._pending = self._pending, []
        return events

    def offer_to(self, take: Callable[[list[Event]], bool]) -> None:
        """From now on, offers what is pending to this function once all that came with it is there.

        Nothing is pending any more if it returns true; else whoever awaits `next_events` gets it. A
        call costs a fraction of what it takes to wake a task, and there is one for every token.
        """
        self._take = take
        self._loop = asyncio.get_running_loop()

    def nudge(self) -> None:
        """Lets the consumer go on, with nothing if nothing has come."""
        self._is_nudged = True
        self._changed.set()

    async def found(self) -> TokensFound | TextFound | VectorsFound:
        """Waits for the outcome where there is no answer; raises RequestError when it fails."""
        (event,) = await self.next_events()
        match event:
            case TokensFound() | TextFound() | VectorsFound():
                return event
            case Failed(error):
                raise error
            case _:
                raise RuntimeError(f"{self.request_id}: unexpected {event}")

    def _tell(self) -> None:
        """Lets the consumer know that something has come."""
        if self._take is None:
            self._changed.set()
        elif not self._is_offer_due:
            self._is_offer_due = True
            self._loop.call_soon(self._offer, self._take)

    def _offer(self, take: Callable[[list[Event]], bool]) -> None:
        self._is_offer_due = False
        is_taken = False
        try:
            is_taken = not self._pending or take(self._pending)
        finally:  # also where it raised: whoever waits must not wait for ever
            if is_taken:
                self._pending = []
            else:
                self._changed.set()

    def _finish(self, event: Finished) -> None:
        self._finished.append(event)
        if len(self._finished) == self._num_prompts:
            tokens = sum(finished.completion_tokens for finished in self._finished)
            cached = sum(finished.cached_tokens for finished in self._finished)
            thought = sum(finished.reasoning_tokens for finished in self._finished)
            self._pending.append(Finished(tokens, cached, thought))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()
