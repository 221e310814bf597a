"""Whether a death is mended by a restart. Pure: time comes in."""

from collections import deque

RESTART_WINDOW_SECONDS = 600.0


class DeathCount:
    """How often processes have died of late, and how often they may."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._deaths: deque[float] = deque()

    def allows_restart(self, now: float) -> bool:
        """Takes a death; false when it is one more than the limit within the window."""
        while self._deaths and now - self._deaths[0] > RESTART_WINDOW_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now)
        return len(self._deaths) <= self._limit
