"""Whatever comes in whatever order, the scheduler's books balance and every answer is right."""

from collections import Counter
from typing import ClassVar

import pytest

from tests.scheduler.machine import SchedulerMachine, run_machine

EVENTS = {
    "a prefix is found",
    "siblings share a prompt",
    "a cached block is evicted",
    "a preempted one is back",
    "it finds its own blocks",
    "it is back for good",
    "a waiting one is aborted",
    "a running one is aborted",
    "a preempted one is aborted",
    "one fails that samples",
    "one fails within its prompt",
    "a prompt is scored by chunks",
    "one is preempted while it scores",
    "a scored prompt finds its own blocks",
    "siblings share a scored prompt",
    "a vector is found",
    "a step is planned ahead",
    "an end wastes a row",
    "one that has ended keeps its place",
    "one fails that is in the step ahead",
}


class FixedMachine(SchedulerMachine):
    """Counts on its own."""

    seen: ClassVar[Counter[str]] = Counter()


def test_every_life_of_the_scheduler_balances_its_books() -> None:
    run_machine(50, 50, machine=SchedulerMachine)


def test_the_lives_come_by_everything_that_can_happen() -> None:
    run_machine(300, 30, machine=FixedMachine, is_fixed=True)
    assert FixedMachine.seen.keys() == EVENTS


@pytest.mark.slow
def test_every_long_life_of_the_scheduler_balances_its_books() -> None:
    run_machine(2_000, 100, machine=SchedulerMachine)
