"""Finds stop strings in streamed text, and holds back only what may yet become one.

Owns the text between "produced" and "certain" of one request. Must not know tokens, tokenizers or
what a client does with the text.
"""

from dataclasses import dataclass


class StopMatcher:
    """Passes text through until the first of `stops`, which is kept out of the output.

    Of all matches the one that starts first wins, and of those the one that completes first. What
    comes out does not depend on how the text was split, and the cost of a call does not depend on
    what was streamed before it. The stops must not be empty strings.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.matched: str | None = None  # the stop string that ended the text; set once
        self._searches = [_Search(stop) for stop in stops]
        self._held = ""
        self._found: _Match | None = None

    def add(self, text: str) -> str:
        """Take more text; return what is certain to come before any stop string."""
        if self.matched is not None:
            return ""
        num_scanned = len(self._held)
        self._held += text
        for num_read in range(num_scanned + 1, len(self._held) + 1):
            self._advance(self._held[num_read - 1], num_read)
            if self._found is not None and not self._may_start_before(self._found.start, num_read):
                return self._finish(self._found)
        return self._release(len(self._held) - self._longest_partial())

    def flush(self) -> str:
        """The text is over: return what was held back, up to a match that was still open."""
        if self._found is not None:
            return self._finish(self._found)
        return self._release(len(self._held))

    def _advance(self, char: str, num_read: int) -> None:
        for search in self._searches:
            if not search.completes(char):
                continue
            start = num_read - len(search.stop)
            if self._found is None or start < self._found.start:
                self._found = _Match(start, search.stop)

    def _may_start_before(self, start: int, num_read: int) -> bool:
        return num_read - self._longest_partial() < start

    def _longest_partial(self) -> int:
        return max((search.num_matched for search in self._searches), default=0)

    def _finish(self, match: "_Match") -> str:
        self.matched = match.stop
        self._found = None
        text, self._held = self._held[: match.start], ""
        return text

    def _release(self, num_certain: int) -> str:
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        if self._found is not None:
            self._found = _Match(self._found.start - num_certain, self._found.stop)
        return certain


@dataclass(frozen=True)
class _Match:
    """A complete occurrence; `start` counts from the beginning of the held text."""

    start: int
    stop: str


class _Search:
    """Knuth-Morris-Pratt for one stop string: constant work per character, whatever the text."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0  # the text read so far ends with this proper prefix of `stop`
        self._borders = _borders(stop)

    def completes(self, char: str) -> bool:
        """Read one character; true when the text now ends with the whole stop string."""
        while self.num_matched and self.stop[self.num_matched] != char:
            self.num_matched = self._borders[self.num_matched - 1]
        if self.stop[self.num_matched] == char:
            self.num_matched += 1
        if self.num_matched < len(self.stop):
            return False
        self.num_matched = self._borders[-1]
        return True


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`: the length of its longest proper prefix that also ends it."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
