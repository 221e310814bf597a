"""An answer put together: from one body, or from the events of a stream; equal if all is well."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

THOUGHTS = ("reasoning_content", "reasoning")
SAME_IN_EVERY_CHUNK = ("id", "object", "created", "model", "system_fingerprint")


@dataclass
class Choice:
    """One answer, whichever way it came."""

    text: str = ""
    thoughts: dict[str, str] = field(default_factory=dict)  # by their name
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[Any] = field(default_factory=list)  # a line for each token

    def take(self, choice: dict[str, Any]) -> None:
        """Adds a choice of a chunk or of a body."""
        assert self.finish_reason is None, "something came after the end"
        message = choice.get("message", choice.get("delta", {}))
        self.text += choice["text"] if "text" in choice else message.get("content", "")
        for name in THOUGHTS:
            if name in message:
                self.thoughts[name] = self.thoughts.get(name, "") + message[name]
        self.finish_reason = choice["finish_reason"]
        self.stop_reason = choice.get("stop_reason")
        self.logprobs += _lines(choice["logprobs"])


@dataclass
class Assembled:
    """All that a client learnt of one request, but for names and times."""

    status: int
    ignored_fields: str | None
    error: dict[str, Any] | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, Any] | None = None

    def take(self, body: dict[str, Any]) -> None:
        """Adds a chunk, or a whole body."""
        assert "error" not in body, body["error"]
        for choice in body["choices"]:
            self.choices.setdefault(choice["index"], Choice()).take(choice)
        if body.get("usage") is not None:
            assert self.usage is None
            self.usage = body["usage"]


def from_body(response: httpx.Response) -> Assembled:
    """The answer of a request that did not stream."""
    assembled = Assembled(response.status_code, response.headers.get("x-ignored-fields"))
    if response.status_code == httpx.codes.OK:
        assembled.take(response.json())
    else:
        assembled.error = response.json()["error"]
    return assembled


def from_stream(response: httpx.Response) -> Assembled:
    """The answer of a stream; every event must be well-formed, and the last one `[DONE]`."""
    if response.status_code != httpx.codes.OK:
        return from_body(response)
    assembled = Assembled(response.status_code, response.headers.get("x-ignored-fields"))
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        assembled.take(chunk)
    assert len({tuple(chunk[name] for name in SAME_IN_EVERY_CHUNK) for chunk in chunks}) == 1
    assert all(choice.finish_reason for choice in assembled.choices.values())
    return assembled


def _lines(logprobs: dict[str, Any] | None) -> list[Any]:
    """A chat's tokens as they are; a completion's parallel lists, one line a token."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return list(zip(*(logprobs[name] for name in names), strict=True))
