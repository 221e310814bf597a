"""What a streamed answer was, from the bytes that came and when they came. Pure.

The client keeps bytes and times while a stream runs and reads them here when it has ended, so that
no stream waits until another one's JSON is decoded.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from benchmarks.load.outcome import Completed, Failed, Outcome, Refused

REFUSALS = frozenset({429, 503})
CHARACTERS_PER_TOKEN = 4  # a usual figure for English, for servers that send no usage
MESSAGE_CHARACTERS = 200
DONE = b"[DONE]"

Arrival = tuple[float, bytes]  # seconds, and what a read of the stream gave


class Delta(msgspec.Struct):
    """The new part of a chat message; reasoning has two names in the field."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """`delta` in chats, `text` in completions."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """Tokens as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None


_decode = msgspec.json.Decoder(Chunk).decode


def events(arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
    """The data of every event of a stream, at the time when its last byte came.

    Follows the WHATWG's event streams but for a lone CR as a line's end, which nobody sends.
    """
    rest = b""
    data: list[bytes] = []
    for seconds, arrived in arrivals:
        *lines, rest = (rest + arrived).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value and data:
                yield seconds, b"\n".join(data)
                data = []


def text_of(chunk: Chunk) -> str:
    """What an event adds to the answer, reasoning included."""
    parts = []
    for choice in chunk.choices or []:
        delta = choice.delta or Delta()
        parts += [choice.text, delta.reasoning_content or delta.reasoning, delta.content]
    return "".join(part for part in parts if part)


def read_answer(sent: float, prompt: str, arrivals: list[Arrival]) -> Outcome:
    """The outcome of a stream that ended as HTTP wants it."""
    answer = _Answer()
    ended = sent
    for ended, data in events(arrivals):
        if data == DONE:
            answer.is_whole = True
            break
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            return Failed(sent, ended, "bad event", f"{error}: {shorten(data)}")
        if chunk.error is not None or chunk.object == "error":
            return Failed(sent, ended, "error event", message_of(data))
        answer.add(ended, chunk)
    if answer.is_whole:
        return answer.completed(sent, ended, prompt)
    if answer.has_begun:
        return Failed(sent, ended, "cut stream", "it ended without [DONE] or a finish_reason")
    body = b"".join(data for _, data in arrivals)
    return Failed(sent, arrivals[-1][0] if arrivals else sent, "no event stream", shorten(body))


class _Answer:
    """What the events of one answer add up to."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_whole = False
        self._text_times: list[float] = []
        self._num_characters = 0
        self._usage: Usage | None = None

    def add(self, seconds: float, chunk: Chunk) -> None:
        """Takes one event."""
        self.has_begun = True
        if text := text_of(chunk):
            self._text_times.append(seconds)
            self._num_characters += len(text)
        self._usage = chunk.usage or self._usage
        self.is_whole |= any(choice.finish_reason for choice in chunk.choices or [])

    def completed(self, sent: float, ended: float, prompt: str) -> Completed:
        """The whole answer; without a usage its tokens are estimated."""
        usage = self._usage or Usage(_estimated(len(prompt)), _estimated(self._num_characters))
        return Completed(
            sent,
            ended,
            tuple(self._text_times),
            usage.prompt_tokens,
            usage.completion_tokens,
            is_estimated=self._usage is None,
        )


def read_rejection(sent: float, ended: float, status: int, body: bytes) -> Refused | Failed:
    """The outcome of a request that was answered with an error status."""
    if status in REFUSALS:
        return Refused(sent, ended, status, message_of(body))
    return Failed(sent, ended, f"HTTP {status}", message_of(body))


def message_of(body: bytes) -> str:
    """The message in an error's JSON, in any of the usual shapes, else its first characters."""
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return shorten(body)
    for key in ("error", "message", "detail"):
        error = error.get(key, error) if isinstance(error, dict) else error
    return shorten(error.encode() if isinstance(error, str) else body)


def shorten(body: bytes) -> str:
    """The beginning of it as text, on one line."""
    text = " ".join(body.decode(errors="replace").split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}…"


def _estimated(num_characters: int) -> int:
    return -(-num_characters // CHARACTERS_PER_TOKEN)
