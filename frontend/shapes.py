"""How one answer looks in the bodies and chunks of each endpoint. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from frontend.events import Accepted, PromptRead, TextAdded
from shared.parts import ScoredToken, TopToken


@dataclass
class Answer:
    """One answer as it grows, or a part of it: text, thoughts, tokens and how it ended."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, event: TextAdded) -> None:
        """Takes the next piece."""
        self.texts.append(event.text)
        self.thoughts.append(event.thoughts)
        self.tokens += event.tokens
        self.finish_reason = event.finish_reason
        self.stop_reason = event.stop_reason

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.texts)

    @property
    def thought(self) -> str:
        """All that was thought so far."""
        return "".join(self.thoughts)


class Shape(Protocol):
    """The choices of one endpoint; `whole_kind` and `chunk_kind` are its `object` fields."""

    whole_kind: str
    chunk_kind: str

    def opening(self) -> Iterable[dict[str, Any]]:
        """Chunk choices that come before any text."""

    def note_prompt(self, event: PromptRead) -> None:
        """Takes the tokens of a prompt, before the first text of its answers."""

    def prompt(self, event: PromptRead) -> Iterable[dict[str, Any]]:
        """Chunk choices that a scored prompt gives, once it is noted."""

    def piece(self, index: int, part: Answer) -> dict[str, Any] | None:
        """A chunk choice that adds a part of an answer; None where nothing is to be shown."""

    def end(self, index: int, answer: Answer) -> dict[str, Any]:
        """The chunk choice that says how the answer ended."""

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """A choice of the body of a request that did not stream."""


class ChatShape:
    """Chat completions: a message, or deltas of one.

    `reasoning_keys` are the names that its thoughts have there, none where they are left out.
    Logprobs cover every token that the model wrote: thoughts, their marks and the answer.
    """

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self, num_choices: int, *, has_logprobs: bool, reasoning_keys: Sequence[str] = ()
    ) -> None:
        self._num_choices = num_choices
        self._has_logprobs = has_logprobs
        self._reasoning_keys = reasoning_keys

    def opening(self) -> Iterable[dict[str, Any]]:
        """The role of every answer, once."""
        delta = {"role": "assistant", "content": ""}
        return (_delta(index, delta) for index in range(self._num_choices))

    def note_prompt(self, event: PromptRead) -> None:
        """Chat never asks for its prompt."""
        raise ValueError(f"{event} has no place in a chat")

    def prompt(self, _: PromptRead) -> Iterable[dict[str, Any]]:
        """Chat never shows its prompt."""
        return ()

    def piece(self, index: int, part: Answer) -> dict[str, Any] | None:
        """See `Shape`."""
        delta = self._reasoning(part)
        if not (delta or part.text or part.tokens):
            return None
        if part.text or not delta:
            delta["content"] = part.text
        return _delta(index, delta, self._logprobs(part.tokens))

    def end(self, index: int, answer: Answer) -> dict[str, Any]:
        """See `Shape`."""
        return _delta(index, {}) | _ending(answer)

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """See `Shape`."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": index,
            "message": message | self._reasoning(answer),
            "logprobs": self._logprobs(answer.tokens),
        } | _ending(answer)

    def _reasoning(self, answer: Answer) -> dict[str, Any]:
        """The thoughts under each of their names, if there are any."""
        return dict.fromkeys(self._reasoning_keys, answer.thought) if answer.thought else {}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return {"content": [_chat_token(token) for token in tokens], "refusal": None}


class CompletionShape:
    """Text completions: text, after its prompt where `echo` was asked for."""

    whole_kind = chunk_kind = "text_completion"

    def __init__(
        self, accepted: Sequence[Accepted], num_choices: int, *, has_logprobs: bool, echo: bool
    ) -> None:
        self._num_choices = num_choices
        self._has_logprobs = has_logprobs
        self._echo = echo
        self._prompts = [prompt.prompt_text or "" for prompt in accepted]
        self._scored: dict[int, PromptRead] = {}  # by prompt
        self._offsets: dict[int, int] = {}  # characters of each choice so far

    def opening(self) -> Iterable[dict[str, Any]]:
        """The prompts, where nothing else is to be said of them."""
        if self._echo and not self._has_logprobs:
            for prompt, text in enumerate(self._prompts):
                for index in self._choices(prompt):
                    yield self._add(index, text, ())

    def note_prompt(self, event: PromptRead) -> None:
        """See `Shape`."""
        self._scored[event.prompt] = event

    def prompt(self, event: PromptRead) -> Iterable[dict[str, Any]]:
        """The prompt of as many choices, with its tokens."""
        for index in self._choices(event.prompt):
            yield self._add(index, self._prompt_text(event.prompt), event.tokens)

    def piece(self, index: int, part: Answer) -> dict[str, Any] | None:
        """See `Shape`."""
        return self._add(index, part.text, part.tokens) if part.text or part.tokens else None

    def _add(self, index: int, text: str, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        start = self._offsets.get(index, 0)
        self._offsets[index] = start + sum(len(token.text) for token in tokens)
        logprobs = _legacy_logprobs(tokens, start) if self._has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def end(self, index: int, answer: Answer) -> dict[str, Any]:
        """See `Shape`."""
        return {"index": index, "text": "", "logprobs": None} | _ending(answer)

    def whole(self, index: int, answer: Answer) -> dict[str, Any]:
        """See `Shape`."""
        prompt = index // self._num_choices
        text, tokens = answer.text, answer.tokens
        if self._echo:
            text = self._prompt_text(prompt) + text
            scored = self._scored.get(prompt)
            tokens = [*(scored.tokens if scored else ()), *tokens]
        logprobs = _legacy_logprobs(tokens, 0) if self._has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs} | _ending(answer)

    def _choices(self, prompt: int) -> range:
        return range(prompt * self._num_choices, (prompt + 1) * self._num_choices)

    def _prompt_text(self, prompt: int) -> str:
        """With tokens, the text that they make: offsets must point into it."""
        scored = self._scored.get(prompt)
        if scored is None:
            return self._prompts[prompt]
        return "".join(token.text for token in scored.tokens)


def _delta(
    index: int, delta: Mapping[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _ending(answer: Answer) -> dict[str, Any]:
    return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}


def _chat_token(token: ScoredToken) -> dict[str, Any]:
    scored = {"token": token.text, "logprob": token.logprob, "bytes": token.octets}
    top = [_top_token(alternative) for alternative in token.top]
    return {**scored, "top_logprobs": top}


def _top_token(token: TopToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": token.octets}


def _legacy_logprobs(tokens: Sequence[ScoredToken], start: int) -> dict[str, Any]:
    """Parallel lists; `text_offset` counts characters of the choice's text."""
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_legacy_top(token) for token in tokens],
        "text_offset": offsets,
    }


def _legacy_top(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens by their text, the best first, and the token itself.

    Of equal texts the likelier one is kept.
    """
    if token.logprob is None:
        return None
    told: dict[str, float] = {}
    for top in token.top:
        told.setdefault(top.text, top.logprob)
    told.setdefault(token.text, token.logprob)
    return told
