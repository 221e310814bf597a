"""Events to SSE bytes. Pure, so that golden tests pin every chunk.

Each event is `data: <one line of JSON>` and an empty line; clients split on LF LF. The role comes
first and once, `finish_reason` once, usage last and only when asked for, then `[DONE]`.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from frontend.events import Aborted, Accepted, Event, Failed, Finished, TextAdded
from frontend.responses import Head, envelope, error_object, usage

MEDIA_TYPE = "text/event-stream; charset=utf-8"
KEEP_ALIVE = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"


class ChatStream:
    """Encodes one answer; after the outcome `is_over` is true and nothing may follow."""

    def __init__(self, head: Head, prompt_tokens: int, *, include_usage: bool) -> None:
        self._envelope = envelope(head, "chat.completion.chunk")
        self._prompt_tokens = prompt_tokens
        self._include_usage = include_usage
        self.is_over = False

    def opening(self) -> bytes:
        """The role chunk."""
        return self._choice({"role": "assistant", "content": ""}, None)

    def encode(self, events: Iterable[Event]) -> bytes:
        """The chunks of these events; neighbouring text becomes one, held-back text none."""
        text = ""
        ending = b""
        for event in events:
            match event:
                case TextAdded():
                    text += event.text
                case Finished():
                    ending = self._ending(event)
                case Failed(error):
                    ending = _sse(error_object(error)) + _DONE
                case Aborted() | Accepted():
                    raise ValueError(f"{event} has no chunk")
        self.is_over = bool(ending)
        return (self._choice({"content": text}, None) if text else b"") + ending

    def _ending(self, finished: Finished) -> bytes:
        chunks = self._choice({}, finished.finish_reason)
        if self._include_usage:
            cost = usage(self._prompt_tokens, finished.completion_tokens)
            chunks += _sse(self._envelope | {"choices": [], "usage": cost})
        return chunks + _DONE

    def _choice(self, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._envelope | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return _sse(chunk)


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
