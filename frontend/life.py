"""Which life of which room: a room that is started anew is another one to whoever waited for it."""

from typing import NamedTuple


class Life(NamedTuple):
    """One life of one room; in messages it is two fields."""

    room: str  # such as `worker-0`
    epoch: int

    @property
    def number(self) -> int:
        """Which of the rooms of its kind, from 0."""
        return int(self.room.rpartition("-")[2])
