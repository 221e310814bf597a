"""The step loop against a formula model and a mailbox of lists: what is told, and to whom."""

import inspect

from gpu_worker.worker import Worker
from shared.errors import ErrorCode
from shared.messages import Abort, RequestFailed
from shared.parts import RequestStarted, SequenceEnded
from tests.builders import END_TOKEN
from tests.fakes import (
    POISON,
)
from tests.gpu_worker.stage import (
    DETOKENIZER,
    EPOCH,
    STEP_SECONDS,
    Stage,
    expected_answer,
    generate,
    in_turn,
)


def test_the_loop_fits_on_a_screen() -> None:
    assert len(inspect.getsource(Worker.run).splitlines()) <= 40


def test_one_request_from_generate_to_end(stage: Stage) -> None:
    message = generate("r", 20, 21, 22, max_tokens=4)
    stage.run(message)
    answer = expected_answer(message)
    assert stage.answer("r") == answer
    assert stage.starts == [message.text]
    assert stage.steps[0].started == (RequestStarted(message.text, 1, 0, ()),)
    assert stage.ends == [SequenceEnded("r", 0, "length", hides_last_token=False)]
    assert stage.steps[-1].ended == tuple(stage.ends)
    assert [step.step for step in stage.steps] == list(range(1, len(answer) + 1))
    assert {(step.worker_id, step.epoch) for step in stage.steps} == {(0, EPOCH)}
    assert all(room == DETOKENIZER for room, m in stage.mailbox.sent if m in stage.steps)


def test_an_end_token_is_told_but_hidden(stage: Stage) -> None:
    prompts = ((number,) for number in range(10, 100))
    messages = (generate("r", *prompt, max_tokens=40) for prompt in prompts if POISON not in prompt)
    message = next(m for m in messages if expected_answer(m)[-1] == END_TOKEN)
    stage.run(message)
    assert stage.answer("r")[-1] == END_TOKEN
    assert stage.ends == [SequenceEnded("r", 0, "stop", hides_last_token=True)]


def test_one_message_a_step_holds_all_sequences(stage: Stage) -> None:
    messages = tuple(generate(name, number, 30) for number, name in enumerate("abc", start=20))
    stage.run(*messages)
    assert len(stage.steps) == len(stage.runner.plans) == 3
    assert all(step.request_ids == ("a", "b", "c") for step in stage.steps)
    for message in messages:
        assert stage.answer(message.request_id) == expected_answer(message)


def test_many_requests_in_any_order_get_their_own_answers(stage: Stage) -> None:
    messages = [
        generate(f"r-{n}", *range(n, n + 1 + 7 * n % 31), max_tokens=1 + n % 5) for n in range(20)
    ]
    for number, message in enumerate(messages):
        stage.mailbox.deliver(message, at=number * STEP_SECONDS / 2)
    stage.run()
    for message in messages:
        assert stage.answer(message.request_id) == expected_answer(message)
    assert sorted(start.request_id for start in stage.starts) == sorted(
        message.request_id for message in messages
    )
    assert len(stage.ends) == 20
    assert stage.runner.num_mixed > 0


def test_a_prompt_in_chunks_begins_its_text_with_its_first_token(stage: Stage) -> None:
    stage.run(generate("long", *range(40)))
    assert len(stage.runner.plans) == 5
    assert [len(step.started) for step in stage.steps] == [1, 0, 0]
    assert [len(step.token_ids) for step in stage.steps] == [1, 1, 1]


def test_an_abort_before_the_first_token_is_not_told(stage: Stage) -> None:
    stage.run(generate("r", *range(40)), Abort("r"))
    assert stage.steps == []
    assert stage.worker._unheard == {}


def test_an_abort_within_the_prompt_is_not_told(stage: Stage) -> None:
    stage.run_with(generate("r", *range(40)), Abort("r"), step=1)
    assert len(stage.runner.plans) == 1
    assert (stage.starts, stage.ends) == ([], [])
    assert stage.worker._unheard == {}


@in_turn
def test_an_abort_during_the_answer_is_told_at_once_though_nothing_else_runs(stage: Stage) -> None:
    message = generate("r", max_tokens=9)
    stage.run_with(message, Abort("r"), step=1)
    assert stage.ends == [SequenceEnded("r", 0, "abort", hides_last_token=False)]
    assert stage.steps[-1].token_ids == ()
    assert [step.step for step in stage.steps] == [1, 2]
    assert stage.answer("r") == expected_answer(message)[:1]


@in_turn
def test_an_abort_among_others_is_told_with_their_next_tokens(stage: Stage) -> None:
    both = (generate("r", 20, max_tokens=9), generate("s", 21, max_tokens=4))
    stage.mailbox.deliver(both[0])
    stage.run_with(both[1], Abort("r"), step=1)
    assert stage.steps[1].request_ids == ("s",)
    assert stage.steps[1].ended == (SequenceEnded("r", 0, "abort", hides_last_token=False),)
    assert [end.request_id for end in stage.ends] == ["r", "s"], "each end is told once"
    assert stage.answer("s") == expected_answer(both[1])


def test_an_abort_frees_its_blocks_at_once(stage: Stage) -> None:
    stage.run_with(generate("r", *range(40), max_tokens=100), Abort("r"), step=3)
    assert len(stage.runner.plans) == 3
    assert stage.worker.scheduler.pool.num_used == 0


@in_turn
def test_an_abort_of_the_unknown_or_the_ended_is_not_told(stage: Stage) -> None:
    stage.mailbox.deliver(Abort("nobody"))
    stage.run_with(generate("r", max_tokens=1), Abort("r"), Abort("r"), step=1)
    assert stage.ends == [SequenceEnded("r", 0, "length", hides_last_token=False)]


def test_a_generate_after_its_abort_is_never_started(stage: Stage) -> None:
    stage.run(Abort("r"), generate("r"), generate("s"))
    assert [start.request_id for start in stage.starts] == ["s"]
    assert stage.answer("r") == []
    assert stage.worker._unheard == {}


def test_a_generate_that_could_do_harm_fails_at_its_frontend(stage: Stage) -> None:
    stage.run(generate("bad", 5, 1000, frontend=1), generate("good"))
    (failed,) = stage.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("bad", ErrorCode.INTERNAL)
    assert ("frontend-1", failed) in stage.mailbox.sent
    assert stage.answer("good") == expected_answer(generate("good"))
    assert [start.request_id for start in stage.starts] == ["good"]


def test_logits_that_are_no_numbers_end_their_request_alone(stage: Stage) -> None:
    bad, good = generate("bad", 20, POISON), generate("good", 21)
    stage.run(bad, good)
    assert SequenceEnded("bad", 0, "error", hides_last_token=False) in stage.ends
    assert bad.text in stage.starts, "the detokenizer must know whose end it is"
    assert stage.answer("bad") == []
    assert stage.answer("good") == expected_answer(good)
