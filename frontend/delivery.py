"""The ASGI side of one request for answers: waits, writes, and lets go whatever happens.

Litestar cancels no handler when the client leaves, and a stream stuck in `send` never reaches its
generator's `finally`. So the response is an ASGI callable of our own: it watches `receive`, limits
each `send`, and holds the request in a `with` block. Nothing is sent before the prompt is accepted,
so that every earlier failure is a real HTTP status. A stream's text is written as it comes; its
task wakes for the end, for silence, and while the client is slower than the model.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, cast

from litestar.types import Receive, Scope, Send

from frontend import responses, stream
from frontend.direct_body import DIRECT_BODY, DirectBody
from frontend.engine_client import EngineClient
from frontend.events import Accepted, Event, Failed, Finished, PromptRead, TextAdded
from frontend.generation import Generation
from frontend.pulse import Pulse, WriteStalledError
from frontend.responses import Head
from frontend.shapes import Answer, ChatShape, CompletionShape, Shape
from frontend.stream import AnswerStream
from frontend.translate import Ask

logger = logging.getLogger(__name__)

REQUEST_ID = "x_request_id"  # where the ASGI scope holds the id that the caller knows

_STREAM_HEADERS = {
    "content-type": stream.MEDIA_TYPE,
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the chunks back
}


class Delivery:
    """Answers one validated request; an ASGI application."""

    def __init__(self, engine: EngineClient, ask: Ask, model: str, write_seconds: float) -> None:
        self._engine = engine
        self._wanted = ask.submission
        self._framing = ask.framing
        self._model = model
        self._write_seconds = write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestError when the request fails before the first byte."""
        caller_id = str(scope.get(REQUEST_ID, ""))
        with self._engine.submit(self._wanted, caller_id) as generation:
            head = Head(generation.request_id, int(time.time()), self._model)
            answer = self._stream if self._framing.stream else self._answer_whole
            direct_body: DirectBody = cast("dict[str, Any]", scope)[DIRECT_BODY]
            pulse = Pulse(
                send,
                direct_body,
                write_seconds=self._write_seconds,
                on_silence=generation.nudge,
            )
            try:
                await run_until_gone(answer(generation, head, pulse), receive)
            except WriteStalledError:
                logger.info("%s: the client stopped reading", generation.request_id)

    async def _stream(self, generation: Generation, head: Head, pulse: Pulse) -> None:
        accepted = await generation.accepted()
        include_usage = self._framing.include_usage
        chunks = AnswerStream(head, self._shape(accepted), accepted, include_usage=include_usage)
        with pulse:
            await _start(pulse, self._headers(_STREAM_HEADERS))
            if opening := chunks.opening():
                await _write(pulse, opening, is_last=False)
            generation.offer_to(partial(_write_directly, pulse, chunks))
            while not chunks.is_over:
                events = await generation.next_events()
                data = chunks.encode(events) if events else stream.KEEP_ALIVE
                if data:
                    await _write(pulse, data, is_last=chunks.is_over)

    async def _answer_whole(self, generation: Generation, head: Head, pulse: Pulse) -> None:
        accepted = await generation.accepted()
        shape = self._shape(accepted)
        answers = [Answer() for _ in range(self._wanted.total_choices)]
        finished = await _collect(generation, shape, answers)
        body = responses.whole(head, shape, accepted, answers, finished)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        with pulse:
            await _start(pulse, self._headers(headers))
            await _write(pulse, body, is_last=True)

    def _shape(self, accepted: list[Accepted]) -> Shape:
        has_logprobs, num_choices = self._framing.has_logprobs, self._wanted.num_choices
        if self._wanted.id_prefix == "chatcmpl":
            keys = self._framing.reasoning_keys
            return ChatShape(num_choices, has_logprobs=has_logprobs, reasoning_keys=keys)
        echo = self._framing.echo
        return CompletionShape(accepted, num_choices, has_logprobs=has_logprobs, echo=echo)

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        return with_ignored_fields(headers, self._framing.ignored_fields)


def with_ignored_fields(headers: Mapping[str, str], names: str) -> dict[str, str]:
    """The headers, and these names of unknown fields if there are any."""
    return {**headers, "x-ignored-fields": names} if names else dict(headers)


async def run_until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs the work, and cancels it when the client leaves; no task is left behind."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_until_gone(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
    if not task.cancelled():
        task.result()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that was read already


async def _collect(generation: Generation, shape: Shape, answers: list[Answer]) -> Finished:
    """Fills the answers, each at its choice's number."""
    while True:
        for event in await generation.next_events():
            match event:
                case TextAdded():
                    answers[event.choice].add(event)
                case PromptRead():
                    shape.note_prompt(event)
                case Finished():
                    return event
                case Failed(error):
                    raise error
                case _:
                    raise RuntimeError(f"{generation.request_id}: unexpected {event}")


def _write_directly(pulse: Pulse, chunks: AnswerStream, events: list[Event]) -> bool:
    """Writes text that the client takes at once; an end, and whatever must wait, is for a task."""
    if not isinstance(events[-1], TextAdded) or not pulse.takes_more:
        return False
    if data := chunks.encode(events):
        pulse.write(data)
    return True


async def _start(pulse: Pulse, headers: Mapping[str, str]) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await pulse.send({"type": "http.response.start", "status": 200, "headers": encoded})


async def _write(pulse: Pulse, data: bytes, *, is_last: bool) -> None:
    await pulse.send({"type": "http.response.body", "body": data, "more_body": not is_last})
