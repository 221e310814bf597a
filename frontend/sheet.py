"""Numbers that all frontends see: a row for each of them, which it alone writes.

The rows are mapped memory of one file in the run directory, so that no frontend asks another: one
that stands still holds nobody up, and what a dead one has counted is not lost. A number is a double
at a multiple of eight bytes, which a processor writes and reads whole.
"""

import mmap
import os
from pathlib import Path

NUM_COLUMNS = 1024  # of which a part is used; two pages a row
_ROW_BYTES = 8 * NUM_COLUMNS


class Sheet:
    """One row of numbers for each frontend; `own` is this one's.

    Columns are claimed in the order in which the program is built, which is the same everywhere.
    """

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        numbers = memoryview(memory).cast("d")
        self.rows = [
            numbers[start : start + NUM_COLUMNS] for start in range(0, len(numbers), NUM_COLUMNS)
        ]
        self.own = self.rows[index]
        self._num_claimed = 0

    @classmethod
    def shared(cls, run_directory: str, num_rows: int, index: int) -> "Sheet":
        """The rows of all frontends of a run; the first to come makes the file."""
        path = Path(run_directory) / "frontend.sheet"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, num_rows * _ROW_BYTES)  # or a full disk would kill
            return cls(mmap.mmap(descriptor, num_rows * _ROW_BYTES), index)
        finally:
            os.close(descriptor)

    @classmethod
    def private(cls) -> "Sheet":
        """A row that nobody else sees."""
        return cls(mmap.mmap(-1, _ROW_BYTES), 0)

    def claim(self, count: int) -> int:
        """Takes so many columns for the caller, and returns the first."""
        first = self._num_claimed
        self._num_claimed += count
        if self._num_claimed > NUM_COLUMNS:
            raise RuntimeError(f"a sheet has {NUM_COLUMNS} columns, too few")
        return first

    def total(self, column: int) -> float:
        """The sum over all frontends."""
        return sum(row[column] for row in self.rows)
