"""From the tokens of a sound's windows to its transcript: segments, text, language. Pure.

A window's answer is control tokens that say what it is, then text between marks of time. Windows
were cut where it was quiet, so each one's last segment is whole (see `tokenizer_proc/windows.py`).
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from frontend.events import TextAdded, WindowStarted
from shared.parts import ScoredToken

MAX_NO_SPEECH = 0.6  # above, and where the text is unlikely as well, nobody spoke (Whisper)
MIN_AVG_LOGPROB = -1.0
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_CONTROL = re.compile(r"<\|[^|<>]*\|>")


@dataclass(frozen=True)
class Segment:
    """A part of the transcript between two marks of time; seconds in the whole sound."""

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[ScoredToken, ...]
    avg_logprob: float  # of its window
    no_speech_prob: float  # of its window
    window_start: float

    @property
    def compression_ratio(self) -> float:
        """How much smaller the text can be made: high where it repeats itself."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0


@dataclass
class HeardWindow:
    """A window, and what has been heard in it so far."""

    start: float
    seconds: float
    first_time_id: int  # see `WindowRead`
    mark_seconds: float
    tokens: list[ScoredToken] = field(default_factory=list)
    num_tokens: int = 0
    is_over: bool = False

    @property
    def language(self) -> str:
        """The code of its language; "" where the model knows one alone."""
        first = _spelled(self.tokens[0]) if self.tokens else ""
        head = _LANGUAGE.fullmatch(first)
        return head[1] if head else ""

    @property
    def no_speech_prob(self) -> float:
        """How likely it is that nobody speaks."""
        told = self.tokens[0].top if self.tokens else ()
        return math.exp(told[0].logprob) if told else 0.0

    @property
    def avg_logprob(self) -> float:
        """The mean logarithm of how likely its words and marks were."""
        logprobs = [t.logprob for t in self._words() if t.logprob is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0

    def segments(self) -> Iterator[Segment]:
        """What was said, in order; nothing where nobody spoke."""
        if self.no_speech_prob > MAX_NO_SPEECH and self.avg_logprob < MIN_AVG_LOGPROB:
            return
        start, held = 0.0, list[ScoredToken]()
        for token in self._words():
            if token.token_id < self.first_time_id:
                held.append(token)
                continue
            mark = (token.token_id - self.first_time_id) * self.mark_seconds
            seconds = min(mark, self.seconds)
            if held:
                yield from self._segment(start, seconds, held)
                held = []
            start = seconds
        if held:
            yield from self._segment(start, self.seconds, held)

    def _words(self) -> Iterator[ScoredToken]:
        """The tokens without those that say what the answer is."""
        for token in self.tokens:
            is_mark = token.token_id >= self.first_time_id
            if is_mark or not _CONTROL.fullmatch(_spelled(token)):
                yield token

    def _segment(self, start: float, end: float, held: list[ScoredToken]) -> Iterator[Segment]:
        text = b"".join(bytes(token.octets) for token in held).decode(errors="replace")
        if text.strip():
            yield Segment(
                self.start + start,
                self.start + max(start, end),
                text,
                tuple(token.token_id for token in held),
                tuple(held),
                self.avg_logprob,
                self.no_speech_prob,
                self.start,
            )


def _spelled(token: ScoredToken) -> str:
    """A token by itself; its text may have the rest of a character before it."""
    return bytes(token.octets).decode(errors="replace")


class Transcript:
    """Takes the events of one sound; `take_whole` gives its windows in order, each once."""

    def __init__(self) -> None:
        self.windows: dict[int, HeardWindow] = {}
        self._early: dict[int, list[TextAdded]] = {}
        self._num_taken = 0

    def add(self, event: WindowStarted | TextAdded) -> None:
        """A window's beginning, or the next of its words; these may come first."""
        match event:
            case WindowStarted():
                self.windows[event.number] = HeardWindow(
                    event.start_seconds, event.seconds, event.first_time_id, event.mark_seconds
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
        window.is_over = window.is_over or event.finish_reason is not None

    def take_whole(self) -> Iterator[HeardWindow]:
        """The next windows, in order, as far as they are over."""
        while (window := self.windows.get(self._num_taken)) is not None and window.is_over:
            self._num_taken += 1
            yield window

    @property
    def duration(self) -> float:
        """Seconds of sound."""
        return max((w.start + w.seconds for w in self.windows.values()), default=0.0)

    @property
    def language(self) -> str:
        """The language of the first window."""
        return self.windows[0].language if 0 in self.windows else ""

    def segments(self) -> list[Segment]:
        """All of them, in order."""
        windows = (self.windows[number] for number in sorted(self.windows))
        return trimmed(segment for window in windows for segment in window.segments())


def trimmed(segments: Iterable[Segment]) -> list[Segment]:
    """The segments so that their texts joined are the transcript's."""
    found = list(segments)
    if found:
        found[0] = replace(found[0], text=found[0].text.lstrip())
        found[-1] = replace(found[-1], text=found[-1].text.rstrip())
    return found
