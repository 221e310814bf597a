"""The ASGI side of one request to put a sound into words: whole, or as a stream of windows."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any, cast

from litestar.types import Receive, Scope, Send

from frontend import stream, transcript_shapes
from frontend.delivery import REQUEST_ID, run_until_gone, with_ignored_fields
from frontend.direct_body import DIRECT_BODY
from frontend.events import Failed, Finished, TextAdded, WindowStarted
from frontend.forms import parse_form
from frontend.generation import Generation
from frontend.pulse import Pulse, WriteStalledError
from frontend.responses import error_object
from frontend.service import ApiRequest, Service
from frontend.sound_budget import upload_bytes
from frontend.sound_fields import SoundAsk, sound
from frontend.stream import sse
from frontend.transcript import HeardWindow, Transcript

logger = logging.getLogger(__name__)


class SoundDelivery:
    """Answers one validated request; an ASGI application."""

    def __init__(self, service: Service, request: ApiRequest, task: str) -> None:
        self._service = service
        self._request = request
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestError when the request fails before the first byte."""
        length = upload_bytes(self._request.headers.get("content-length"))
        with self._service.sounds.hold(length):
            ask = await self._read()
            await _Answer(self._service, ask)(scope, receive, send)

    async def _read(self) -> SoundAsk:
        """The request; a large form takes its time, and is parsed beside the loop."""
        request = self._request
        body = b"".join([part async for part in request.stream()])
        content_type = request.headers.get("content-type", "")
        form = await asyncio.to_thread(parse_form, body, content_type)
        return sound(form, self._service.model, self._task, secrets.randbits(63))


class _Answer:
    """The transcript on its way."""

    def __init__(self, service: Service, ask: SoundAsk) -> None:
        self._engine = service.engine
        self._ask = ask
        self._write_seconds = service.config.write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller_id = str(scope.get(REQUEST_ID, ""))
        with self._engine.submit(self._ask.wanted, caller_id) as generation:
            pulse = Pulse(
                send,
                cast("dict[str, Any]", scope)[DIRECT_BODY],
                write_seconds=self._write_seconds,
                on_silence=generation.nudge,
            )
            answer = self._stream if self._ask.stream else self._whole
            try:
                await run_until_gone(answer(generation, pulse), receive)
            except WriteStalledError:
                logger.info("%s: the client stopped reading", generation.request_id)

    async def _whole(self, generation: Generation, pulse: Pulse) -> None:
        await generation.accepted()
        transcript = self._transcript()
        async for _ in _heard(generation, transcript):
            pass
        ask = self._ask
        body = transcript_shapes.whole(
            transcript,
            ask.response_format,
            task=ask.task,
            has_logprobs=ask.has_logprobs,
            granularities=ask.granularities,
        )
        kind = transcript_shapes.MEDIA_TYPES[ask.response_format]
        with pulse:
            await self._start(pulse, {"content-type": kind, "content-length": str(len(body))})
            await _write(pulse, body, is_last=True)

    async def _stream(self, generation: Generation, pulse: Pulse) -> None:
        await generation.accepted()
        transcript, writer = self._transcript(), _Writer(self._ask.response_format)
        with pulse:
            headers = {"content-type": stream.MEDIA_TYPE, "cache-control": "no-cache"}
            await self._start(pulse, {**headers, "x-accel-buffering": "no"})
            try:
                async for windows in _heard(generation, transcript, is_nudged=True):
                    data = b"".join(map(writer.window, windows)) or stream.KEEP_ALIVE
                    for window in windows:
                        window.forget()  # a long sound has thousands
                    await _write(pulse, data, is_last=False)
                data = writer.done(transcript)
            except _FailedError as failure:
                data = sse(error_object(failure.failed.error))
            await _write(pulse, data + stream.DONE, is_last=True)

    def _transcript(self) -> Transcript:
        return Transcript(is_sequential=self._ask.wanted.options.is_sequential)

    async def _start(self, pulse: Pulse, headers: dict[str, str]) -> None:
        named = with_ignored_fields(headers, self._ask.ignored_fields)
        encoded = [(name.encode(), value.encode()) for name, value in named.items()]
        await pulse.send({"type": "http.response.start", "status": 200, "headers": encoded})


class _FailedError(Exception):
    """The request failed while its answer was under way."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.error.message)
        self.failed = failed


class _Writer:
    """Each window's words as an event; their texts joined are the last event's text."""

    def __init__(self, response_format: str) -> None:
        self._format = response_format
        self._parts: list[str] = []
        self._num_cues = 0
        self._num_tokens = 0

    def window(self, window: HeardWindow) -> bytes:
        """The event of one window; b"" where nobody spoke."""
        segments = list(window.segments())
        self._num_tokens += window.num_tokens
        if self._format in ("srt", "vtt"):
            head = "WEBVTT\n\n" if self._format == "vtt" and not self._parts else ""
            text = head + transcript_shapes.cues(segments, self._format, self._num_cues + 1)
            self._num_cues += len(segments)
        else:
            text = transcript_shapes.text_of(segments)
            text = text if any(self._parts) else text.lstrip()
        if not text:
            return b""
        self._parts.append(text)
        return transcript_shapes.delta(text)

    def done(self, transcript: Transcript) -> bytes:
        """The last event."""
        text = "".join(self._parts)
        return transcript_shapes.done(text, self._num_tokens, transcript.duration)


async def _heard(
    generation: Generation, transcript: Transcript, *, is_nudged: bool = False
) -> AsyncIterator[list[HeardWindow]]:
    """The windows as they are over, in order; [] after a nudge, if these are wanted.

    Raises RequestError, or `_FailedError` where the answer is under way, when the request fails.
    """
    while True:
        events = await generation.next_events()
        for event in events:
            match event:
                case WindowStarted() | TextAdded():
                    transcript.add(event)
                case Finished():
                    yield list(transcript.take_whole())
                    return
                case Failed(error):
                    raise _FailedError(event) if is_nudged else error
                case _:
                    raise RuntimeError(f"{generation.request_id}: unexpected {event}")
        windows = list(transcript.take_whole())
        if windows or (is_nudged and not events):
            yield windows


async def _write(pulse: Pulse, data: bytes, *, is_last: bool) -> None:
    await pulse.send({"type": "http.response.body", "body": data, "more_body": not is_last})
