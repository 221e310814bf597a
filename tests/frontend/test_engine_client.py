"""Admission, credits, aborts, deaths and stops, against a mailbox that is driven by hand."""

import asyncio
import dataclasses

import pytest

from frontend.events import Accepted, Event, Finished, TextAdded
from frontend.generation import Generation
from shared.errors import ErrorCode, RequestError, WireError
from shared.messages import (
    Abort,
    Message,
    PromptAccepted,
    RequestFailed,
    StepsAcknowledged,
    Stop,
    Tokenize,
)
from tests.builders import ROUTE
from tests.frontend.bench import WANTED, Bench, failure, refusal, status
from tests.frontend.fakes import CACHED_TOKENS, make_book, make_report, make_text


def test_one_request_from_end_to_end(bench: Bench) -> None:
    async def consume(generation: Generation) -> list[Event]:
        assert await generation.accepted() == [Accepted(9)]
        return await generation.next_events()

    with bench.submit() as generation:
        request_id = generation.request_id
        command = bench.mailbox.sent_to("tokenizer-0")[0]
        assert isinstance(command, Tokenize)
        assert (command.request_id, command.route, command.worker_id) == (request_id, ROUTE, 0)
        bench.now = 1.0
        bench.arrive(PromptAccepted(request_id, 9, None), make_text(request_id, 0, "a"))
        bench.now = 1.5
        bench.arrive(make_text(request_id, 1, "b", finish="stop"))
        events = asyncio.run(consume(generation))
    assert events == [
        TextAdded(0, "a", 1), TextAdded(0, "b", 2, "stop"), Finished(2, CACHED_TOKENS)
    ]  # fmt: skip
    assert bench.mailbox.aborted() == []
    assert bench.value("vllm:prompt_tokens_total") == 9
    assert bench.value("vllm:generation_tokens_total") == 2
    assert bench.value("vllm:request_success_total", finished_reason="stop") == 1
    assert bench.value("vllm:time_to_first_token_seconds_sum") == 1.0
    assert bench.value("vllm:inter_token_latency_seconds_sum") == 0.5


def test_a_prompt_waits_for_credit_in_order() -> None:
    bench = Bench(credit=0)
    first, second, third = bench.submit(), bench.submit(), bench.submit()
    assert bench.tokenised() == []
    with second:
        pass  # its caller leaves while it waits
    bench.grant("tokenizer-0", 1)
    assert bench.tokenised() == [first.request_id]
    bench.grant("tokenizer-0", 1)
    assert bench.tokenised() == [first.request_id, third.request_id]
    assert not any(isinstance(message, Abort) for _, message in bench.mailbox.sent)


def test_the_tokenizer_with_most_credits_is_next() -> None:
    bench = Bench(credit=0)
    bench.arrive(make_book({"tokenizer-1": 1}))
    bench.grant("tokenizer-0", 1)
    bench.grant("tokenizer-1", 2)
    bench.submit()
    assert len(bench.tokenised("tokenizer-1")) == 1


def test_credits_die_with_their_life() -> None:
    bench = Bench(credit=5)
    bench.arrive(make_book({"tokenizer-0": 2}))
    waiting = bench.submit()
    assert bench.tokenised() == []
    bench.grant("tokenizer-0", 1, epoch=1)  # a word of the dead
    assert bench.tokenised() == []
    bench.grant("tokenizer-0", 1, epoch=2)
    assert bench.tokenised() == [waiting.request_id]


def test_admission(bench: Bench) -> None:
    for _ in range(4):
        bench.submit()
    assert refusal(bench) is ErrorCode.QUEUE_FULL
    assert bench.engine.engine_problem() is None
    assert status(bench.engine.readiness_problem()) == "full"
    assert bench.value("vllm:admission_rejections_total", reason="queue_full") == 1
    assert bench.value("transformers_openai_api:open_requests") == 4


def test_every_answer_needs_a_place_and_a_request_gets_all_or_none(bench: Bench) -> None:
    with bench.submit(3) as generation:
        assert refusal(bench, 2) is ErrorCode.QUEUE_FULL
        assert bench.engine.readiness_problem() is None, "one more answer would fit"
        bench.submit(1)
        assert status(bench.engine.readiness_problem()) == "full"
        bench.arrive(PromptAccepted(generation.request_id, 9, None))
        bench.arrive(make_text(generation.request_id, 0, "a", choice=2, finish="stop"))
        assert refusal(bench) is ErrorCode.QUEUE_FULL
    assert bench.value("vllm:admission_rejections_total", reason="queue_full") == 2
    assert bench.value("transformers_openai_api:open_requests") == 1
    bench.submit(3)
    assert refusal(bench) is ErrorCode.QUEUE_FULL


def test_the_tokenizer_hears_of_answers_and_salt(bench: Bench) -> None:
    bench.engine.submit(dataclasses.replace(WANTED, num_choices=3, cache_salt="pepper"))
    (command,) = bench.mailbox.sent_to("tokenizer-0")
    assert isinstance(command, Tokenize)
    assert (command.num_choices, command.cache_salt) == (3, "pepper")


def test_one_failed_answer_fails_all_of_the_request_once(bench: Bench) -> None:
    with bench.submit(2) as generation:
        request_id = generation.request_id
        bench.arrive(PromptAccepted(request_id, 9, None), make_text(request_id, 0, "a", choice=1))
        bench.arrive(RequestFailed(request_id, ErrorCode.INTERNAL, "no numbers", None))
        bench.arrive(RequestFailed(request_id, ErrorCode.INTERNAL, "again", None))
        assert failure(generation) is ErrorCode.INTERNAL
    assert bench.mailbox.aborted() == [], "the room that gave it up tells the worker"
    assert bench.value("vllm:request_success_total", finished_reason="error") == 1


@pytest.mark.parametrize("room", ["worker-0", "tokenizer-0", "detokenizer-0"])
def test_admission_needs_every_kind_of_room(bench: Bench, room: str) -> None:
    bench.arrive(make_book({room: 0}))
    assert refusal(bench) is ErrorCode.ENGINE_DEAD
    assert status(bench.engine.engine_problem()) == "dead"
    bench.arrive(make_book(ready=False))
    assert refusal(bench) is ErrorCode.MODEL_LOADING
    assert status(bench.engine.engine_problem()) == "loading"


@pytest.mark.parametrize("room", ["worker-0", "tokenizer-0", "detokenizer-0"])
def test_a_death_fails_what_it_owned(bench: Bench, room: str) -> None:
    bench.arrive(make_report(3, running=2, used=5))
    with bench.submit() as generation:
        bench.arrive(make_book({room: 2}))
        assert failure(generation) is ErrorCode.ENGINE_DEAD
        told = {to for to, message in bench.mailbox.sent if isinstance(message, Abort)}
        assert told == {"worker-0", "tokenizer-0"} - {room}
    assert bench.value("vllm:num_requests_running") == (0 if room == "worker-0" else 2)


def test_a_tokenizer_that_dies_after_acceptance_harms_nobody(bench: Bench) -> None:
    with bench.submit() as generation:
        bench.arrive(PromptAccepted(generation.request_id, 9, None), make_book({"tokenizer-0": 2}))
        bench.arrive(make_text(generation.request_id, 0, "a", finish="stop"))
        assert bench.mailbox.aborted() == []


def test_a_send_that_fails(bench: Bench) -> None:
    bench.mailbox.unreachable.add("tokenizer-0")
    with bench.submit() as generation:
        assert failure(generation) is ErrorCode.ENGINE_DEAD


def test_a_prompt_that_does_not_fit_the_wire(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(room: str, message: Message) -> bool:
        raise WireError("Tokenize: too many bytes")

    with monkeypatch.context() as patch:
        patch.setattr(bench.mailbox, "send", send)
        for _ in range(9):  # one more than there is credit
            with bench.submit() as generation:
                assert failure(generation) is ErrorCode.INTERNAL
    assert bench.value("transformers_openai_api:open_requests") == 0
    bench.submit()
    assert len(bench.tokenised()) == 1


def test_a_worker_that_goes_on_for_nobody_is_told_again(bench: Bench) -> None:
    bench.arrive(make_text("gone", 5, "a"))
    assert bench.mailbox.sent == [("worker-0", Abort("gone"))]
    bench.arrive(make_text("gone", 6, "b", finish="stop"))
    assert len(bench.mailbox.sent) == 1


def test_leaving_aborts_where_it_runs(bench: Bench) -> None:
    with bench.submit() as tokenising:
        pass
    assert bench.mailbox.aborted("tokenizer-0") == [tokenising.request_id]
    assert bench.mailbox.aborted("worker-0") == [tokenising.request_id]
    with bench.submit() as running:
        bench.arrive(PromptAccepted(running.request_id, 9, None))
    assert bench.mailbox.aborted("tokenizer-0") == [tokenising.request_id]
    assert bench.mailbox.aborted("worker-0") == [tokenising.request_id, running.request_id]
    assert bench.value("vllm:request_success_total", finished_reason="abort") == 2


def test_a_cancelled_consumer_aborts(bench: Bench) -> None:
    async def scenario() -> None:
        async def consume() -> None:
            with bench.submit() as generation:
                await generation.accepted()

        task = asyncio.create_task(consume())
        while not bench.tokenised():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert len(bench.mailbox.aborted()) == 1


def test_the_tokenizer_refuses(bench: Bench) -> None:
    async def read(generation: Generation) -> None:
        await generation.accepted()

    with bench.submit() as generation:
        code = ErrorCode.CONTEXT_LENGTH
        bench.arrive(RequestFailed(generation.request_id, code, "too long", "messages"))
        with pytest.raises(RequestError) as caught:
            asyncio.run(read(generation))
    assert (caught.value.code, caught.value.param) == (code, "messages")
    assert bench.mailbox.aborted() == []


def test_stop_fails_everything_and_refuses_more(bench: Bench) -> None:
    with bench.submit() as generation:
        bench.arrive(Stop(ErrorCode.SHUTTING_DOWN, "bye"))
        assert failure(generation) is ErrorCode.SHUTTING_DOWN
    assert refusal(bench) is ErrorCode.SHUTTING_DOWN
    assert status(bench.engine.readiness_problem()) == "stopping"
    assert bench.engine.engine_problem() is None


def test_the_sweep_ends_what_is_late_also_while_it_waits() -> None:
    bench = Bench(credit=0)
    with bench.submit() as generation:
        bench.now = 99.0
        bench.engine.sweep()
        bench.now = 101.0
        bench.engine.sweep()
        assert failure(generation) is ErrorCode.TIMEOUT
    bench.grant("tokenizer-0", 1)
    assert bench.tokenised() == []


def test_a_worker_that_makes_no_steps_is_stalled(bench: Bench) -> None:
    for second in range(0, 200, 20):
        bench.now = float(second)
        bench.arrive(make_report(second, running=1))
    assert bench.engine.engine_problem() is None
    for second in range(200, 300, 20):
        bench.now = float(second)
        bench.arrive(make_report(180, running=1))
    assert status(bench.engine.engine_problem()) == "stalled"
    bench.arrive(make_report(181, running=1))
    assert bench.engine.engine_problem() is None


def test_a_worker_that_says_nothing_is_stalled_and_an_idle_one_is_not(bench: Bench) -> None:
    for second in range(0, 200, 20):
        bench.now = float(second)
        bench.arrive(make_report(7))
    assert bench.engine.engine_problem() is None
    bench.now += 61
    assert status(bench.engine.engine_problem()) == "stalled"


def test_load_falls_to_zero_at_rest(bench: Bench) -> None:
    bench.arrive(make_report(3, running=2, waiting=1, used=5))
    assert bench.value("vllm:num_requests_running") == 2
    assert bench.value("vllm:num_requests_waiting") == 1
    assert bench.value("vllm:kv_cache_usage_perc") == 0.5
    bench.arrive(make_report(3))
    assert bench.value("vllm:num_requests_running") == 0
    assert bench.value("vllm:kv_cache_usage_perc") == 0


def test_messages_for_other_rooms_are_ignored(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.arrive(StepsAcknowledged(0, 1, 1))
    assert "StepsAcknowledged" in caplog.text
