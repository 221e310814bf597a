"""Places, the queue before them and the door before that: first come, first served, or refused."""

import asyncio
import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from frontend.admission import Admission, Limits, Pace, Waiting
from frontend.entry import Entry
from frontend.events import Failed
from frontend.generation import Generation
from frontend.ledger import Ledger
from frontend.life import Life
from frontend.occupancy import Occupancy
from frontend.sheet import Sheet
from shared.errors import ErrorCode, RequestError
from shared.messages import PromptAccepted, Stop
from tests.examples import num_examples
from tests.frontend.bench import WANTED, Bench, failure, refusal, status
from tests.frontend.fakes import make_book, make_text

MAX_CONCURRENT, MAX_QUEUE, TIMEOUT = 4, 5, 30.0
WORKER, DETOKENIZER = Life("worker-0", 1), Life("detokenizer-0", 1)


def make_bench(max_concurrent: int = 2, max_queue: int = 3) -> Bench:
    return Bench(credit=100, max_concurrent=max_concurrent, max_queue=max_queue)


def finish(bench: Bench, generation: Generation, num_choices: int = 1) -> None:
    """The rooms behind answer it whole."""
    bench.arrive(PromptAccepted(generation.request_id, 9, None))
    for choice in range(num_choices):
        bench.arrive(make_text(generation.request_id, 0, "a", choice=choice, finish="stop"))


def error_of(bench: Bench, num_choices: int = 1) -> RequestError:
    with pytest.raises(RequestError) as caught:
        bench.submit(num_choices)
    return caught.value


def queued(bench: Bench) -> float:
    return bench.value("transformers_openai_api:queued_answers")


# ── the queue, through the engine client ─────────────────────────────────────────────────────────


def test_what_waits_is_not_tokenised_and_goes_on_in_order() -> None:
    bench = make_bench(max_concurrent=1)
    first, second, third = bench.submit(), bench.submit(), bench.submit()
    assert bench.tokenised() == [first.request_id]
    assert queued(bench) == 2
    bench.now = 5.0
    finish(bench, first)
    assert bench.tokenised() == [first.request_id, second.request_id]
    bench.now = 7.0
    with second:
        pass  # its caller leaves: its place is free at once
    assert bench.tokenised()[-1] == third.request_id
    assert queued(bench) == 0
    assert bench.value("transformers_openai_api:queue_time_seconds_count") == 3
    assert bench.value("transformers_openai_api:queue_time_seconds_sum") == 0 + 5 + 7


def test_who_leaves_the_queue_is_forgotten_and_no_room_hears_of_it() -> None:
    bench = make_bench(max_concurrent=1)
    first, second, third = bench.submit(), bench.submit(), bench.submit()
    with second:
        pass
    assert queued(bench) == 1
    finish(bench, first)
    assert bench.tokenised() == [first.request_id, third.request_id]
    assert bench.mailbox.aborted() == []
    assert bench.value("vllm:request_success_total", finished_reason="abort") == 1


def test_a_full_queue_refuses_and_is_not_ready_but_healthy() -> None:
    bench = make_bench()
    for _ in range(5):
        bench.submit()
    assert status(bench.engine.readiness_problem()) == "full"
    assert bench.engine.engine_problem() is None
    error = error_of(bench)
    assert error.code is ErrorCode.QUEUE_FULL
    assert "at most 2 answers" in error.message
    assert "3 more wait" in error.message
    with pytest.raises(RequestError):
        bench.engine.check_door()
    assert bench.value("vllm:admission_rejections_total", reason="queue_full") == 2


def test_the_door_is_open_as_long_as_one_answer_may_wait() -> None:
    bench = make_bench()
    for _ in range(4):
        bench.submit()
    bench.engine.check_door()
    assert bench.engine.readiness_problem() is None


def test_a_request_for_several_answers_waits_for_all_its_places_and_is_not_overtaken() -> None:
    bench = make_bench()
    first, many, single = bench.submit(), bench.submit(2), bench.submit()
    assert bench.tokenised() == [first.request_id]
    assert queued(bench) == 3
    finish(bench, first)
    assert bench.tokenised() == [first.request_id, many.request_id]
    finish(bench, many, num_choices=2)
    assert bench.tokenised()[-1] == single.request_id


def test_several_answers_are_queued_together_or_refused_together() -> None:
    bench = make_bench(max_concurrent=4, max_queue=3)
    for _ in range(4):
        bench.submit()
    bench.submit(2)
    assert refusal(bench, 2) is ErrorCode.QUEUE_FULL
    bench.submit(1)


def test_a_request_for_more_answers_than_may_wait_waits_alone() -> None:
    bench = make_bench(max_concurrent=4, max_queue=3)
    first = bench.submit()
    many = bench.submit(4)
    assert refusal(bench, 1) is ErrorCode.QUEUE_FULL
    assert bench.tokenised() == [first.request_id]
    finish(bench, first)
    assert bench.tokenised() == [first.request_id, many.request_id]
    without_queue = make_bench(max_concurrent=4, max_queue=0)
    without_queue.submit()
    assert refusal(without_queue, 4) is ErrorCode.QUEUE_FULL


def test_the_prompts_of_one_request_start_together() -> None:
    bench = make_bench(max_concurrent=2)
    first = bench.submit()
    wanted = dataclasses.replace(WANTED, prompts=WANTED.prompts * 2)
    several = bench.engine.submit(wanted)
    assert bench.tokenised() == [first.request_id]
    assert queued(bench) == 2
    finish(bench, first)
    assert bench.tokenised()[1:] == [f"{several.request_id}-0", f"{several.request_id}-1"]
    with several:
        pass
    waiting = bench.engine.submit(wanted), bench.engine.submit(wanted)
    with waiting[1]:
        pass
    assert queued(bench) == 0


def test_a_place_that_is_not_reached_in_time_is_an_error_that_says_when_to_return() -> None:
    bench = make_bench(max_concurrent=1)
    bench.submit()
    late = bench.submit()
    bench.now = 29.0
    bench.engine.sweep()
    in_time = bench.submit()
    bench.now = 31.0
    bench.engine.sweep()

    async def read() -> None:
        await late.accepted()

    with pytest.raises(RequestError, match="within 30 seconds") as caught:
        asyncio.run(read())
    assert caught.value.code is ErrorCode.OVERLOADED
    assert caught.value.retry_after_seconds is not None
    assert queued(bench) == 1
    assert bench.value("vllm:admission_rejections_total", reason="overloaded") == 1
    assert in_time.request_id not in bench.tokenised()


def test_the_whole_time_of_a_request_counts_also_in_the_queue() -> None:
    bench = make_bench(max_concurrent=1)
    first = bench.submit()
    bench.now = 99.0
    second = bench.submit()
    bench.now = 101.0
    bench.engine.sweep()
    assert failure(first) is ErrorCode.TIMEOUT
    assert bench.tokenised()[-1] == second.request_id


@pytest.mark.parametrize("room", ["worker-0", "tokenizer-0", "detokenizer-0"])
def test_a_death_leaves_the_queue_to_the_next_life(room: str) -> None:
    bench = make_bench(max_concurrent=1)
    first, second = bench.submit(), bench.submit()
    bench.arrive(make_book({room: 0}))
    assert failure(first) is ErrorCode.ENGINE_DEAD
    assert bench.tokenised() == [first.request_id]
    assert refusal(bench) is ErrorCode.ENGINE_DEAD
    bench.arrive(make_book({room: 2}))
    bench.grant("tokenizer-0", 1, epoch=2 if room == "tokenizer-0" else 1)
    assert bench.tokenised() == [first.request_id, second.request_id]


def test_stop_fails_the_queue_too() -> None:
    bench = make_bench(max_concurrent=1)
    bench.submit()
    waiting = bench.submit()
    bench.arrive(Stop(ErrorCode.SHUTTING_DOWN, "bye"))
    assert failure(waiting) is ErrorCode.SHUTTING_DOWN
    assert queued(bench) == 0
    assert bench.value("transformers_openai_api:open_requests") == 0


def test_the_time_to_return_follows_the_pace() -> None:
    bench = make_bench(max_concurrent=1, max_queue=3)
    generations = [bench.submit() for _ in range(4)]
    assert error_of(bench).retry_after_seconds == 3.0, "unknown yet: one answer a second"
    for second in range(1, 200):  # an answer every four seconds
        bench.now = 4.0 * second
        finish(bench, generations.pop(0))
        generations.append(bench.submit())
    assert error_of(bench).retry_after_seconds == pytest.approx(12.0, rel=0.15)


# ── the pace ─────────────────────────────────────────────────────────────────────────────────────


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    for _ in range(100):
        pace.note(1, 1.0)
    assert pace.seconds_for(10) == pytest.approx(10, rel=0.01)
    for _ in range(120):
        pace.note(5, 1.0)
    assert pace.seconds_for(10) == pytest.approx(2, rel=0.1)


def test_where_nothing_ends_any_more_the_wait_is_long_but_bounded() -> None:
    bench = make_bench(max_concurrent=1, max_queue=1)
    bench.submit(), bench.submit()
    for second in range(29):
        bench.now = float(second)
        bench.engine.sweep()
    assert 10 < (error_of(bench).retry_after_seconds or 0) <= 60
    pace = Pace()
    pace.note(0, 1e6)
    assert pace.seconds_for(1) > 1e5


def test_hours_of_rest_are_not_slowness() -> None:
    bench = make_bench(max_concurrent=1, max_queue=1)
    bench.now = 10_000.0
    bench.engine.sweep()
    bench.submit(), bench.submit()
    assert error_of(bench).retry_after_seconds == 1.0


# ── any order ────────────────────────────────────────────────────────────────────────────────────


class AdmissionMachine(RuleBasedStateMachine):
    """Requests come, start, end and leave in any order; a list of its own says who is first."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        limits = Limits(
            MAX_CONCURRENT,
            MAX_QUEUE,
            TIMEOUT,
            request_timeout_seconds=600.0,
            first_token_timeout_seconds=300.0,
        )
        self.admission = Admission(self.ledger, limits, Occupancy(Sheet.private(), 0))
        self.now = 0.0
        self.line: list[tuple[str, int, float]] = []  # (request, answers, since)
        self.started: dict[str, int] = {}
        self.num_requests = 0

    @rule(num_answers=st.integers(1, MAX_CONCURRENT))
    def come(self, num_answers: int) -> None:
        num_queued = sum(answers for _, answers, _ in self.line)
        starts = not self.line and sum(self.started.values()) + num_answers <= MAX_CONCURRENT
        is_refused = self.admission.refusal(num_answers) is not None
        waits = num_queued + num_answers <= MAX_QUEUE or num_queued == 0
        assert is_refused == (not starts and not waits)
        if not is_refused:
            self.num_requests += 1
            request_id = f"r{self.num_requests}"
            self.ledger.open(Entry(request_id, lambda _: None, 1e9, num_answers))
            wanted = dataclasses.replace(WANTED, num_choices=num_answers)
            self.admission.join(Waiting((request_id,), wanted, self.now))
            self.line.append((request_id, num_answers, self.now))
            self.start()

    def start(self) -> None:
        """Gives out places as the engine client does; the first of the line goes first."""
        self.admission.observe(self.now)
        while (waiting := self.admission.take(self.now)) is not None:
            (request_id,) = waiting.request_ids
            assert (request_id, waiting.wanted.num_choices, waiting.since) == self.line.pop(0)
            assert self.ledger.admit(request_id, WORKER, DETOKENIZER)
            self.started[request_id] = waiting.wanted.num_choices

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.started:
            request_id = data.draw(st.sampled_from(sorted(self.started)))
            del self.started[request_id]
            self.ledger.fail(request_id, RequestError(ErrorCode.INTERNAL, "why"))
            self.start()

    @rule(data=st.data())
    def leave_the_line(self, data: st.DataObject) -> None:
        if self.line:
            place = data.draw(st.sampled_from(self.line))
            self.line.remove(place)
            self.ledger.abort(place[0])
            self.admission.remove(place[0])
            self.start()

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        while (late := self.admission.take_late(self.now)) is not None:
            waiting, error = late
            assert self.now - self.line.pop(0)[2] >= TIMEOUT
            assert 1 <= (error.retry_after_seconds or 0) <= 60
            self.ledger.fail(waiting.request_ids[0], error)
        assert all(self.now - since < TIMEOUT for _, _, since in self.line)
        self.start()

    @invariant()
    def places_are_never_given_twice_and_never_left_unused(self) -> None:
        num_started = sum(self.started.values())
        assert self.ledger.num_under_way == num_started <= MAX_CONCURRENT
        assert self.ledger.num_queued == sum(answers for _, answers, _ in self.line) <= MAX_QUEUE
        assert not self.line or num_started + self.line[0][1] > MAX_CONCURRENT


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=num_examples(80), stateful_step_count=40)


def test_a_failed_request_tells_its_caller_once() -> None:
    """Its entry is gone from the ledger before its turn comes."""
    bench = make_bench(max_concurrent=1)
    first, second = bench.submit(), bench.submit()
    bench.now = 31.0
    bench.engine.sweep()

    async def read() -> list[object]:
        return list(await second.next_events())

    (event,) = asyncio.run(read())
    assert isinstance(event, Failed)
    finish(bench, first)
    assert bench.tokenised() == [first.request_id]
