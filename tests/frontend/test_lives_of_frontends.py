"""Frontends die, come back and hear of one another late: limits hold for the living."""

import mmap

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from frontend.entry import State
from frontend.sheet import NUM_COLUMNS, Sheet
from shared.errors import ErrorCode
from shared.messages import RequestFailed
from tests.frontend.bench import Bench
from tests.frontend.fakes import make_book

OPEN = "transformers_openai_api:open_requests"
MAX_CONCURRENT, COUNT = 4, 3


class LivesMachine(RuleBasedStateMachine):
    """Three frontends, of which any dies and comes back, and hears of the others' lives late."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = mmap.mmap(-1, 8 * NUM_COLUMNS * COUNT)
        self.epochs = [1] * COUNT  # of the last life
        self.book = dict.fromkeys((f"frontend-{n}" for n in range(COUNT)), 1)
        self.living: dict[int, Bench] = {}
        self.unknown: list[set[int]] = [set() for _ in range(COUNT)]  # dead since before one's life
        for number in range(COUNT):
            self.begin(number)

    @rule(number=st.integers(0, COUNT - 1))
    def die(self, number: int) -> None:
        if number in self.living:
            self.living.pop(number).mailbox.close()
            self.book[f"frontend-{number}"] = 0

    @rule(number=st.integers(0, COUNT - 1))
    def say_that_it_starts(self, number: int) -> None:
        """To the launcher, which tells the others; it has not seen the sheet yet."""
        if number not in self.living and not self.book[f"frontend-{number}"]:
            self.epochs[number] += 1
            self.book[f"frontend-{number}"] = self.epochs[number]

    @rule(number=st.integers(0, COUNT - 1))
    def begin(self, number: int) -> None:
        if number not in self.living and self.book[f"frontend-{number}"]:
            sheet = Sheet(self.memory, number, self.epochs[number])
            bench = Bench(
                max_concurrent=MAX_CONCURRENT, max_queue=1000, index=number, sheet=sheet, credit=999
            )
            self.living[number] = bench
            self.unknown[number] = set(range(COUNT)) - self.living.keys()
            for others in self.unknown:
                others.discard(number)
            self.hear(number)

    @rule(number=st.integers(0, COUNT - 1))
    def hear(self, number: int) -> None:
        if number in self.living:
            self.living[number].arrive(make_book(self.book))

    @rule(number=st.integers(0, COUNT - 1), num_answers=st.integers(1, MAX_CONCURRENT))
    def come(self, number: int, num_answers: int) -> None:
        if number in self.living:
            self.living[number].submit(num_answers)

    @rule(number=st.integers(0, COUNT - 1))
    def end(self, number: int) -> None:
        for request_id in self.running(number)[:1]:
            error = ErrorCode.INTERNAL
            self.living[number].arrive(RequestFailed(request_id, error, "why", None))

    @rule()
    def all_hear(self) -> None:
        for number in self.living:
            self.hear(number)
        num_open = sum(len(bench.engine._ledger) for bench in self.living.values())
        for number, bench in self.living.items():
            if not self.unknown[number]:  # of those it counts what they held, until they are back
                assert bench.value(OPEN) == num_open

    def running(self, number: int) -> list[str]:
        """The requests of a frontend that have places."""
        if number not in self.living:
            return []
        entries = self.living[number].engine._ledger._entries.values()
        return [entry.request_id for entry in entries if entry.state is not State.QUEUED]

    @invariant()
    def the_living_never_have_more_places_than_there_are(self) -> None:
        ledgers = [bench.engine._ledger for bench in self.living.values()]
        assert sum(ledger.num_under_way for ledger in ledgers) <= MAX_CONCURRENT

    def teardown(self) -> None:
        for bench in self.living.values():
            bench.mailbox.close()


TestLivesMachine = LivesMachine.TestCase
TestLivesMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
