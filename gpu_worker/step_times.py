"""Where the time of steps goes: seconds of each part, for metrics, and medians for the log.

The parts are what the host does, one after the other. On CUDA `forward` and `sample` are the time
of launching that work, and `wait` is what of the device's own time is left when the host has
nothing else to do. On the CPU they are the time of the work, and `wait` is next to nothing; there
most output layers wait for whoever looks at their logits (`linears.lazy_logits`), and so are part
of `sample`.
"""

import logging
import statistics
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

PLAN = "plan"  # the scheduler's
PREPARE = "prepare"  # the plan to tensors, on their way to the device
FORWARD = "forward"
SAMPLE = "sample"  # with scores of tokens, and with logits that had waited for it
WAIT = "wait"  # for the results; of a runner that marks nothing, all that it does
SEND = "send"  # recording the results and sending them
PARTS = (PLAN, PREPARE, FORWARD, SAMPLE, WAIT, SEND)

LOG_SECONDS = 1.0  # at least, from one line of the log to the next


class StepTimes:
    """A stopwatch that the step loop and its runner share; a step costs it a few microseconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.totals = dict.fromkeys(PARTS, 0.0)  # seconds so far
        self._clock = clock
        self._step = dict.fromkeys(PARTS, 0.0)
        self._marked_at = 0.0
        self._recent: list[tuple[float, ...]] = []  # steps since the last line, if lines are wanted
        self._logged_at = 0.0

    def begin(self) -> None:
        """The time until now belongs to no part."""
        self._marked_at = self._clock()

    def mark(self, part: str) -> None:
        """The time since the last mark was this part's."""
        now = self._clock()
        self._step[part] += now - self._marked_at
        self._marked_at = now

    def end(self) -> None:
        """The step has ended."""
        step, self._step = self._step, dict.fromkeys(PARTS, 0.0)
        for part, seconds in step.items():
            self.totals[part] += seconds
        if not logger.isEnabledFor(logging.DEBUG):
            return
        self._recent.append(tuple(step.values()))
        if self._marked_at >= self._logged_at + LOG_SECONDS:
            self._log()

    def _log(self) -> None:
        medians = [statistics.median(column) for column in zip(*self._recent, strict=True)]
        shown = ", ".join(f"{p} {1e3 * s:.3f}" for p, s in zip(PARTS, medians, strict=True))
        logger.debug("median ms of %d steps: %s", len(self._recent), shown)
        self._recent.clear()
        self._logged_at = self._marked_at
