"""The rows of the runner's tables, and which sequence has which."""

from collections.abc import Iterable
from heapq import heappop, heappush

from scheduler.sequence import Sequence


class RowPool:
    """Gives out the lowest free row; a running sequence has exactly one."""

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows))  # a heap
        self._owners: dict[int, Sequence] = {}

    @property
    def has_free(self) -> bool:
        """True when a row can be taken."""
        return bool(self._free)

    def owner(self, row: int) -> Sequence | None:
        """The sequence that has this row, if any."""
        return self._owners.get(row)

    def take(self, sequence: Sequence) -> None:
        """Gives the sequence a row."""
        sequence.row = heappop(self._free)
        self._owners[sequence.row] = sequence

    def give_back(self, sequence: Sequence) -> None:
        """Takes the sequence's row back."""
        del self._owners[sequence.row]
        heappush(self._free, sequence.row)

    def close_gaps(self) -> list[tuple[int, Sequence]]:
        """Gives the sequences in the highest rows the lowest free ones, until no gap is left.

        Returns each with the row that it had, which stays free.
        """
        rows = sorted(self._owners)
        gaps = [row for row in range(len(rows)) if row not in self._owners]
        moved = []
        for source, target in zip(reversed(rows), gaps, strict=False):
            sequence = self._owners.pop(source)
            sequence.row = target
            self._owners[target] = sequence
            moved.append((source, sequence))
        self._free = sorted({*self._free, *rows} - self._owners.keys())
        return moved

    def check(self, running: Iterable[Sequence]) -> None:
        """Asserts that exactly these have rows, and nobody else's."""
        assert self._owners == {sequence.row: sequence for sequence in running}
        assert not self._owners.keys() & set(self._free), "a row is both free and used"
