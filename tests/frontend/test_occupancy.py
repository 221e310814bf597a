"""Several frontends on one sheet: limits are the server's, and the first come is served first."""

import dataclasses
import mmap
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from frontend.admission import Admission, Limits, Waiting
from frontend.entry import Entry
from frontend.generation import Generation
from frontend.ledger import Ledger
from frontend.life import Life
from frontend.occupancy import UNSEEN_SECONDS, Occupancy
from frontend.sheet import NUM_COLUMNS, Sheet
from frontend.sound_budget import MAX_HELD_BYTES, SoundBudget
from frontend.submission import Lookup
from shared.errors import BadRequest, ErrorCode, RequestError
from shared.messages import PlacesFreed, RequestsSuspected
from tests.examples import num_examples
from tests.frontend.bench import WANTED, Bench, failure, refusal
from tests.frontend.fakes import make_book, make_report

FRONTENDS = {"frontend-0": 1, "frontend-1": 1}
OPEN = "transformers_openai_api:open_requests"
QUEUED = "transformers_openai_api:queued_answers"


def sheets(count: int) -> list[Sheet]:
    """The same rows, as each of several frontends sees them."""
    memory = mmap.mmap(-1, 8 * NUM_COLUMNS * count)
    return [Sheet(memory, index, 1) for index in range(count)]


def next_life(bench: Bench, epoch: int) -> Bench:
    """Another process in its place; what its frontend was is dead."""
    memory, index = bench.sheet.own.obj, bench.mailbox.identity.index
    assert isinstance(memory, mmap.mmap)
    sheet = Sheet(memory, index, epoch)
    return Bench(max_concurrent=2, max_queue=3, index=index, sheet=sheet)


@pytest.fixture
def pair() -> Iterator[tuple[Bench, Bench]]:
    """Two frontends with two places together, and room for three who wait."""
    benches = [
        Bench(max_concurrent=2, max_queue=3, index=index, sheet=sheet)
        for index, sheet in enumerate(sheets(2))
    ]
    for bench in benches:
        bench.now = 100.0
        bench.arrive(make_book(FRONTENDS))
    yield benches[0], benches[1]
    for bench in benches:
        bench.mailbox.close()


def leave(bench: Bench, generation: Generation) -> None:
    """Its caller hangs up."""
    with generation:
        pass
    bench.engine.receive()


def pass_on(source: Bench, target: Bench) -> None:
    """Delivers what a frontend has told the other one of free places."""
    told = source.mailbox.sent_to(f"frontend-{target.mailbox.identity.index}")
    if any(isinstance(message, PlacesFreed) for message in told):
        target.arrive(PlacesFreed())


def test_the_places_are_the_servers(pair: tuple[Bench, Bench]) -> None:
    first, second = pair
    first.submit(), second.submit()
    assert [len(bench.tokenised()) for bench in pair] == [1, 1]
    first.submit(), second.submit(), first.submit()
    assert [len(bench.tokenised()) for bench in pair] == [1, 1]
    for bench in pair:
        assert refusal(bench) is ErrorCode.QUEUE_FULL
        assert (bench.value(OPEN), bench.value(QUEUED)) == (5, 3)


def test_a_request_may_take_all_places_wherever_it_comes(pair: tuple[Bench, Bench]) -> None:
    _, second = pair
    second.submit(num_choices=2)
    assert len(second.tokenised()) == 1


def test_a_freed_place_goes_to_who_came_first(pair: tuple[Bench, Bench]) -> None:
    first, second = pair
    running = first.submit(num_choices=2)
    early = second.submit()
    first.now = 101.0
    late = first.submit()
    leave(first, running)
    assert first.tokenised() == [running.request_id], "it is not the turn of its own"
    pass_on(first, second)
    assert second.tokenised() == [early.request_id]
    pass_on(second, first)
    assert first.tokenised()[1:] == [late.request_id]


def test_who_needs_many_places_is_not_passed_by(pair: tuple[Bench, Bench]) -> None:
    first, second = pair
    running = first.submit()
    many = second.submit(num_choices=2)
    first.now = second.now = 101.0
    one = first.submit()
    assert first.tokenised() == [running.request_id], "there is a place, and somebody before it"
    leave(first, running)
    pass_on(first, second)
    assert second.tokenised() == [many.request_id]
    leave(second, many)
    pass_on(second, first)
    assert first.tokenised()[1:] == [one.request_id]


def test_a_frontend_that_stands_still_keeps_its_places_and_loses_its_turn(
    pair: tuple[Bench, Bench],
) -> None:
    still, other = pair
    running = other.submit()
    still.submit(), still.submit()
    other.now = 101.0
    waiting = other.submit()
    leave(other, running)
    assert waiting.request_id not in other.tokenised()
    other.now = 100.0 + UNSEEN_SECONDS
    other.engine.sweep()
    assert waiting.request_id in other.tokenised()
    assert refusal(other, num_choices=3) is ErrorCode.QUEUE_FULL


@pytest.mark.parametrize("epochs", [{"frontend-0": 0}, {"frontend-0": 2}])
def test_what_a_dead_frontend_held_is_free(
    pair: tuple[Bench, Bench], epochs: dict[str, int]
) -> None:
    dead, other = pair
    dead.submit(num_choices=2), dead.submit(num_choices=2)
    waiting = other.submit()
    assert waiting.request_id not in other.tokenised()
    other.arrive(make_book({**FRONTENDS, **epochs}))
    assert other.tokenised() == [waiting.request_id]
    assert (other.value(OPEN), other.value(QUEUED)) == (1, 0)


def test_the_next_life_counts_from_its_first_request(pair: tuple[Bench, Bench]) -> None:
    """Also where a neighbour hears of the death when that life has let somebody in."""
    dead, other = pair
    dead.submit(num_choices=2)
    reborn = next_life(dead, 2)
    reborn.now = 100.0
    reborn.arrive(make_book({**FRONTENDS, "frontend-0": 2}))
    running = reborn.submit(num_choices=2)
    assert reborn.tokenised() == [running.request_id]
    for _ in range(2):
        waiting = other.submit()
        assert other.tokenised() == []
        other.arrive(make_book({**FRONTENDS, "frontend-0": 2}))
        assert other.tokenised() == []
        assert other.value(OPEN) == reborn.value(OPEN)
        leave(other, waiting)
    reborn.mailbox.close()


def test_a_dead_life_that_was_in_no_book_of_ours_counts_no_more(
    pair: tuple[Bench, Bench],
) -> None:
    unknown, other = pair
    unknown.submit(num_choices=2)
    late = next_life(other, 2)
    late.now = 100.0
    late.arrive(make_book({"frontend-0": 2, "frontend-1": 2}))
    running = late.submit(num_choices=2)
    assert late.tokenised() == [running.request_id]
    late.mailbox.close()


def test_lookups_and_embeddings_are_limited_together(pair: tuple[Bench, Bench]) -> None:
    first, second = pair
    lookup = Lookup(None, (1,))
    running = [first.engine.look_up(lookup) for _ in range(2)]
    with pytest.raises(RequestError):
        second.engine.look_up(lookup)
    leave(first, running[0])
    second.engine.look_up(lookup)


def test_sound_is_limited_together() -> None:
    first, second = (SoundBudget(sheet) for sheet in sheets(2))
    with first.hold(MAX_HELD_BYTES - 1):
        with second.hold(1):
            assert first.num_bytes == second.num_bytes == MAX_HELD_BYTES
        with pytest.raises(RequestError), second.hold(2):
            pass
    with second.hold(MAX_HELD_BYTES + 1):  # alone it is always taken
        assert first.num_bytes == MAX_HELD_BYTES + 1
    assert first.num_bytes == 0


def test_the_sound_of_the_dead_is_free_before_their_next_life(pair: tuple[Bench, Bench]) -> None:
    _, other = pair
    budgets = [SoundBudget(bench.sheet) for bench in pair]
    with budgets[0].hold(MAX_HELD_BYTES):  # for ever: it is killed
        with pytest.raises(RequestError), budgets[1].hold(1):
            pass
        other.arrive(make_book({**FRONTENDS, "frontend-0": 0}))
        with budgets[1].hold(MAX_HELD_BYTES):
            assert budgets[1].num_bytes == MAX_HELD_BYTES


def test_a_claim_counts_what_came_at_the_same_moment() -> None:
    """Both have looked and seen the last place free; what is written first is seen by the other."""
    memory = sheets(2)
    first, second = (Occupancy(sheet, index) for index, sheet in enumerate(memory))
    assert first.claim(1, most=1)
    assert not second.claim(1, most=1)
    assert first.elsewhere("under_way") == 0


# ── suspicion ────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_kills_is_known_to_all(pair: tuple[Bench, Bench]) -> None:
    first, second = pair
    for epoch, (here, there) in enumerate((pair, pair[::-1]), start=2):
        killer = here.submit()
        for bench in pair:
            bench.arrive(make_book({**FRONTENDS, "tokenizer-0": epoch}))
            bench.grant("tokenizer-0", 4, epoch=epoch)
        assert failure(killer) is ErrorCode.ENGINE_DEAD
        (suspected,) = [
            m
            for m in here.mailbox.sent_to(f"frontend-{there.mailbox.identity.index}")
            if isinstance(m, RequestsSuspected)
        ]
        there.arrive(suspected, suspected)
    for bench in (first, second):
        with pytest.raises(BadRequest, match="died 2 times"):
            bench.submit()


def test_one_death_that_two_frontends_tell_of_counts_once(pair: tuple[Bench, Bench]) -> None:
    for bench in pair:
        bench.submit()
        bench.arrive(make_book({**FRONTENDS, "tokenizer-0": 2}))
    suspected = pair[0].mailbox.sent_to("frontend-1")[-1]
    pair[1].arrive(suspected, make_report(1))
    assert pair[1].submit().request_id, "it is refused after two deaths"


# ── any order ────────────────────────────────────────────────────────────────────────────────────

MAX_CONCURRENT, MAX_QUEUE, COUNT = 4, 6, 3


class OccupancyMachine(RuleBasedStateMachine):
    """Three frontends; requests come, end and leave anywhere; one list knows who is first."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(MAX_CONCURRENT, MAX_QUEUE, 1e9, 1e9, 1e9)
        self.ledgers = [Ledger() for _ in range(COUNT)]
        self.admissions = [
            Admission(ledger, limits, Occupancy(sheet, index))
            for index, (ledger, sheet) in enumerate(zip(self.ledgers, sheets(COUNT), strict=True))
        ]
        self.now = 100.0
        self.line: list[tuple[str, int, int]] = []  # (request, answers, frontend)
        self.started: dict[str, tuple[int, int]] = {}
        self.num_requests = 0

    @rule(frontend=st.integers(0, COUNT - 1), num_answers=st.integers(1, MAX_CONCURRENT))
    def come(self, frontend: int, num_answers: int) -> None:
        num_queued = sum(answers for _, answers, _ in self.line)
        num_started = sum(answers for answers, _ in self.started.values())
        starts = not self.line and num_started + num_answers <= MAX_CONCURRENT
        waits = num_queued + num_answers <= MAX_QUEUE or num_queued == 0
        is_refused = self.admissions[frontend].refusal(num_answers) is not None
        assert is_refused == (not starts and not waits)
        if not is_refused:
            self.num_requests += 1
            self.now += 0.001
            name = f"r{self.num_requests}"
            self.ledgers[frontend].open(Entry(name, lambda _: None, 1e9, num_answers))
            wanted = dataclasses.replace(WANTED, num_choices=num_answers)
            self.admissions[frontend].join(Waiting((name,), wanted, self.now))
            self.line.append((name, num_answers, frontend))
            self.go_on(frontend)

    def go_on(self, frontend: int | None) -> None:
        """As the engine client does, and as the frontends that it tells then do."""
        while frontend is not None:
            admission = self.admissions[frontend]
            while (waiting := admission.take(self.now)) is not None:
                (name,) = waiting.request_ids
                assert (name, waiting.wanted.num_choices, frontend) == self.line.pop(0)
                worker, detokenizer = Life("worker-0", 1), Life("detokenizer-0", 1)
                assert self.ledgers[frontend].admit(name, worker, detokenizer)
                self.started[name] = (waiting.wanted.num_choices, frontend)
            frontend = admission.show(self.now)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.started:
            name = data.draw(st.sampled_from(sorted(self.started)))
            _, frontend = self.started.pop(name)
            self.ledgers[frontend].fail(name, RequestError(ErrorCode.INTERNAL, "why"))
            self.go_on(frontend)

    @rule(data=st.data())
    def leave_the_line(self, data: st.DataObject) -> None:
        if self.line:
            place = data.draw(st.sampled_from(self.line))
            self.line.remove(place)
            name, _, frontend = place
            self.ledgers[frontend].abort(name)
            self.admissions[frontend].remove(name)
            self.go_on(frontend)

    @invariant()
    def places_are_never_given_twice_and_never_left_unused(self) -> None:
        num_started = sum(answers for answers, _ in self.started.values())
        assert sum(ledger.num_under_way for ledger in self.ledgers) == num_started
        assert num_started <= MAX_CONCURRENT
        assert not self.line or num_started + self.line[0][1] > MAX_CONCURRENT


TestOccupancyMachine = OccupancyMachine.TestCase
TestOccupancyMachine.settings = settings(max_examples=num_examples(80), stateful_step_count=40)
