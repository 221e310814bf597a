"""What a transcript was, whole or streamed, from the bytes that came and when they came. Pure."""

from typing import Any

import msgspec

from benchmarks.load.answers import DONE, Arrival, events, message_of, shorten
from benchmarks.load.outcome import Completed, Failed, Outcome


class Usage(msgspec.Struct):
    """Of a whole answer its seconds, of a streamed one its tokens."""

    seconds: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0


class Whole(msgspec.Struct):
    """The body of `json` and of `verbose_json`."""

    text: str
    duration: float | None = None
    usage: Usage | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    type: str = ""
    delta: str = ""
    usage: Usage | None = None
    error: Any = None


_decode_whole = msgspec.json.Decoder(Whole, strict=False).decode
_decode_event = msgspec.json.Decoder(Event).decode


def read_whole(sent: float, ended: float, file_seconds: float | None, body: bytes) -> Outcome:
    """The outcome of an answer in one piece: how long the sound was is best known by the server."""
    try:
        answer = _decode_whole(body)
    except msgspec.DecodeError as error:
        return Failed(sent, ended, "no transcript", f"{error}: {shorten(body)}")
    counted = answer.usage.seconds if answer.usage else None  # whole seconds
    known = (answer.duration, file_seconds, counted)
    seconds = next((found for found in known if found is not None), None)
    return Completed(sent, ended, (), 0, 0, audio_seconds=seconds, is_streamed=False)


def read_streamed(sent: float, file_seconds: float | None, arrivals: list[Arrival]) -> Outcome:
    """The outcome of a stream that ended as HTTP wants it."""
    text_times: list[float] = []
    usage, is_whole, ended = Usage(), False, sent
    for ended, data in events(arrivals):
        if data == DONE:
            is_whole = True
            break
        try:
            event = _decode_event(data)
        except msgspec.DecodeError as error:
            return Failed(sent, ended, "bad event", f"{error}: {shorten(data)}")
        if event.error is not None:
            return Failed(sent, ended, "error event", message_of(data))
        if event.delta:
            text_times.append(ended)
        usage = event.usage or usage
        is_whole |= event.type == "transcript.text.done"
    if not is_whole:
        return Failed(sent, ended, "cut stream", "it ended without [DONE] or transcript.text.done")
    return Completed(
        sent,
        ended,
        tuple(text_times),
        usage.input_tokens,
        usage.output_tokens,
        audio_seconds=file_seconds,
    )
