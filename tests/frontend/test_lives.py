"""What the frontend does about the lives of the other rooms: first tokens, deaths, the end."""

import dataclasses

import pytest

from frontend.quarantine import QUARANTINE_SECONDS
from shared.errors import ErrorCode, FatalError, RequestError
from shared.messages import (
    Abort,
    AddressBook,
    ConfirmHeld,
    PipelineWarm,
    PromptAccepted,
    RequestFailed,
    Tokenize,
)
from shared.parts import Prompt
from tests.frontend.bench import WANTED, Bench, failure, refusal, status
from tests.frontend.fakes import make_book, make_report, make_text

EPOCHS = {"worker-0": 2, "detokenizer-0": 1}


def cold_book(worker_epoch: int = 2, *, stage: str = "") -> AddressBook:
    """All rooms, of which the worker has just begun another life."""
    worker, *others = make_book({"worker-0": worker_epoch}).peers
    worker = dataclasses.replace(worker, is_ready=not stage, stage=stage)
    return AddressBook((worker, *others), is_warm=False)


def draining_book() -> AddressBook:
    """All rooms, and nobody is to be let in any more."""
    return dataclasses.replace(make_book(), is_draining=True)


def warm_up_of(bench: Bench) -> str:
    """The id of the newest warm-up that a tokenizer was given."""
    return [name for name in bench.tokenised() if name.startswith("warm-up")][-1]


def answer(bench: Bench, request_id: str, epoch: int = 2) -> None:
    bench.arrive(
        PromptAccepted(request_id, 1, None),
        make_text(request_id, 0, "", epoch=epoch, finish="length"),
    )


# ── warm-up ──────────────────────────────────────────────────────────────────────────────────────


def test_callers_come_after_a_first_token(bench: Bench) -> None:
    bench.arrive(cold_book())
    assert refusal(bench) is ErrorCode.MODEL_LOADING
    assert status(bench.engine.engine_problem()) == "loading"
    (command,) = (m for m in bench.mailbox.sent_to("tokenizer-0") if isinstance(m, Tokenize))
    assert (command.prompt.token_ids, command.max_tokens) == ((0,), 1)
    answer(bench, warm_up_of(bench))
    assert bench.mailbox.sent_to("launcher-0") == [PipelineWarm(EPOCHS)]
    assert refusal(bench) is ErrorCode.MODEL_LOADING  # the launcher has the last word
    bench.arrive(dataclasses.replace(cold_book(), is_warm=True))
    assert bench.engine.readiness_problem() is None
    bench.submit()


def test_a_warm_up_is_asked_for_once_in_each_life(bench: Bench) -> None:
    bench.arrive(cold_book())
    bench.arrive(make_report(1))
    bench.arrive(cold_book())
    assert len(bench.tokenised()) == 1
    bench.arrive(cold_book(3))
    assert len(bench.tokenised()) == 2
    answer(bench, warm_up_of(bench), epoch=3)
    (warm,) = bench.mailbox.sent_to("launcher-0")
    assert warm == PipelineWarm({**EPOCHS, "worker-0": 3})


def test_the_launcher_is_told_of_a_first_token_until_it_is_reached(bench: Bench) -> None:
    bench.mailbox.unreachable.add("launcher-0")
    bench.arrive(cold_book())
    answer(bench, warm_up_of(bench))
    bench.engine.sweep()
    assert bench.mailbox.sent_to("launcher-0") == []
    bench.mailbox.unreachable.clear()
    for _ in range(2):
        bench.engine.sweep()
    assert bench.mailbox.sent_to("launcher-0") == [PipelineWarm(EPOCHS)]


def test_a_warm_up_is_no_request_of_a_caller(bench: Bench) -> None:
    bench.arrive(cold_book())
    answer(bench, warm_up_of(bench))
    assert bench.value("vllm:request_success_total", finished_reason="length") == 0
    assert bench.value("transformers_openai_api:open_requests") == 0


def test_a_model_that_cannot_say_its_first_token_is_fatal(bench: Bench) -> None:
    bench.arrive(cold_book())
    sentence = "The model could not compute this answer."
    with pytest.raises(FatalError, match="first token: The model could not compute"):
        bench.arrive(RequestFailed(warm_up_of(bench), ErrorCode.INTERNAL, sentence, None))


def test_the_stage_of_a_start_is_shown(bench: Bench) -> None:
    bench.arrive(cold_book(stage="loading the weights"))
    problem = bench.engine.engine_problem()
    assert problem is not None
    assert "worker-0: loading the weights" in problem.error.message


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────


def test_the_worker_is_asked_what_a_dead_tokenizer_has_passed_on(bench: Bench) -> None:
    silent, told = bench.submit(), bench.submit()
    for request in (silent, told):
        bench.arrive(PromptAccepted(request.request_id, 9, None))
    bench.arrive(make_text(told.request_id, 0, "a"))
    bench.arrive(make_book({"tokenizer-0": 2}))
    questions = [m for m in bench.mailbox.sent_to("worker-0") if isinstance(m, ConfirmHeld)]
    assert questions == [ConfirmHeld(0, 0, (silent.request_id,))]
    code = ErrorCode.ENGINE_DEAD
    bench.arrive(RequestFailed(silent.request_id, code, "never came", None))
    assert failure(silent) is code


def test_a_request_under_way_at_two_deaths_is_refused_for_a_while(bench: Bench) -> None:
    other = dataclasses.replace(WANTED, prompts=(Prompt(token_ids=(1, 2)),))
    for epoch in (2, 3):
        generation = bench.submit()
        bench.arrive(PromptAccepted(generation.request_id, 9, None))
        bench.arrive(make_book({"worker-0": epoch}))
    assert refusal(bench) is ErrorCode.INVALID_VALUE
    with pytest.raises(RequestError, match="refused for 10 minutes"):
        bench.engine.submit(dataclasses.replace(WANTED, sampling=WANTED.sampling))
    bench.engine.submit(other)
    bench.now += QUARANTINE_SECONDS + 1
    bench.submit()


def test_who_waits_in_the_queue_has_no_part_in_a_death() -> None:
    bench = Bench(max_concurrent=1, max_queue=9)
    running, queued = bench.submit(), bench.submit(num_choices=1)
    bench.arrive(PromptAccepted(running.request_id, 9, None))
    bench.arrive(make_book({"worker-0": 2}))
    assert failure(running) is ErrorCode.ENGINE_DEAD
    assert queued.request_id in bench.tokenised()
    bench.mailbox.close()


# ── deadlines and the end ────────────────────────────────────────────────────────────────────────


def test_a_first_token_that_takes_too_long() -> None:
    bench = Bench(first_token_timeout=5.0)
    slow, fast = bench.submit(), bench.submit()
    for request in (slow, fast):
        bench.arrive(PromptAccepted(request.request_id, 9, None))
    bench.arrive(make_text(fast.request_id, 0, "a"))
    bench.now = 4.9
    bench.engine.sweep()
    assert not [m for m in bench.mailbox.sent_to("worker-0") if isinstance(m, Abort)]
    bench.now = 5.0
    bench.engine.sweep()
    assert failure(slow) is ErrorCode.TIMEOUT
    assert bench.mailbox.aborted() == [slow.request_id]
    bench.mailbox.close()


def test_a_drain_lets_nobody_in_and_ends_nobody(bench: Bench) -> None:
    generation = bench.submit()
    bench.arrive(PromptAccepted(generation.request_id, 9, None), draining_book())
    assert refusal(bench) is ErrorCode.SHUTTING_DOWN
    assert status(bench.engine.readiness_problem()) == "draining"
    assert bench.engine.engine_problem() is None
    assert bench.value("transformers_openai_api:open_requests") == 1
    bench.arrive(make_text(generation.request_id, 0, "a", finish="stop"))
    assert bench.engine.is_empty
    assert bench.mailbox.aborted() == []


def test_who_waits_for_a_place_at_a_drain_gets_it() -> None:
    bench = Bench(max_concurrent=1, max_queue=1)
    first, second = bench.submit(), bench.submit()
    bench.arrive(draining_book(), PromptAccepted(first.request_id, 9, None))
    bench.arrive(make_text(first.request_id, 0, "a", finish="stop"))
    assert bench.tokenised() == [first.request_id, second.request_id]
    bench.mailbox.close()
