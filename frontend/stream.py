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
    """Encodes one request's answers; after the outcome `is_over` is true and nothing may follow."""

    def __init__(
        self, head: Head, prompt_tokens: int, *, num_choices: int, include_usage: bool
    ) -> None:
        self._envelope = envelope(head, "chat.completion.chunk")
        self._prompt_tokens = prompt_tokens
        self._num_choices = num_choices
        self._include_usage = include_usage
        self.is_over = False

    def opening(self) -> bytes:
        """The role chunk of every answer."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._choice(index, delta, None) for index in range(self._num_choices))

    def encode(self, events: Iterable[Event]) -> bytes:
        """The chunks of these events; an answer's neighbouring text is one, held-back text none."""
        texts: dict[int, str] = {}
        reasons: dict[int, str] = {}
        ending = b""
        for event in events:
            match event:
                case TextAdded():
                    texts[event.choice] = texts.get(event.choice, "") + event.text
                    if event.finish_reason is not None:
                        reasons[event.choice] = event.finish_reason
                case Finished():
                    ending = self._ending(event)
                case Failed(error):
                    ending = _sse(error_object(error)) + _DONE
                case Aborted() | Accepted():
                    raise ValueError(f"{event} has no chunk")
        self.is_over = bool(ending)
        added = [self._choice(index, {"content": t}, None) for index, t in texts.items() if t]
        ended = [self._choice(index, {}, reason) for index, reason in reasons.items()]
        return b"".join((*added, *ended, ending))

    def _ending(self, finished: Finished) -> bytes:
        if not self._include_usage:
            return _DONE
        cost = usage(self._prompt_tokens, finished)
        return _sse(self._envelope | {"choices": [], "usage": cost}) + _DONE

    def _choice(self, index: int, delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._envelope | {"choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return _sse(chunk)


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
