"""Who may start, who waits for a place, and who is refused at the door. Pure: time comes in.

A place is the right to have one answer under way; `Limits.max_concurrent` of them are given out,
first come, first served, whichever frontend the callers have come to. A request for several answers
takes all its places at once, and whoever came later waits behind it, however few it needs: so none
waits for ever.
"""

import math
from dataclasses import dataclass

from frontend.ledger import Ledger
from frontend.occupancy import Held, Occupancy
from frontend.submission import Wanted
from shared.errors import ErrorCode, RequestError

MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
_SHOW_SECONDS = 0.5  # from one sign of life for the other frontends to the next, at least
_PACE_SECONDS = 30.0  # what was measured so long ago weighs a third of what is measured now


@dataclass(frozen=True)
class Limits:
    """How much is let in, and for how long."""

    max_concurrent: int  # answers that have a place
    max_queue: int  # answers that wait for one
    queue_timeout_seconds: float
    request_timeout_seconds: float  # from arrival to outcome
    first_token_timeout_seconds: float  # from a place to the first token


@dataclass(frozen=True)
class Waiting:
    """One request in the queue; the ledger has an entry for each of its ids."""

    request_ids: tuple[str, ...]
    wanted: Wanted
    since: float


class Pace:
    """How many answers give their places back per second while others wait for them."""

    def __init__(self) -> None:
        self._answers = self._seconds = 1.0  # a guess that the first measurements outweigh

    def note(self, num_answers: int, seconds: float) -> None:
        """Takes one more measurement."""
        kept = math.exp(-seconds / _PACE_SECONDS)
        self._answers = self._answers * kept + num_answers
        self._seconds = self._seconds * kept + seconds

    def seconds_for(self, num_answers: int) -> float:
        """How long as many answers take; infinite where none has ended for very long."""
        return num_answers * self._seconds / self._answers if self._answers else math.inf


class Admission:
    """The door, and the queue behind it; the ledger knows how many answers are where."""

    def __init__(self, ledger: Ledger, limits: Limits, occupancy: Occupancy) -> None:
        self._ledger = ledger
        self._limits = limits
        self._occupancy = occupancy  # of the other frontends, whose answers count as well
        self._num_shown = 0  # changes of the ledger that the others may see
        self._shown_at = 0.0
        self._queue: dict[str, Waiting] = {}  # by first id; a dict keeps the order
        self._pace = Pace()
        self._observed_at = 0.0
        self._num_given_back = 0
        self._was_waited_for = False  # a place, at the last observation

    def refusal(self, num_answers: int) -> RequestError | None:
        """Why a request for so many answers may neither start nor wait, if so."""
        num_queued = self.num_queued
        # With room for all who wait as well, nobody has to: they are on their way to their places.
        if self._num_under_way + num_queued + num_answers <= self._limits.max_concurrent:
            return None
        most = self._limits.max_queue
        # A request for more answers than may wait waits alone: else it would need luck to start.
        if num_queued + num_answers <= most or (most and not num_queued):
            return None
        sentence = (
            f"The server makes at most {self._limits.max_concurrent} answers at a time and lets"
            f" {self._limits.max_queue} more wait, of which {num_queued} do; try again later."
        )
        return RequestError(
            ErrorCode.QUEUE_FULL, sentence, retry_after_seconds=self._retry_after_seconds()
        )

    def join(self, waiting: Waiting) -> None:
        """Puts a request that was not refused at the end of the queue."""
        self._queue[waiting.request_ids[0]] = waiting

    def remove(self, request_id: str) -> None:
        """Takes a request that has ended out of the queue, if it still waits."""
        self._queue.pop(request_id, None)

    def take(self, now: float) -> Waiting | None:
        """The first of the queue, if none came before elsewhere and its answers have places."""
        waiting = self._first()
        if waiting is None or not self._occupancy.has_turn(waiting.since, now):
            return None
        num_under_way = self._ledger.num_under_way + waiting.wanted.total_choices
        if not self._occupancy.claim(num_under_way, self._limits.max_concurrent):
            return None
        self.remove(waiting.request_ids[0])
        return waiting

    def show(self, now: float) -> int | None:
        """Lets the other frontends see what has changed here.

        Returns the number of the one whose turn it is, where places may have become free for it.
        """
        has_changed = self._ledger.num_changes != self._num_shown
        if not has_changed and now - self._shown_at < _SHOW_SECONDS:
            return None
        self._num_shown, self._shown_at = self._ledger.num_changes, now
        self._occupancy.show(self._held(), now)
        return self._whose_turn(now) if has_changed else None

    def _held(self) -> Held:
        first, ledger = self._first(), self._ledger
        return Held(
            ledger.num_under_way,
            ledger.num_queued,
            first.since if first else 0.0,
            ledger.num_lookups,
            ledger.num_embeddings,
            len(ledger),
            ledger.num_given_back,
        )

    def _whose_turn(self, now: float) -> int | None:
        first, elsewhere = self._first(), self._occupancy.first_elsewhere(now)
        if elsewhere is None or self._num_under_way >= self._limits.max_concurrent:
            return None
        since, index = elsewhere
        return None if first is not None and first.since < since else index

    def take_late(self, now: float) -> tuple[Waiting, RequestError] | None:
        """The first of the queue, if it has waited too long, and what its caller is told."""
        waiting = self._first()
        if waiting is None or now - waiting.since < self._limits.queue_timeout_seconds:
            return None
        seconds = self._limits.queue_timeout_seconds
        sentence = f"The server was too busy to begin within {seconds:g} seconds; try again later."
        error = RequestError(
            ErrorCode.OVERLOADED, sentence, retry_after_seconds=self._retry_after_seconds()
        )
        self.remove(waiting.request_ids[0])
        return waiting, error

    def observe(self, now: float) -> None:
        """Measures the pace; to be called when places may have been given back."""
        if self._was_waited_for or self._queue:
            num_given_back = self._ledger.num_given_back + self._occupancy.elsewhere("given_back")
            if self._was_waited_for:  # less than before, where a frontend has begun anew
                newly = max(0, num_given_back - self._num_given_back)
                self._pace.note(newly, now - self._observed_at)
            self._num_given_back = num_given_back
        self._observed_at = now
        self._was_waited_for = bool(self._queue)

    def _first(self) -> Waiting | None:
        return next(iter(self._queue.values()), None)

    @property
    def num_open(self) -> int:
        """Open requests of all frontends."""
        return len(self._ledger) + self._occupancy.elsewhere("open_requests")

    @property
    def num_queued(self) -> int:
        """Answers of all frontends that wait for a place."""
        return self._ledger.num_queued + self._occupancy.elsewhere("queued")

    @property
    def _num_under_way(self) -> int:
        return self._ledger.num_under_way + self._occupancy.elsewhere("under_way")

    def _retry_after_seconds(self) -> float:
        seconds = self._pace.seconds_for(self.num_queued)
        return min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
