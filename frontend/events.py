"""What happens to one request, as its HTTP handler sees it; the last event is the outcome."""

from dataclasses import dataclass

from shared.errors import RequestError


@dataclass(frozen=True)
class Accepted:
    """The prompt fits; always the first event, unless the request ends before it."""

    prompt_tokens: int


@dataclass(frozen=True)
class TextAdded:
    """The next piece of one answer; empty while text is held back."""

    choice: int
    text: str
    completion_tokens: int  # of this answer so far
    finish_reason: str | None = None  # "stop" or "length" with the last piece


@dataclass(frozen=True)
class Finished:
    """Outcome: every answer is whole."""

    completion_tokens: int  # of all answers together
    cached_tokens: int  # of the prompt


@dataclass(frozen=True)
class Failed:
    """Outcome: the caller is told why."""

    error: RequestError


@dataclass(frozen=True)
class Aborted:
    """Outcome: the caller left."""


Outcome = Finished | Failed | Aborted
Event = Accepted | TextAdded | Outcome
