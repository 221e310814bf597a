"""Commands that take long: each gets a turn, and then others are served. Pure."""

from collections.abc import Iterator
from typing import Protocol

from shared.messages import (
    Embed,
    Listen,
    Pool,
    PromptAccepted,
    SoundRead,
    Transcribe,
    WindowRead,
)


class LongWork(Protocol):
    """A command that is worked on in pieces."""

    is_over: bool  # nothing is left to do

    @property
    def message(self) -> Embed | Transcribe:
        """The command."""

    @property
    def can_go_on(self) -> bool:
        """False while it waits for somebody."""

    @property
    def descriptor(self) -> int | None:
        """What becomes readable when it may go on; None if only a message can tell."""

    def go_on(
        self,
    ) -> tuple[PromptAccepted | WindowRead | SoundRead, Pool | Listen | None] | None:
        """Does the next piece, or raises RequestError; what frontend and worker hear of it."""

    def close(self) -> None:
        """Gives back what it holds, at its end or before."""


class Turns:
    """The long work of one tokenizer, by request; whoever had a turn goes to the end."""

    def __init__(self) -> None:
        self._works: dict[str, LongWork] = {}

    def __bool__(self) -> bool:
        """True when somebody can go on."""
        return any(work.can_go_on for work in self._works.values())

    def __iter__(self) -> Iterator[LongWork]:
        return iter(tuple(self._works.values()))

    @property
    def descriptors(self) -> list[int]:
        """What to wait for beside messages, where nobody can go on."""
        found = (work.descriptor for work in self._works.values())
        return [descriptor for descriptor in found if descriptor is not None]

    def add(self, work: LongWork) -> None:
        """Puts a work at the end."""
        self._works[work.message.request_id] = work

    def get(self, request_id: str) -> LongWork | None:
        """The work for a request, if it is not over."""
        return self._works.get(request_id)

    def remove(self, request_id: str) -> LongWork | None:
        """Takes a work out, if it is there."""
        return self._works.pop(request_id, None)

    def take(self) -> LongWork | None:
        """Takes out the first that can go on."""
        able = (name for name, work in self._works.items() if work.can_go_on)
        name = next(able, None)
        return None if name is None else self._works.pop(name)
