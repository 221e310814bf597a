"""How much all frontends have let in together: the limits are the server's, not a process's.

Each shows what it holds in its row of the sheet, and reads the others' rows before it lets anybody
in. A place is claimed before the rows are read (`Sheet.show`), so that two that claim the last one
at the same moment cannot both have it; that the first come is served first holds across all queues.
"""

from typing import NamedTuple

from frontend.sheet import Sheet

# A frontend that has not been seen for so long keeps its places, but no longer its turn.
UNSEEN_SECONDS = 3.0


class Held(NamedTuple):
    """What one frontend has let in."""

    under_way: float = 0  # answers that have a place
    queued: float = 0  # answers that wait for one
    queued_since: float = 0  # when the first in the queue came, in monotonic seconds; 0: none
    lookups: float = 0  # texts that a tokenizer looks up
    embeddings: float = 0  # requests for vectors
    open_requests: float = 0
    given_back: float = 0  # places so far


class Occupancy:
    """What this frontend shows and what the others do; `now` is monotonic seconds."""

    def __init__(self, sheet: Sheet, index: int) -> None:
        first = sheet.claim_held(len(Held._fields))
        self._columns = {name: column for column, name in enumerate(Held._fields, start=first)}
        self._seen_at = sheet.claim_held(1)
        self._index = index
        self._sheet = sheet

    def note_over(self, number: int, epoch: int) -> None:
        """Leaves out what a frontend held in its lives up to this one: they are over."""
        self._sheet.note_over(number, epoch)

    def show(self, held: Held, now: float) -> None:
        """Lets the others see what this frontend holds."""
        own = self._sheet.own
        for column, number in zip(self._columns.values(), held, strict=True):
            own[column] = number
        own[self._seen_at] = now

    def elsewhere(self, name: str) -> int:
        """How much of one kind the others hold together, by a field of `Held`."""
        return int(self._sheet.elsewhere(self._columns[name]))

    def claim(self, num_under_way: int, most: int) -> bool:
        """Shows so many answers with a place, if they and the others' are not too many."""
        if num_under_way + self.elsewhere("under_way") > most:
            return False
        column = self._columns["under_way"]
        before = self._sheet.own[column]
        self._sheet.show(column, num_under_way)
        if num_under_way + self.elsewhere("under_way") > most:
            self._sheet.own[column] = before
            return False
        return True

    def has_turn(self, since: float, now: float) -> bool:
        """True if nobody waits elsewhere who came before."""
        first = self.first_elsewhere(now)
        return first is None or (since, self._index) < first

    def first_elsewhere(self, now: float) -> tuple[float, int] | None:
        """When the first of those who wait elsewhere came, and to which frontend."""
        column = self._columns["queued_since"]
        waiting = [
            (since, number)
            for number, row in self._sheet.others()
            if (since := row[column]) and now - row[self._seen_at] < UNSEEN_SECONDS
        ]
        return min(waiting, default=None)
