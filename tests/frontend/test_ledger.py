"""The ledger gives every request exactly one outcome, in whatever order events come."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
)

from frontend.events import Aborted, Accepted, Event, Failed, Finished, TextAdded
from frontend.ledger import LEGAL_TRANSITIONS, Abandoned, Entry, Ledger, Life, State
from shared.errors import ErrorCode, RequestError
from shared.messages import TextProduced
from tests.frontend.fakes import make_text

WORKER, TOKENIZER, DETOKENIZER = (
    Life("worker-0", 1),
    Life("tokenizer-0", 1),
    Life("detokenizer-0", 1),
)
ERROR = RequestError(ErrorCode.ENGINE_DEAD, "gone")


def open_entry(ledger: Ledger, request_id: str = "r", deadline: float = 10.0) -> list[Event]:
    events: list[Event] = []
    ledger.open(Entry(request_id, events.append, deadline, WORKER, DETOKENIZER))
    return events


def running(ledger: Ledger, request_id: str = "r") -> list[Event]:
    events = open_entry(ledger, request_id)
    ledger.start_tokenising(request_id, TOKENIZER)
    ledger.accept(request_id, 3)
    return events


def test_whole_life() -> None:
    ledger = Ledger()
    events = running(ledger)
    assert ledger.add_text(make_text("r", 0, "a")) == []
    assert ledger.add_text(make_text("r", 1, "b", finish="length")) == []
    assert events == [Accepted(3), TextAdded("a", 1), TextAdded("b", 2), Finished("length", 2)]
    assert len(ledger) == 0


def test_text_that_overtakes_the_acceptance_waits_for_it() -> None:
    ledger = Ledger()
    events = open_entry(ledger)
    ledger.start_tokenising("r", TOKENIZER)
    ledger.add_text(make_text("r", 0, "a"))
    ledger.add_text(make_text("r", 1, "b", finish="stop"))
    assert events == []
    ledger.accept("r", 3)
    assert events == [Accepted(3), TextAdded("a", 1), TextAdded("b", 2), Finished("stop", 2)]


@pytest.mark.parametrize(
    "text", [make_text("r", 1, "gap"), make_text("r", 0, "old life", epoch=7)], ids=["gap", "epoch"]
)
def test_a_lost_part_fails_the_request_and_tells_the_worker(text: TextProduced) -> None:
    ledger = Ledger()
    events = running(ledger)
    assert ledger.add_text(text) == [Abandoned("r", ("worker-0",))]
    assert isinstance(events[-1], Failed)
    assert events[-1].error.code is ErrorCode.INTERNAL
    assert "lost a part of the answer" in events[-1].error.message


def test_a_request_that_is_not_open_is_abandoned_once_a_message() -> None:
    ledger = Ledger()
    assert ledger.add_text(make_text("r", 3, "a", finish="length")) == []
    twice = TextProduced(0, 1, ("r", "r"), (3, 4), ("a", "b"), (4, 5), ())
    assert ledger.add_text(twice) == [Abandoned("r", ("worker-0",))]
    events = running(ledger)
    assert ledger.add_text(twice) == [Abandoned("r", ("worker-0",))]  # a gap, then unknown
    assert isinstance(events[-1], Failed)


def test_deadline() -> None:
    ledger = Ledger()
    early, late = open_entry(ledger, "early", 5.0), open_entry(ledger, "late", 6.0)
    assert ledger.expire(5.5) == [Abandoned("early", ())]
    assert isinstance(early[0], Failed)
    assert early[0].error.code is ErrorCode.TIMEOUT
    assert late == []


@pytest.mark.parametrize(
    ("dead", "left"),
    [
        (TOKENIZER, ("worker-0",)),
        (WORKER, ("tokenizer-0",)),
        (DETOKENIZER, ("tokenizer-0", "worker-0")),
    ],
)
def test_a_dead_owner_fails_its_requests_and_is_not_told(dead: Life, left: tuple[str, ...]) -> None:
    ledger = Ledger()
    events = open_entry(ledger)
    ledger.start_tokenising("r", TOKENIZER)
    assert ledger.fail_owned_by(Life(dead.room, 2), ERROR) == []
    assert ledger.fail_owned_by(dead, ERROR) == [Abandoned("r", left)]
    assert events == [Failed(ERROR)]


def test_the_tokenizer_owns_nothing_after_acceptance() -> None:
    ledger = Ledger()
    running(ledger)
    assert ledger.fail_owned_by(TOKENIZER, ERROR) == []
    assert ledger.abort("r") == [Abandoned("r", ("worker-0",))]


def test_impossible_orders_are_refused() -> None:
    ledger = Ledger()
    events = open_entry(ledger)
    with pytest.raises(RuntimeError, match="open already"):
        open_entry(ledger)
    ledger.accept("r", 3)  # nobody was asked to tokenise it
    assert isinstance(events[-1], Failed)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_transition_table(old: State, new: State) -> None:
    entry = Entry("r", print, 0.0, WORKER, DETOKENIZER, state=old)
    if new in LEGAL_TRANSITIONS[old]:
        entry.move(new)
        assert entry.state is new
    else:
        with pytest.raises(RuntimeError, match=f"{old.value} -> {new.value}"):
            entry.move(new)


class LedgerMachine(RuleBasedStateMachine):
    """Throws every event at every request in any order, the dead ones included."""

    requests: Bundle[str] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.events: dict[str, list[Event]] = {}
        self.sent: set[str] = set()
        self.now = 0.0

    @rule(target=requests, deadline=st.integers(1, 50))
    def admit(self, deadline: int) -> MultipleResults[str]:
        request_id = f"r{len(self.events)}"
        self.events[request_id] = open_entry(self.ledger, request_id, self.now + deadline)
        return multiple(request_id)

    @rule(request_id=requests)
    def tokenise(self, request_id: str) -> None:
        if request_id not in self.sent and not self.outcomes(request_id):
            self.sent.add(request_id)
            self.ledger.start_tokenising(request_id, TOKENIZER)

    @rule(request_id=requests)
    def accept(self, request_id: str) -> None:
        self.ledger.accept(request_id, 3)

    @rule(
        request_id=requests,
        seq=st.integers(0, 3),
        epoch=st.sampled_from([1, 1, 1, 2]),
        finish=st.sampled_from([None, None, "stop"]),
    )
    def text(self, request_id: str, seq: int, epoch: int, finish: str | None) -> None:
        self.ledger.add_text(make_text(request_id, seq, "x", epoch=epoch, finish=finish))

    @rule(request_id=requests)
    def fail(self, request_id: str) -> None:
        self.ledger.fail(request_id, ERROR)

    @rule(request_id=requests)
    def abort(self, request_id: str) -> None:
        self.ledger.abort(request_id)

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.ledger.expire(self.now)

    @rule(life=st.sampled_from([WORKER, TOKENIZER, DETOKENIZER, Life("worker-0", 2)]))
    def die(self, life: Life) -> None:
        self.ledger.fail_owned_by(life, ERROR)

    @invariant()
    def one_outcome_and_it_is_last(self) -> None:
        for events in self.events.values():
            outcomes = [e for e in events if isinstance(e, Finished | Failed | Aborted)]
            assert len(outcomes) <= 1
            assert not outcomes or events[-1] is outcomes[0]

    @invariant()
    def open_means_no_outcome(self) -> None:
        assert len(self.ledger) == sum(not self.outcomes(r) for r in self.events)

    def outcomes(self, request_id: str) -> list[Event]:
        events = self.events[request_id]
        return [e for e in events if isinstance(e, Finished | Failed | Aborted)]

    def teardown(self) -> None:
        self.ledger.fail_all(ERROR)
        assert len(self.ledger) == 0
        assert all(len(self.outcomes(request_id)) == 1 for request_id in self.events)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
