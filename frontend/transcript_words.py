"""From tokens and their times to words and theirs, as Whisper's own tokenizer joins tokens. Pure.

The reference is transformers' `_combine_tokens_into_words` of Whisper.
"""

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from shared.parts import ScoredToken

Span = tuple[float, float]  # seconds at which something begins and ends

_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # so written
_OPENING = "\"'“¡¿([{-"
_CLOSING = "\"'.。,，!！?？:：”)]}、"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Word:
    """A word, with the punctuation and the space that belong to it; seconds in the whole sound."""

    start: float
    end: float
    text: str

    def within(self, start: float, end: float) -> "Word":
        """The same with no time outside of these: silence counts for the words at its sides."""
        own_start = min(max(self.start, start), end)
        return replace(self, start=own_start, end=min(max(self.end, own_start), end))


def words_of(tokens: Sequence[ScoredToken], spans: Sequence[Span], language: str) -> list[Word]:
    """The words of the text that these tokens are, given when each is said and in what language."""
    words = list(_whole_characters(tokens, spans))
    if language not in _WITHOUT_SPACES:
        words = _split_at_spaces(words)
    return _with_closings(_with_openings(words))


def in_order(words: Iterable[Word], duration: float) -> Iterator[Word]:
    """The words alone, without spaces; none begins before the one before it, or ends too late."""
    last = 0.0
    for word in words:
        start = min(max(word.start, last), duration)
        end = min(max(word.end, start), duration)
        if text := word.text.strip():
            yield Word(start, end, text)
            last = start


def _whole_characters(tokens: Sequence[ScoredToken], spans: Sequence[Span]) -> Iterator[Word]:
    """The tokens, where those that share a character are one."""
    whole = _text(b"".join(bytes(token.octets) for token in tokens))
    held, starts, length = b"", list[float](), 0
    for token, (start, end) in zip(tokens, spans, strict=True):
        held += bytes(token.octets)
        starts.append(start)
        text = _text(held)
        if not _ends_within_character(text, whole[length:]):
            yield Word(starts[0], end, text)
            held, starts, length = b"", [], length + len(text)


def _text(octets: bytes) -> str:
    return octets.decode(errors="replace")


def _ends_within_character(text: str, whole: str) -> bool:
    """The text has half a character where the whole, which begins as it does, has all of one."""
    position = text.find(_REPLACEMENT)
    return 0 <= position < len(whole) and whole[position] != _REPLACEMENT


def _split_at_spaces(parts: Iterable[Word]) -> list[Word]:
    words = list[Word]()
    for part in parts:
        is_punctuation = part.text.strip() in string.punctuation
        if part.text.startswith(" ") or is_punctuation or not words:
            words.append(part)
        else:
            words[-1] = _joined(words[-1], part)
    return words


def _with_openings(words: Sequence[Word]) -> list[Word]:
    """The words, where such as `(` are a part of the one that follows."""
    found = list[Word]()
    for word in reversed(words):
        if found and word.text.startswith(" ") and word.text.strip() in _OPENING:
            found[-1] = _joined(word, found[-1])
        else:
            found.append(word)
    return found[::-1]


def _with_closings(words: Iterable[Word]) -> list[Word]:
    """The words, where such as `!` are a part of the one before."""
    found = list[Word]()
    for word in words:
        if found and not found[-1].text.endswith(" ") and word.text in _CLOSING:
            found[-1] = _joined(found[-1], word)
        else:
            found.append(word)
    return found


def _joined(first: Word, second: Word) -> Word:
    return Word(first.start, second.end, first.text + second.text)
