"""How much all frontends have let in together: the limits are the server's, not a process's.

Each shows what it holds in its row of the sheet, and reads the others' rows before it lets anybody
in. A place is claimed before the rows are read, so that two that claim the last one at the same
moment cannot both have it; that the first come is served first holds across all queues.
"""

from typing import NamedTuple

from frontend.sheet import Sheet

# A frontend that has not been seen for so long keeps its places, but no longer its turn.
UNSEEN_SECONDS = 3.0


class Held(NamedTuple):
    """What one frontend has let in; all zero in one that is dead."""

    under_way: float = 0  # answers that have a place
    queued: float = 0  # answers that wait for one
    queued_since: float = 0  # when the first in the queue came, in monotonic seconds; 0: none
    lookups: float = 0  # texts that a tokenizer looks up
    embeddings: float = 0  # requests for vectors
    open_requests: float = 0
    given_back: float = 0  # places so far


class Occupancy:
    """This frontend's row and the sums of the others'; `now` is monotonic seconds."""

    def __init__(self, sheet: Sheet, index: int) -> None:
        first = sheet.claim(len(Held._fields))
        self._columns = {name: column for column, name in enumerate(Held._fields, start=first)}
        self._seen_at = sheet.claim(1)
        self._index = index
        self._own = sheet.own
        self._rows = sheet.rows
        self._others = [row for number, row in enumerate(sheet.rows) if number != index]
        self.clear(index)  # of what an earlier life has left

    def clear(self, index: int) -> None:
        """Shows that a frontend holds nothing: it has died, or has just begun."""
        row = self._rows[index]
        for column in self._columns.values():
            row[column] = 0

    def show(self, held: Held, now: float) -> None:
        """Lets the others see what this frontend holds."""
        for column, number in zip(self._columns.values(), held, strict=True):
            self._own[column] = number
        self._own[self._seen_at] = now

    def elsewhere(self, name: str) -> int:
        """How much of one kind the others hold together, by a field of `Held`."""
        column = self._columns[name]
        return int(sum(row[column] for row in self._others))

    def claim(self, num_under_way: int, most: int) -> bool:
        """Shows so many answers with a place, if they and the others' are not too many."""
        if num_under_way + self.elsewhere("under_way") > most:
            return False
        column = self._columns["under_way"]
        before, self._own[column] = self._own[column], num_under_way
        if num_under_way + self.elsewhere("under_way") > most:
            self._own[column] = before
            return False
        return True

    def has_turn(self, since: float, now: float) -> bool:
        """True if nobody waits elsewhere who came before."""
        first = self.first_elsewhere(now)
        return first is None or (since, self._index) < first

    def first_elsewhere(self, now: float) -> tuple[float, int] | None:
        """When the first of those who wait elsewhere came, and to which frontend."""
        if not self._others:
            return None
        column = self._columns["queued_since"]
        waiting = [
            (row[column], index)
            for index, row in enumerate(self._rows)
            if index != self._index and row[column] and now - row[self._seen_at] < UNSEEN_SECONDS
        ]
        return min(waiting, default=None)
