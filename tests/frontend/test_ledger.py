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

from frontend.entry import LEGAL_TRANSITIONS, Abandoned, Entry, State
from frontend.events import Aborted, Accepted, Event, Failed, Finished, TextAdded, TextFound
from frontend.ledger import Ledger
from frontend.life import Life
from shared.errors import ErrorCode, RequestError
from shared.messages import PromptAccepted, TextProduced
from tests.examples import num_examples
from tests.frontend.fakes import CACHED_TOKENS, Piece, make_text, make_texts

WORKER, TOKENIZER, DETOKENIZER = (
    Life("worker-0", 1),
    Life("tokenizer-0", 1),
    Life("detokenizer-0", 1),
)
ERROR = RequestError(ErrorCode.ENGINE_DEAD, "gone")
DONE = Finished(2, CACHED_TOKENS)


def queue_entry(
    ledger: Ledger, request_id: str = "r", deadline: float = 10.0, num_choices: int = 1
) -> list[Event]:
    """A request that waits for its places."""
    events: list[Event] = []
    ledger.open(Entry(request_id, events.append, deadline, num_choices))
    return events


def open_entry(
    ledger: Ledger, request_id: str = "r", deadline: float = 10.0, num_choices: int = 1
) -> list[Event]:
    """A request that has its places."""
    events = queue_entry(ledger, request_id, deadline, num_choices)
    ledger.admit(request_id, WORKER, DETOKENIZER)
    return events


def running(ledger: Ledger, request_id: str = "r", num_choices: int = 1) -> list[Event]:
    events = open_entry(ledger, request_id, num_choices=num_choices)
    ledger.start_tokenising(request_id, TOKENIZER)
    ledger.accept(PromptAccepted(request_id, 3, None))
    return events


def test_whole_life() -> None:
    ledger = Ledger()
    events = running(ledger)
    assert ledger.add_text(make_text("r", 0, "a")) == []
    assert ledger.add_text(make_text("r", 1, "b", finish="length")) == []
    assert events == [Accepted(3), TextAdded(0, "a", 1), TextAdded(0, "b", 2, "length"), DONE]
    assert len(ledger) == 0


def test_text_that_overtakes_the_acceptance_waits_for_it() -> None:
    ledger = Ledger()
    events = open_entry(ledger)
    ledger.start_tokenising("r", TOKENIZER)
    ledger.add_text(make_text("r", 0, "a"))
    ledger.add_text(make_text("r", 1, "b", finish="stop"))
    assert events == []
    ledger.accept(PromptAccepted("r", 3, None))
    assert events == [Accepted(3), TextAdded(0, "a", 1), TextAdded(0, "b", 2, "stop"), DONE]


def test_a_request_is_over_when_its_last_answer_is() -> None:
    ledger = Ledger()
    events = running(ledger, num_choices=2)
    ledger.add_text(make_texts("r", Piece(0, 0, "a"), Piece(1, 0, "x", "length")))
    ledger.add_text(make_text("r", 1, "b"))
    assert len(ledger) == 1
    ledger.add_text(make_text("r", 2, "c", finish="stop"))
    assert events == [
        Accepted(3),
        TextAdded(0, "a", 1),
        TextAdded(1, "x", 1, "length"),
        TextAdded(0, "b", 2),
        TextAdded(0, "c", 3, "stop"),
        Finished(4, CACHED_TOKENS),
    ]
    assert len(ledger) == 0


def test_text_of_several_answers_that_overtakes_the_acceptance_keeps_its_order() -> None:
    ledger = Ledger()
    events = open_entry(ledger, num_choices=2)
    ledger.start_tokenising("r", TOKENIZER)
    ledger.add_text(make_texts("r", Piece(1, 0, "x", "stop"), Piece(0, 0, "a")))
    ledger.add_text(make_text("r", 1, "b", finish="stop"))
    ledger.accept(PromptAccepted("r", 3, None))
    assert events[1:] == [
        TextAdded(1, "x", 1, "stop"),
        TextAdded(0, "a", 1),
        TextAdded(0, "b", 2, "stop"),
        Finished(3, CACHED_TOKENS),
    ]


@pytest.mark.parametrize(
    "lost",
    [
        make_text("r", 3, "gap", choice=1),
        make_text("r", 1, "twice", choice=1),
        make_text("r", 1, "goes on after its end", choice=0),
        make_text("r", 0, "begins again", choice=0),
        make_text("r", 0, "nobody asked for it", choice=2),
        make_text("r", 0, "nobody asked for it", choice=-1),
    ],
    ids=lambda text: f"{text.texts[0]} {text.choices[0]}",
)
def test_one_broken_answer_fails_the_request_once(lost: TextProduced) -> None:
    ledger = Ledger()
    events = running(ledger, num_choices=2)
    ledger.add_text(make_texts("r", Piece(0, 0, "a", "stop"), Piece(1, 0, "x")))
    ledger.add_text(make_text("r", 1, "y", choice=1))
    assert ledger.add_text(lost) == [Abandoned("r", ("worker-0",))]
    assert isinstance(events[-1], Failed)
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1
    assert len(ledger) == ledger.num_under_way == 0


def test_a_failure_ends_all_answers_at_once() -> None:
    ledger = Ledger()
    events = running(ledger, num_choices=3)
    ledger.fail("r", ERROR)
    rest = make_texts("r", *(Piece(choice, 0, "late") for choice in range(3)))
    assert ledger.add_text(rest) == [Abandoned("r", ("worker-0",))]
    assert events == [Accepted(3), Failed(ERROR)]


def test_every_answer_counts_until_its_request_has_ended() -> None:
    ledger = Ledger()
    open_entry(ledger, "a", num_choices=3)
    running(ledger, "b", num_choices=2)
    assert ledger.num_under_way == 5
    ledger.add_text(make_text("b", 0, "x", finish="stop"))
    assert ledger.num_under_way == 5, "the request still holds its place"
    ledger.abort("b")
    assert ledger.num_under_way == 3


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
    twice = make_texts("r", Piece(0, 3, "a"), Piece(0, 4, "b"))
    assert ledger.add_text(twice) == [Abandoned("r", ("worker-0",))]
    events = running(ledger)
    assert ledger.add_text(twice) == [Abandoned("r", ("worker-0",))]  # a gap, then unknown
    assert isinstance(events[-1], Failed)


def test_a_request_that_waits_for_places_is_no_room_s_business() -> None:
    ledger = Ledger()
    queue_entry(ledger, "a", num_choices=2)
    queue_entry(ledger, "b")
    assert (ledger.num_queued, ledger.num_under_way) == (3, 0)
    for life in (WORKER, TOKENIZER, DETOKENIZER):
        assert ledger.fail_owned_by(life, ERROR) == []
    assert ledger.abort("a") == [Abandoned("a", ())]
    assert not ledger.admit("a", WORKER, DETOKENIZER)
    assert ledger.admit("b", WORKER, DETOKENIZER)
    assert (ledger.num_queued, ledger.num_under_way, ledger.num_given_back) == (0, 1, 0)
    assert ledger.abort("b") == [Abandoned("b", ())]
    assert (ledger.num_queued, ledger.num_under_way, ledger.num_given_back) == (0, 0, 1)


@pytest.mark.parametrize("stranger", ["acceptance", "text", "lookup"])
def test_what_comes_for_a_request_that_waits_for_places_fails_it(stranger: str) -> None:
    ledger = Ledger()
    events = queue_entry(ledger)
    match stranger:
        case "acceptance":
            ledger.accept(PromptAccepted("r", 3, None))
        case "text":
            ledger.add_text(make_text("r", 0, "a"))
        case _:
            ledger.answer_lookup("r", TextFound("a"))
    assert isinstance(events[-1], Failed)
    assert ledger.num_queued == 0


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
    ledger.accept(PromptAccepted("r", 3, None))  # nobody was asked to tokenise it
    assert isinstance(events[-1], Failed)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_transition_table(old: State, new: State) -> None:
    entry = Entry("r", print, 0.0, state=old)
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
        self.num_choices: dict[str, int] = {}
        self.admitted: set[str] = set()
        self.sent: set[str] = set()
        self.now = 0.0

    @rule(target=requests, deadline=st.integers(1, 50), num_choices=st.integers(1, 3))
    def join(self, deadline: int, num_choices: int) -> MultipleResults[str]:
        request_id = f"r{len(self.events)}"
        self.num_choices[request_id] = num_choices
        self.events[request_id] = queue_entry(
            self.ledger, request_id, self.now + deadline, num_choices
        )
        return multiple(request_id)

    @rule(request_id=requests)
    def admit(self, request_id: str) -> None:
        if request_id not in self.admitted:
            is_admitted = self.ledger.admit(request_id, WORKER, DETOKENIZER)
            assert is_admitted == (not self.outcomes(request_id))
            self.admitted |= {request_id} if is_admitted else set()

    @rule(request_id=requests)
    def tokenise(self, request_id: str) -> None:
        is_ready = request_id in self.admitted and request_id not in self.sent
        if is_ready and not self.outcomes(request_id):
            self.sent.add(request_id)
            self.ledger.start_tokenising(request_id, TOKENIZER)

    @rule(request_id=requests)
    def accept(self, request_id: str) -> None:
        self.ledger.accept(PromptAccepted(request_id, 3, None))

    @rule(
        request_id=requests,
        choice=st.integers(0, 3),
        seq=st.integers(0, 3),
        epoch=st.sampled_from([1, 1, 1, 2]),
        finish=st.sampled_from([None, None, "stop"]),
    )
    def text(self, request_id: str, choice: int, seq: int, epoch: int, finish: str | None) -> None:
        text = make_text(request_id, seq, "x", choice=choice, epoch=epoch, finish=finish)
        self.ledger.add_text(text)

    @rule(request_id=requests, finish=st.sampled_from([None, "stop"]))
    def next_text(self, request_id: str, finish: str | None) -> None:
        """What a faultless worker says next: one more piece of every answer under way."""
        answers = [self.added(request_id, n) for n in range(self.num_choices[request_id])]
        pieces = [
            Piece(choice, len(added), "x", finish)
            for choice, added in enumerate(answers)
            if not added or added[-1].finish_reason is None
        ]
        self.ledger.add_text(make_texts(request_id, *pieces))

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
    def answers_have_no_gap_and_nothing_follows_their_end(self) -> None:
        for request_id, events in self.events.items():
            for choice in range(4):
                added = self.added(request_id, choice)
                assert choice < self.num_choices[request_id] or not added
                assert [piece.completion_tokens for piece in added] == [*range(1, len(added) + 1)]
                assert not any(piece.finish_reason for piece in added[:-1])
                if events and isinstance(events[-1], Finished):
                    assert choice >= self.num_choices[request_id] or added[-1].finish_reason

    @invariant()
    def answers_are_counted_where_they_are(self) -> None:
        still_open = {r for r in self.events if not self.outcomes(r)}
        ended = self.events.keys() - still_open
        assert self.ledger.num_queued == self.count(still_open - self.admitted)
        assert self.ledger.num_under_way == self.count(still_open & self.admitted)
        assert self.ledger.num_given_back == self.count(ended & self.admitted)

    @invariant()
    def open_means_no_outcome(self) -> None:
        assert len(self.ledger) == sum(not self.outcomes(r) for r in self.events)

    def count(self, requests: set[str]) -> int:
        return sum(self.num_choices[request_id] for request_id in requests)

    def outcomes(self, request_id: str) -> list[Event]:
        events = self.events[request_id]
        return [e for e in events if isinstance(e, Finished | Failed | Aborted)]

    def added(self, request_id: str, choice: int) -> list[TextAdded]:
        events = self.events[request_id]
        return [e for e in events if isinstance(e, TextAdded) and e.choice == choice]

    def teardown(self) -> None:
        self.ledger.fail_all(ERROR)
        assert len(self.ledger) == 0
        assert all(len(self.outcomes(request_id)) == 1 for request_id in self.events)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=num_examples(60), stateful_step_count=30)
