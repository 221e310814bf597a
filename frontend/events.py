"""What happens to one request, as its HTTP handler sees it; the last event is the outcome."""

from dataclasses import dataclass

from shared.errors import RequestError


@dataclass(frozen=True)
class Accepted:
    """The prompt fits; always the first event, unless the request ends before it."""

    prompt_tokens: int


@dataclass(frozen=True)
class TextAdded:
    """The next piece of the answer; empty while text is held back."""

    text: str
    completion_tokens: int  # so far


@dataclass(frozen=True)
class Finished:
    """Outcome: the answer is whole."""

    finish_reason: str  # "stop" or "length"
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """Outcome: the caller is told why."""

    error: RequestError


@dataclass(frozen=True)
class Aborted:
    """Outcome: the caller left."""


Outcome = Finished | Failed | Aborted
Event = Accepted | TextAdded | Outcome
