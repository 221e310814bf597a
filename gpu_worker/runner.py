"""The seam between the step loop and whoever computes its plans."""

from typing import Protocol

from scheduler.plan import StepPlan, StepResult


class Runner(Protocol):
    """A family of models, a wrapper around one, or a formula in tests."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; may be asked for any part of a plan again."""
