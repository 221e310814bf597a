"""What happens to one request, as its HTTP handler sees it; the last event is the outcome."""

from dataclasses import dataclass

from msgspec import Struct

from shared.errors import RequestError
from shared.parts import Heard, ScoredToken


@dataclass(frozen=True)
class Accepted:
    """A prompt fits; always its first event, unless the request ends before it."""

    prompt_tokens: int
    prompt_text: str | None = None  # where `echo` was asked for


@dataclass(frozen=True)
class PromptRead:
    """How likely the tokens of a prompt are, where that was asked for; before its first text."""

    tokens: tuple[ScoredToken, ...]
    prompt: int = 0  # which prompt of the request


class TextAdded(Struct, frozen=True, gc=False):
    """The next piece of one answer; empty while text is held back.

    There is one for every token of every stream, so it is of the kind that is made fastest.
    """

    choice: int
    text: str
    completion_tokens: int  # of this answer so far
    finish_reason: str | None = None  # "stop" or "length" with the last piece
    stop_reason: str | int | None = None  # the caller's stop string or token that ended it
    tokens: tuple[ScoredToken, ...] = ()  # of this text, where their logprobs were asked for
    thoughts: str = ""  # what the model thought before this text
    heard: Heard | None = None  # with the last piece, of a window of sound


@dataclass(frozen=True)
class WindowStarted:
    """A part of a sound is on its way; its words are the answer of this number."""

    number: int
    start_seconds: float
    seconds: float
    first_time_id: int  # see `WindowRead`
    mark_seconds: float


@dataclass(frozen=True)
class Finished:
    """Outcome: every answer is whole."""

    completion_tokens: int  # of all answers together
    cached_tokens: int  # of the prompt
    reasoning_tokens: int = 0  # of the completion's tokens, those of thoughts


@dataclass(frozen=True)
class TokensFound:
    """Outcome: the ids of a text that nobody answers."""

    token_ids: tuple[int, ...]
    strings: tuple[str, ...] | None  # where they were wanted


@dataclass(frozen=True)
class TextFound:
    """Outcome: the text of ids."""

    text: str


@dataclass(frozen=True)
class VectorsFound:
    """Outcome: the vectors of texts."""

    vectors: bytes  # float32, little-endian, one after the other


@dataclass(frozen=True)
class Failed:
    """Outcome: the caller is told why."""

    error: RequestError


@dataclass(frozen=True)
class Aborted:
    """Outcome: the caller left."""


Outcome = Finished | TokensFound | TextFound | VectorsFound | Failed | Aborted
Event = Accepted | PromptRead | TextAdded | WindowStarted | Outcome
