"""Numbers that all frontends see: a row for each of them, which it alone writes.

The rows are memory that all frontends map, of a file on no disk (memfd_create(2)) that the launcher
holds. So no frontend asks another, and one that stands still holds nobody up.

A row begins with the epoch of the life that writes it. Then comes what that life *holds*, which
ends with it, and then what its frontend has *counted*, which the next life continues:

    the launcher  starts a life once the one before has ended: a row has one writer at any time
    a new life    sets all that is held to zero, then writes its epoch
    a reader      adds up what is held, but leaves out rows of lives that it knows to be over

Nobody clears another's row, so it does not matter who hears of a death first, or how late: the
dead's numbers are left out by whoever knows of it, and those of the next life are never. They
count from the beginning, also for a reader that does not know of that life yet.

A number is a double at a multiple of eight bytes. CPython moves one at once, where it is compiled
for x86-64 or AArch64, and these write and read it whole: a reader finds the old number or the new.
"""

import mmap
import os
import threading
from collections.abc import Iterator, MutableSequence

NUM_COLUMNS = 1024  # of which a part is used; two pages a row
_ROW_BYTES = 8 * NUM_COLUMNS
_EPOCH = 0  # the column that says whose life it is
_FIRST_COUNTED = 16  # before it is what ends with a life


class Sheet:
    """One row of numbers for each frontend; `own` is this one's, whose life begins here.

    Columns are claimed in the order in which the program is built, which is the same everywhere.
    """

    def __init__(self, memory: mmap.mmap, index: int, epoch: int) -> None:
        numbers = memoryview(memory).cast("d")
        self.rows = [
            numbers[start : start + NUM_COLUMNS] for start in range(0, len(numbers), NUM_COLUMNS)
        ]
        self.own = self.rows[index]
        self._others = [(number, row) for number, row in enumerate(self.rows) if number != index]
        self._over = [0] * len(self.rows)  # of each frontend, the last life that is over
        self._num_held = 1
        self._num_counted = _FIRST_COUNTED
        self._fence = threading.Lock()
        self._fence.acquire()
        begin_life(self.own, epoch)

    @classmethod
    def shared(cls, descriptor: int, num_rows: int, index: int, epoch: int) -> "Sheet":
        """The rows of all frontends, in a file in memory; closes the descriptor."""
        try:
            os.posix_fallocate(descriptor, 0, num_rows * _ROW_BYTES)  # zeros, where it is new
            return cls(mmap.mmap(descriptor, num_rows * _ROW_BYTES), index, epoch)
        finally:
            os.close(descriptor)

    @classmethod
    def private(cls) -> "Sheet":
        """A row that nobody else sees."""
        return cls(mmap.mmap(-1, _ROW_BYTES), 0, 1)

    def claim_held(self, count: int) -> int:
        """Takes so many columns for what the caller holds, and returns the first."""
        first = self._num_held
        self._num_held = _within(_FIRST_COUNTED, first + count)
        return first

    def claim_counted(self, count: int) -> int:
        """Takes so many columns for what the caller counts, and returns the first."""
        first = self._num_counted
        self._num_counted = _within(NUM_COLUMNS, first + count)
        return first

    def total(self, column: int) -> float:
        """The sum of what all frontends have counted, in all their lives."""
        return sum(row[column] for row in self.rows)

    def elsewhere(self, column: int) -> float:
        """The sum of what the other frontends hold."""
        return sum(row[column] for _, row in self.others())

    def others(self) -> "Iterator[tuple[int, memoryview[float]]]":
        """The other frontends, by number, that may hold something: whose life may go on."""
        return ((number, row) for number, row in self._others if row[_EPOCH] > self._over[number])

    def note_over(self, number: int, epoch: int) -> None:
        """Takes word that the lives of a frontend are over, up to this one."""
        self._over[number] = max(self._over[number], epoch)

    def show(self, column: int, number: float) -> None:
        """Writes to the own row; all see it before this frontend reads another's.

        So of two that show what they want and then look at each other, at least one sees the other.
        Left alone, a processor reads on while its write still waits in the store buffer. No read
        passes a lock's atomic instructions on x86-64, nor a release and then an acquisition on
        AArch64.
        """
        self.own[column] = number
        self._fence.release()
        self._fence.acquire()


def begin_life(row: "MutableSequence[float] | memoryview[float]", epoch: int) -> None:
    """Makes a row a new life's, which holds nothing; its frontend's earlier lives are over."""
    for column in range(_EPOCH + 1, _FIRST_COUNTED):
        row[column] = 0
    row[_EPOCH] = epoch


def _within(most: int, num_columns: int) -> int:
    if num_columns > most:
        raise RuntimeError(f"{num_columns} columns are claimed where a sheet has {most}: too few")
    return num_columns
