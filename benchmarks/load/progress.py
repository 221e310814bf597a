"""A line on the terminal while a load runs; nothing where there is no terminal."""

from types import TracebackType
from typing import Any

from tqdm import tqdm

from benchmarks.load.outcome import Failed, Refused
from benchmarks.load.traffic import Traffic

REDRAW_SECONDS = 0.5  # each drawing delays the reading of streams a little


class Progress:
    """Requests that have ended, and how many are open, refused and failed."""

    def __init__(self, num_requests: int | None) -> None:
        self._bar: Any = tqdm(
            total=num_requests,
            unit=" requests",
            mininterval=REDRAW_SECONDS,
            miniters=0,
            disable=None,
        )
        self._num_ended = self._num_refused = self._num_failed = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, traffic: Traffic[Any]) -> None:
        """Called at every change; draws seldom."""
        for outcome in traffic.outcomes[self._num_ended :]:
            self._num_refused += isinstance(outcome, Refused)
            self._num_failed += isinstance(outcome, Failed)
        users = f"{traffic.num_users} users, " if traffic.num_users else ""
        ended = f"{self._num_refused} refused, {self._num_failed} failed"
        self._bar.set_postfix_str(f"{users}{traffic.num_open} open, {ended}", refresh=False)
        num_new = len(traffic.outcomes) - self._num_ended
        self._num_ended += num_new
        self._bar.update(num_new)
