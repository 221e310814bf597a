"""From the tokens of a sound's windows to its transcript: segments, text, language. Pure.

A window's answer is control tokens that say what it is, then text between marks of time. All of it
counts; in sequence what is behind the last whole segment is heard again with the next window.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, dropwhile, repeat
from typing import NamedTuple

from frontend.events import TextAdded, WindowStarted
from frontend.transcript_words import Span, Word, in_order, words_of
from shared.parts import Heard, ScoredToken
from shared.windows import heard_part, is_silent

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_TRANSLATE = "<|translate|>"
_CONTROL = re.compile(r"<\|[^|<>]*\|>")


@dataclass(frozen=True)
class Segment:
    """A part of the transcript between two marks of time; seconds in the whole sound."""

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]  # the marks included
    tokens: tuple[ScoredToken, ...]
    heard: Heard  # of its window
    window_start: float
    spans: tuple[Span, ...] = ()  # when each token was said, where that is known


class _Said(NamedTuple):
    """A token of text or a mark, and seconds in its window; 0 where these are not known."""

    token: ScoredToken
    start: float
    end: float


@dataclass
class HeardWindow:
    """A window, and what has been heard in it so far."""

    start: float
    seconds: float
    first_time_id: int  # see `WindowRead`
    mark_seconds: float
    is_sequential: bool = False  # what is behind its last whole segment is heard again
    tokens: list[ScoredToken] = field(default_factory=list)
    num_tokens: int = 0
    heard: Heard | None = None  # once it is over

    @property
    def language(self) -> str:
        """The code of its language; "" where the model knows one alone."""
        first = _spelled(self.tokens[0]) if self.tokens else ""
        head = _LANGUAGE.fullmatch(first)
        return head[1] if head else ""

    def segments(self) -> Iterator[Segment]:
        """What was said, in order; nothing where nobody spoke, or while it is not over."""
        if self.heard is None or is_silent(self.heard):
            return
        opening, held = None, list[_Said]()
        for said in self._said():
            token_id = said.token.token_id
            if token_id < self.first_time_id:
                held.append(said)
                continue
            if held:
                yield from self._segment(opening, held, token_id, self.heard)
            opening, held = token_id, []
        if held:
            yield from self._segment(opening, held, None, self.heard)

    def forget(self) -> None:
        """Lets its words go, once they have been told."""
        self.tokens = []

    def words(self) -> Iterator[Word]:
        """What was said, word for word; nothing where words are not timed."""
        if self.heard is None or not self.heard.token_times:
            return
        for segment in self.segments():
            for word in words_of(segment.tokens, segment.spans, self._written_language):
                yield word.within(segment.start, segment.end)

    @property
    def _written_language(self) -> str:
        """That of the text, which may be a translation into English."""
        return "en" if _TRANSLATE in map(_spelled, self.tokens[:2]) else self.language

    def _said(self) -> Iterator[_Said]:
        """The tokens without those that say what the answer is, and that are heard again.

        Each begins where the one before it is over; one without a time of its own has the last.
        """
        spoken = list(dropwhile(self._is_control, self.tokens))
        if self.is_sequential:
            ids = [token.token_id for token in spoken]
            spoken = spoken[: heard_part(ids, self.first_time_id).num_tokens]
        times = self._token_times() or [0.0]
        starts, ends = chain((0.0,), times, repeat(times[-1])), chain(times, repeat(times[-1]))
        for token, start, over in zip(spoken, starts, ends, strict=False):
            if not self._is_control(token):
                yield _Said(token, start, over)

    def _token_times(self) -> list[float]:
        """Seconds, in the window, at which each token behind the heads was over, if known."""
        times = self.heard.token_times if self.heard is not None else ()
        return [position * self.mark_seconds for position in times]

    def _is_control(self, token: ScoredToken) -> bool:
        is_mark = token.token_id >= self.first_time_id
        return not is_mark and _CONTROL.fullmatch(_spelled(token)) is not None

    def _segment(
        self, opening: int | None, held: list[_Said], closing: int | None, heard: Heard
    ) -> Iterator[Segment]:
        """What was said between two marks; the ends of the window stand for missing ones."""
        tokens = tuple(said.token for said in held)
        text = b"".join(bytes(token.octets) for token in tokens).decode(errors="replace")
        start, end = self._seconds_of(opening, 0.0), self._seconds_of(closing, self.seconds)
        ids = (opening, *(token.token_id for token in tokens), closing)
        if text.strip():
            yield Segment(
                self.start + start,
                self.start + max(start, end),
                text,
                tuple(token_id for token_id in ids if token_id is not None),
                tokens,
                heard,
                self.start,
                tuple((self.start + said.start, self.start + said.end) for said in held),
            )

    def _seconds_of(self, mark: int | None, missing: float) -> float:
        """A mark's seconds in the window, no later than the sound."""
        seconds = missing if mark is None else (mark - self.first_time_id) * self.mark_seconds
        return min(seconds, self.seconds)


def _spelled(token: ScoredToken) -> str:
    """A token by itself; its text may have the rest of a character before it."""
    return bytes(token.octets).decode(errors="replace")


class Transcript:
    """Takes the events of one sound; `take_whole` gives its windows in order, each once."""

    def __init__(self, *, is_sequential: bool = False) -> None:
        self._is_sequential = is_sequential
        self.windows: dict[int, HeardWindow] = {}
        self._early: dict[int, list[TextAdded]] = {}
        self._num_taken = 0

    def add(self, event: WindowStarted | TextAdded) -> None:
        """A window's beginning, or the next of its words; these may come first."""
        match event:
            case WindowStarted():
                self.windows[event.number] = HeardWindow(
                    event.start_seconds,
                    event.seconds,
                    event.first_time_id,
                    event.mark_seconds,
                    self._is_sequential,
                )
                for early in self._early.pop(event.number, ()):
                    self._add_words(early)
            case TextAdded(choice=number) if number not in self.windows:
                self._early.setdefault(number, []).append(event)
            case TextAdded():
                self._add_words(event)

    def _add_words(self, event: TextAdded) -> None:
        window = self.windows[event.choice]
        window.tokens += event.tokens
        window.num_tokens = event.completion_tokens
        window.heard = event.heard or window.heard

    def take_whole(self) -> Iterator[HeardWindow]:
        """The next windows, in order, as far as they are over."""
        while (window := self.windows.get(self._num_taken)) is not None and window.heard:
            self._num_taken += 1
            yield window

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return max((w.start + w.seconds for w in self.windows.values()), default=0.0)

    @property
    def language(self) -> str:
        """That of the first window in which somebody speaks; else what silence sounded like."""
        speaking = (window.language for window in self._ordered() if any(window.segments()))
        return next(speaking, self.windows[0].language if 0 in self.windows else "")

    def segments(self) -> list[Segment]:
        """All of them, in order."""
        return trimmed(segment for window in self._ordered() for segment in window.segments())

    def words(self) -> list[Word]:
        """All of them, in order."""
        words = (word for window in self._ordered() for word in window.words())
        return list(in_order(words, self.duration))

    def _ordered(self) -> Iterator[HeardWindow]:
        return (self.windows[number] for number in sorted(self.windows))


def trimmed(segments: Iterable[Segment]) -> list[Segment]:
    """The segments so that their texts joined are the transcript's."""
    found = list(segments)
    if found:
        found[0] = replace(found[0], text=found[0].text.lstrip())
        found[-1] = replace(found[-1], text=found[-1].text.rstrip())
    return found
