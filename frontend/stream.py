"""Events to SSE bytes. Pure, so that golden tests pin every chunk.

Each event is `data: <one line of JSON>` and an empty line; clients split on LF LF. What opens an
answer comes first and once, `finish_reason` once, usage last and only when asked for, then
`[DONE]`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from frontend.events import Accepted, Event, Failed, Finished, PromptRead, TextAdded
from frontend.responses import Head, envelope, error_object, usage
from frontend.shapes import Answer, Shape

MEDIA_TYPE = "text/event-stream; charset=utf-8"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
_MARK = "\0"  # stands for a text


class AnswerStream:
    """Encodes one request's answers; after the outcome `is_over` is true and nothing may follow."""

    def __init__(
        self, head: Head, shape: Shape, accepted: Sequence[Accepted], *, include_usage: bool
    ) -> None:
        self._envelope = envelope(head, shape.chunk_kind)
        self._shape = shape
        self._accepted = accepted
        self._include_usage = include_usage
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # by choice: see `_frame`
        self.is_over = False

    def opening(self) -> bytes:
        """What comes before any text."""
        return b"".join(map(self._chunk, self._shape.opening()))

    def encode(self, events: Sequence[Event]) -> bytes:
        """The chunks of these events; an answer's neighbouring text is one, held-back text none."""
        if len(events) == 1 and isinstance(events[0], TextAdded) and _is_plain(events[0]):
            return self._text(events[0])
        return self._encode(events)

    def _encode(self, events: Iterable[Event]) -> bytes:
        added: dict[int, Answer] = {}
        before = after = b""
        for event in events:
            match event:
                case TextAdded():
                    added.setdefault(event.choice, Answer()).add(event)
                case PromptRead():
                    self._shape.note_prompt(event)
                    before += b"".join(map(self._chunk, self._shape.prompt(event)))
                case Finished():
                    after = self._ending(event)
                case Failed(error):
                    after = sse(error_object(error)) + DONE
                case _:
                    raise ValueError(f"{event} has no chunk")
        self.is_over = bool(after)
        return b"".join((before, *self._pieces(added), *self._ends(added), after))

    def _text(self, event: TextAdded) -> bytes:
        """The chunk of one piece of nothing but text: what nearly all chunks of a stream are."""
        if not event.text:
            return b""
        before, after = self._frames.get(event.choice) or self._frame(event.choice)
        return before + orjson.dumps(event.text) + after

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in a chunk of this choice."""
        choice = self._shape.piece(index, Answer(texts=[_MARK]))
        assert choice is not None, "text is always shown"
        before, _, after = self._chunk(choice).rpartition(orjson.dumps(_MARK))
        self._frames[index] = before, after
        return before, after

    def _pieces(self, added: dict[int, Answer]) -> Iterator[bytes]:
        for index, answer in added.items():
            if (choice := self._shape.piece(index, answer)) is not None:
                yield self._chunk(choice)

    def _ends(self, added: dict[int, Answer]) -> Iterator[bytes]:
        for index, answer in added.items():
            if answer.finish_reason is not None:
                yield self._chunk(self._shape.end(index, answer))

    def _ending(self, finished: Finished) -> bytes:
        if not self._include_usage:
            return DONE
        cost = usage(self._accepted, finished)
        return sse(self._envelope | {"choices": [], "usage": cost}) + DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = self._envelope | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return sse(chunk)


def _is_plain(event: TextAdded) -> bool:
    return not (event.tokens or event.thoughts or event.finish_reason)


def sse(body: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"
