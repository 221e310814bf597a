"""The seam between the step loop and whoever computes its plans."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from scheduler.plan import StepPlan, StepResult


class Runner(Protocol):
    """A family of models, a wrapper around one, or a formula in tests."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; may be asked for any part of a plan again."""


class Flight(Protocol):
    """A step that has been launched. `sample` and `result` are called once each, in this order."""

    def sample(self, fed: Mapping[int, int]) -> None:
        """Launches the sampling; `fed` is what the step before has sampled, by row.

        To be called before another step is launched.
        """

    def result(self) -> StepResult:
        """Waits for this step's results, and not for a step that was launched after it."""


@runtime_checkable
class LaunchingRunner(Runner, Protocol):
    """A runner whose device computes while the host goes on, with a step's tokens at hand there."""

    def launch(self, plan: StepPlan) -> Flight:
        """Launches a step up to its logits; the plan may feed what the last one samples."""


class Done:
    """A step that was computed at once."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def sample(self, fed: Mapping[int, int]) -> None:
        """Has been done."""

    def result(self) -> StepResult:
        """See `Flight`."""
        return self._result


def launch(runner: Runner, plan: StepPlan) -> Flight:
    """Launches a step where the runner can, and else computes it."""
    if isinstance(runner, LaunchingRunner):
        return runner.launch(plan)
    return Done(runner.execute(plan))
