"""Random lives where rows are slots and an encoder reads the prompts: every answer is right."""

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from scheduler.plan import EncoderInput, StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.sampling import SamplingParams
from tests.builders import GREEDY
from tests.fakes import SlotFormulaRunner
from tests.scheduler.answers import END_TOKENS
from tests.scheduler.machine import SchedulerMachine, run_machine

START = 0  # what every answer of an encoder-decoder begins with
SLOT_EVENTS = {
    "a waiting one is aborted",
    "a running one is aborted",
    "one fails that samples",
    "one is moved",
    "a vector is found",
}


class SlotMachine(SchedulerMachine):
    """The same lives where rows are slots, and an encoder reads the prompts."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(
        max_sequences=st.integers(1, 6), length=st.integers(1, 30), budget=st.integers(1, 10)
    )
    def start(self, max_sequences: int, length: int, budget: int) -> None:
        self.block_size = self.capacity = length
        self.scheduler = Scheduler(
            num_blocks=max_sequences,
            block_size=length,
            max_sequences=max_sequences,
            max_tokens_per_step=budget,
            prefix_caching=False,
            rows_are_slots=True,
        )
        self.budget = max(budget, max_sequences)
        self.runner = SlotFormulaRunner()  # type: ignore[assignment]
        self._begin()

    def _sequence(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingParams,
        *,
        is_pooled: bool = False,
    ) -> Sequence:
        return Sequence(
            request_id,
            (START,),
            min(max_tokens, self.capacity),
            frozenset() if is_pooled else END_TOKENS,
            GREEDY,
            encoder_input=EncoderInput.text(tuple(prompt)),
            is_pooled=is_pooled,
        )

    def _plan(self) -> StepPlan:
        plan = super()._plan()
        self._note("one is moved", plan.moves)
        rows = {s.row for s in self.arrived if s.state is State.RUNNING}
        if not self.scheduler.num_waiting and not plan.admissions:
            assert rows == set(range(len(rows))), "there is a gap"
        return plan


class FixedSlotMachine(SlotMachine):
    """Counts on its own."""

    seen: ClassVar[Counter[str]] = Counter()


def test_every_life_over_slots_balances_its_books() -> None:
    run_machine(25, 50, machine=SlotMachine)


@pytest.mark.slow
def test_every_long_life_over_slots_balances_its_books() -> None:
    run_machine(1_000, 100, machine=SlotMachine)


def test_lives_over_slots_come_by_everything_that_can_happen() -> None:
    run_machine(50, 30, machine=FixedSlotMachine, is_fixed=True)
    assert FixedSlotMachine.seen.keys() >= SLOT_EVENTS
