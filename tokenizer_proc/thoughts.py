"""Tells a model's thoughts from its answer while the text comes in: pure, without sockets.

The regions are found by transformers' own parser, and this is the only module of the detokenizer
that imports transformers (see decision 2).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers.utils.chat_parsing import ResponseParser

from shared.parts import ThoughtMarks

# The names that makers of models give to thoughts in a response template; all else is the answer.
THOUGHT_FIELDS = frozenset({"thinking", "reasoning", "reasoning_content"})


class Parts(NamedTuple):
    """What a piece of text was, without marks, and whether any of it belonged to thoughts."""

    thoughts: str
    content: str
    is_thought: bool  # also true of a piece that holds nothing but a mark, or blanks of thoughts


class ThoughtSplitter:
    """Splits the text of one answer, the same way however it was cut.

    Thoughts have no blanks at their start and end, the answer has none between them and its first
    word. Text waits only while it may be a mark, or blanks that may be such an edge; what waits at
    the end is no mark and comes out.
    """

    def __init__(self, marks: ThoughtMarks) -> None:
        self._parser = ResponseParser(marks.template, prefix=marks.prefix)
        self._come_first = marks.come_first
        self._thoughts = _Thoughts()
        self._content = _Content()
        self._field: str | None = None  # the open region
        self._read(self._parser.initial_events)  # the caller has these already
        self._thoughts.held = self._content.held = ""

    def add(self, text: str, *, is_last: bool) -> Parts:
        """Takes more text; returns what has become certain, all of it if this was the last."""
        if self._come_first and self._content.has_begun:
            return Parts("", text, is_thought=False)
        was_thought = self._is_thinking
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finalize()[1]
        parts = self._read(events)
        rest = self._content.held if is_last and not self._thoughts.has_come else ""
        return Parts(parts.thoughts, parts.content + rest, parts.is_thought or was_thought)

    @property
    def _is_thinking(self) -> bool:
        return self._field in THOUGHT_FIELDS

    def _read(self, events: list[dict[str, Any]]) -> Parts:
        thoughts, content, is_thought = "", "", False
        for event in events:
            is_open = event["type"] != "region_close"
            self._field = event["field"] if is_open else None
            is_thought |= self._is_thinking
            if event["type"] == "region_open" and self._is_thinking:
                self._thoughts.begin()
            elif event["type"] == "region_chunk" and self._is_thinking:
                thoughts += self._thoughts.add(event["text"])
            elif event["type"] == "region_chunk":
                content += self._content.add(event["text"], self._thoughts.has_come)
        return Parts(thoughts, content, is_thought)


@dataclass
class _Thoughts:
    """Thoughts as they grow; where there are several, each begins on a line of its own."""

    held: str = ""  # blanks that come out with what follows them, if anything does
    has_come: bool = False  # there are some, though they may be empty
    has_begun: bool = False
    is_at_start: bool = False  # of one of several

    def begin(self) -> None:
        self.has_come = self.is_at_start = True
        self.held = "\n" if self.has_begun else ""

    def add(self, text: str) -> str:
        if self.is_at_start:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self.held += text
            return ""
        said, self.held = self.held + body, text[len(body) :]
        self.has_begun, self.is_at_start = True, False
        return said


@dataclass
class _Content:
    """The answer as it grows."""

    held: str = ""  # blanks before its first word
    has_begun: bool = False

    def add(self, text: str, after_thoughts: bool) -> str:
        if self.has_begun:
            return text
        if not text.strip():
            self.held += text
            return ""
        text = self.held + text
        self.held, self.has_begun = "", True
        return text.lstrip() if after_thoughts else text
