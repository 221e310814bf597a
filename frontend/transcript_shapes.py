"""A transcript in each of the API's formats. Pure."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import orjson

from frontend.stream import sse
from frontend.transcript import Segment, Transcript

SEGMENT, WORD = "segment", "word"  # what of `verbose_json` is told with its times
MEDIA_TYPES = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "text/plain; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


def whole(
    transcript: Transcript,
    response_format: str,
    *,
    task: str,
    has_logprobs: bool = False,
    granularities: Collection[str] = (SEGMENT,),
) -> bytes:
    """The body of a request that did not stream."""
    segments = transcript.segments()
    match response_format:
        case "text":
            return (text_of(segments) + "\n").encode()
        case "srt" | "vtt":
            head = "WEBVTT\n\n" if response_format == "vtt" else ""
            return (head + cues(segments, response_format)).encode()
        case "verbose_json":
            verbose = _verbose(transcript, segments, task)
            if SEGMENT in granularities:
                verbose["segments"] = _segments(segments)
            if WORD in granularities:
                verbose["words"] = _words(transcript)
            return orjson.dumps(verbose)
        case _:
            body: dict[str, Any] = {"text": text_of(segments), "usage": _duration(transcript)}
            if has_logprobs:
                body["logprobs"] = [_logprob(token) for s in segments for token in s.tokens]
            return orjson.dumps(body)


def text_of(segments: Sequence[Segment]) -> str:
    """The transcript's text."""
    return "".join(segment.text for segment in segments)


def cues(segments: Sequence[Segment], response_format: str, first: int = 1) -> str:
    """The cues of a film's subtitles, as SubRip or WebVTT, numbered from `first`."""
    is_srt = response_format == "srt"
    parts = []
    for number, segment in enumerate(segments, start=first):
        times = f"{_clock(segment.start, is_srt)} --> {_clock(segment.end, is_srt)}"
        text = segment.text.strip().replace("-->", "->")
        parts.append(f"{number}\n{times}\n{text}\n\n" if is_srt else f"{times}\n{text}\n\n")
    return "".join(parts)


def delta(text: str) -> bytes:
    """An event with a further part of the text."""
    return sse({"type": "transcript.text.delta", "delta": text})


def done(text: str, num_tokens: int, duration: float) -> bytes:
    """The last event of a stream, with all of the text."""
    audio_tokens = math.ceil(duration * 50)  # the encoder has one position for 20 ms
    usage = {
        "type": "tokens",
        "input_tokens": audio_tokens,
        "input_token_details": {"audio_tokens": audio_tokens, "text_tokens": 0},
        "output_tokens": num_tokens,
        "total_tokens": audio_tokens + num_tokens,
    }
    return sse({"type": "transcript.text.done", "text": text, "usage": usage})


def _verbose(transcript: Transcript, segments: Sequence[Segment], task: str) -> dict[str, Any]:
    return {
        "task": task,
        "language": transcript.language or "en",
        "duration": round(transcript.duration, 3),
        "text": text_of(segments),
        "usage": _duration(transcript),
    }


def _segments(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "seek": round(100 * segment.window_start),  # frames of 10 ms
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "text": segment.text,
            "tokens": segment.token_ids,
            "temperature": segment.heard.temperature,
            "avg_logprob": segment.heard.avg_logprob,
            "compression_ratio": segment.heard.compression_ratio,
            "no_speech_prob": segment.heard.no_speech_prob,
        }
        for number, segment in enumerate(segments)
    ]


def _words(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
        for word in transcript.words()
    ]


def _duration(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def _logprob(token: Any) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.octets}


def _clock(seconds: float, is_srt: bool) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    mark = "," if is_srt else "."
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
