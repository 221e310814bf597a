"""Plan, compute, record: one step after the other, or with the next one launched before.

With overlap the order of a turn is: plan step n + 1, launch its forward pass, wait for the tokens
of step n, launch the sampling of n + 1, record n. So the device has the next forward pass to go on
with while the host waits, records, sends and plans. The settings that need a step's tokens on the
host, such as penalties, have them: sampling comes after them. Where the scheduler will not plan
ahead, a step is recorded before the next is planned.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gpu_worker.runner import Flight, Runner, launch
from gpu_worker.step_times import PLAN, SAMPLE, WAIT, StepTimes
from scheduler.outcome import SampledToken
from scheduler.plan import StepPlan
from scheduler.scheduler import Scheduler


class Finished(NamedTuple):
    """A step that is over."""

    plan: StepPlan
    outputs: list[SampledToken]


class _UnderWay(NamedTuple):
    plan: StepPlan
    flight: Flight


class Pipeline:
    """Runs the scheduler's plans on a runner, in order."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, times: StepTimes, *, overlaps: bool
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._times = times
        self._overlaps = overlaps
        self._under_way: _UnderWay | None = None

    def advance(self, *, may_plan_ahead: bool = True) -> Finished | None:
        """One turn; None if no step is over with it. What is under way is recorded in any case."""
        self._times.begin()
        if self._overlaps:
            return self._advance_ahead(may_plan_ahead)
        plan = self._scheduler.schedule()
        if plan.is_empty:
            return None
        self._times.mark(PLAN)
        result = self._runner.execute(plan)
        self._times.mark(WAIT)
        return Finished(plan, self._scheduler.apply(plan, result))

    def _advance_ahead(self, may_plan_ahead: bool) -> Finished | None:
        before, self._under_way = self._under_way, None
        if before is None:
            self._launch(self._scheduler.schedule())
            self._sample({})
            return None
        if may_plan_ahead:
            plan = self._scheduler.schedule_ahead()
            if plan is None:
                self._times.mark(PLAN)  # what it took to say no
            else:
                self._launch(plan)
        result = before.flight.result()
        self._times.mark(WAIT)
        self._sample(result.by_row(before.plan))
        return Finished(before.plan, self._scheduler.apply(before.plan, result))

    def _launch(self, plan: StepPlan) -> None:
        if not plan.is_empty:
            self._times.mark(PLAN)
            self._under_way = _UnderWay(plan, launch(self._runner, plan))

    def _sample(self, fed: Mapping[int, int]) -> None:
        """Launches the sampling of what is under way; `fed` as in `Flight.sample`."""
        if self._under_way is not None:
            self._under_way.flight.sample(fed)
            self._times.mark(SAMPLE)
