"""The sequences that wait for a row and blocks: answers first, then vectors, each in order. Pure.

Somebody reads an answer as it comes; a program waits for the vectors of thousands of texts. So
answers go before sequences that are pooled, and pass those that have begun. Where answers never
end, every `MAX_OVERTAKES` of them one that is pooled is admitted all the same.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from scheduler.sequence import Sequence

MAX_OVERTAKES = 8


class WaitingLine:
    """Two queues in order of arrival."""

    def __init__(self) -> None:
        self._num_overtakes = 0  # answers admitted while the first of the pooled was the first
        self._answers: list[Sequence] = []
        self._pooled: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._answers) + len(self._pooled)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._answers
        yield from self._pooled

    @property
    def has_answers(self) -> bool:
        """True when a sequence waits that is not pooled."""
        return bool(self._answers)

    def first(self, is_ready: Callable[[Sequence], bool]) -> Sequence | None:
        """The next to be admitted, of those that are ready; None while no answer is."""
        is_overtaken = self._pooled and self._num_overtakes >= MAX_OVERTAKES
        if self._answers and not is_overtaken:
            return next((s for s in self._answers if is_ready(s)), None)
        return self._pooled[0] if self._pooled else None

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence where its arrival belongs: it may have waited before."""
        insort(self._queue_of(sequence), sequence, key=arrival)

    def admit(self, sequence: Sequence) -> None:
        """Takes out a sequence that is admitted."""
        is_overtaking = self._pooled and not sequence.is_pooled
        self._num_overtakes = self._num_overtakes + 1 if is_overtaking else 0
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, however many wait."""
        remove(self._queue_of(sequence), sequence)

    def check(self) -> None:
        """Asserts that nobody was overtaken, and that nobody who waits holds blocks."""
        for queue in (self._answers, self._pooled):
            assert_in_order(queue)
        assert not any(sequence.blocks for sequence in self)

    def _queue_of(self, sequence: Sequence) -> list[Sequence]:
        return self._pooled if sequence.is_pooled else self._answers


def arrival(sequence: Sequence) -> int:
    """Its number in the order of arrival."""
    return sequence.arrival


def remove(queue: list[Sequence], sequence: Sequence) -> None:
    """Takes a sequence out of a queue that is in order of arrival, however long it is."""
    del queue[bisect_left(queue, sequence.arrival, key=arrival)]


def assert_in_order(queue: list[Sequence]) -> None:
    """Asserts that the queue is in order of arrival."""
    arrivals = [sequence.arrival for sequence in queue]
    assert arrivals == sorted(arrivals), "somebody was overtaken"
