"""Several answers to one prompt, and what the prefix cache knew of it: the worker's side."""

import dataclasses

import pytest

from gpu_worker.intake import to_sequences
from scheduler.sequence import Sequence
from shared.errors import ErrorCode
from shared.messages import Abort, RequestFailed, WorkerReported
from shared.parts import RequestStarted, SequenceEnded
from tests.builders import GREEDY
from tests.fakes import POISON
from tests.gpu_worker.stage import LIMITS, Stage, expected_answer, generate, make_stage

PROMPT = tuple(range(20, 33))  # three blocks of four, and one token


def aborted(choice: int) -> SequenceEnded:
    """The end of an answer of request r that nobody wants."""
    return SequenceEnded("r", choice, "abort", hides_last_token=False)


def test_every_answer_has_its_tokens_and_the_request_starts_once(stage: Stage) -> None:
    message = generate("r", *PROMPT, max_tokens=4, num_choices=3)
    stage.run(message)
    for choice in range(3):
        assert stage.answer("r", choice) == expected_answer(message)
    assert stage.started == [RequestStarted(message.text, 3, 0, ())]
    assert [(end.choice, end.finish_reason) for end in stage.ends] == [
        (0, "length"), (1, "length"), (2, "length")
    ]  # fmt: skip


def test_every_answer_has_noise_of_its_own(stage: Stage) -> None:
    sampling = dataclasses.replace(GREEDY, seed=2**63 - 2)
    stage.run(dataclasses.replace(generate("r", num_choices=4), sampling=sampling))
    admissions = [a for plan in stage.runner.plans for a in plan.admissions]
    assert [a.sampling.seed for a in admissions] == [2**63 - 2, 2**63 - 1, 0, 1]


def test_more_answers_than_rows_come_one_after_the_other(stage: Stage) -> None:
    message = generate("r", *PROMPT, num_choices=7)
    stage.run(message)
    for choice in range(7):
        assert stage.answer("r", choice) == expected_answer(message)
    assert len(stage.started) == 1
    assert sorted(end.choice for end in stage.ends) == list(range(7))


@pytest.mark.parametrize("choice", [0, 1, 6], ids=["leader", "follower", "waiting"])
def test_an_abort_of_one_answer_leaves_the_others(stage: Stage, choice: int) -> None:
    message = generate("r", 20, 21, max_tokens=6, num_choices=7)
    stage.run_with(message, Abort("r", choice), step=2)
    assert stage.ends.count(aborted(choice)) == 1
    for other in set(range(7)) - {choice}:
        assert stage.answer("r", other) == expected_answer(message)
    assert len(stage.answer("r", choice)) < 6
    assert sorted(end.choice for end in stage.ends) == list(range(7))
    assert stage.worker.scheduler.pool.num_used == 0


def test_an_abort_of_the_request_ends_every_answer_and_each_end_is_told_once(stage: Stage) -> None:
    message = generate("r", 20, 21, max_tokens=60, num_choices=6)
    stage.run_with(message, Abort("r", 1), Abort("r"), Abort("r"), step=2)
    assert len(stage.runner.plans) == 2
    assert sorted(end.choice for end in stage.ends) == list(range(6))
    assert {end.finish_reason for end in stage.ends} == {"abort"}
    assert stage.worker.scheduler.pool.num_used == 0


def test_an_abort_before_the_first_token_is_not_told_of_any_answer(stage: Stage) -> None:
    stage.run_with(generate("r", *range(40), num_choices=3), Abort("r"), step=1)
    assert (stage.started, stage.ends) == ([], [])
    assert stage.worker._unheard == {}


def test_an_abort_that_overtakes_its_generate_ends_every_answer(stage: Stage) -> None:
    stage.run(Abort("r"), generate("r", num_choices=5), generate("s", num_choices=2))
    assert [started.text.request_id for started in stage.started] == ["s"]
    assert {end.request_id for end in stage.ends} == {"s"}
    assert stage.worker._unheard == {}


def test_answers_without_valid_logits_are_all_told(stage: Stage) -> None:
    stage.run(generate("bad", 20, POISON, num_choices=2), generate("good", 21))
    assert [end for end in stage.ends if end.request_id == "bad"] == [
        SequenceEnded("bad", choice, "error", hides_last_token=False) for choice in range(2)
    ]
    assert [started.num_choices for started in stage.started] == [2, 1]
    assert stage.answer("good") == expected_answer(generate("good", 21))


def test_a_request_for_no_answer_fails_at_its_frontend(stage: Stage) -> None:
    stage.run(generate("r", num_choices=0))
    (failed,) = stage.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("r", ErrorCode.INTERNAL)
    assert stage.steps == []


def cached_tokens(stage: Stage) -> dict[str, int]:
    """What each request was told of its prompt."""
    return {started.text.request_id: started.cached_tokens for started in stage.started}


def test_a_prompt_that_was_seen_is_said_to_be_cached() -> None:
    stage = make_stage(prefix_caching=True)
    stage.run_with(
        generate("first", *PROMPT), generate("again", *PROMPT), generate("other", 7, *PROMPT),
        step=4,
    )  # fmt: skip
    assert cached_tokens(stage) == {"first": 0, "again": 12, "other": 0}
    assert stage.answer("again") == stage.answer("first") == expected_answer(generate("", *PROMPT))
    (*_, report) = stage.mailbox.of_type(WorkerReported)
    assert (report.num_queried_tokens, report.num_cached_tokens) == (13 + 13 + 14, 12)
    assert report.num_prompt_tokens == 13 + 1 + 14


def test_answers_to_one_prompt_share_its_blocks_which_are_not_called_cached() -> None:
    stage = make_stage(prefix_caching=True)
    stage.run(generate("r", *PROMPT, num_choices=3))
    assert cached_tokens(stage) == {"r": 0}
    assert stage.runner.num_written == 13 + 2 * 1 + 3 * 2, "a follower computes its last token"


def test_a_salt_shares_with_its_like_alone() -> None:
    stage = make_stage(prefix_caching=True)
    stage.run_with(
        generate("a", *PROMPT, cache_salt="x"),
        generate("b", *PROMPT, cache_salt="x"),
        generate("c", *PROMPT, cache_salt="y"),
        generate("d", *PROMPT),
        step=4,
    )
    assert cached_tokens(stage) == {"a": 0, "b": 12, "c": 0, "d": 0}


def salts(*lengths_and_salts: tuple[int, str]) -> list[str | None]:
    """The salts of sequences, where prompts above ten tokens are rotated in another way."""
    limits = dataclasses.replace(LIMITS, rope_class=lambda length: "long" if length > 10 else "")
    found: list[Sequence] = []
    for length, salt in lengths_and_salts:
        message = generate("r", *range(10, 10 + length), cache_salt=salt, num_choices=2)
        found += to_sequences(message, limits)
    return [sequence.cache_salt for sequence in found]


def test_every_answer_has_the_salt_and_rotation_of_its_request() -> None:
    first, fork, other, _, long, _, forged, _ = salts((5, "x"), (5, "y"), (11, "x"), (5, "long\nx"))
    assert first == fork
    assert len({first, other, long, forged}) == 4


def test_sequences_that_lost_their_blocks_are_counted_and_answered() -> None:
    stage = make_stage(num_blocks=8)
    messages = tuple(generate(name, number, max_tokens=24) for number, name in enumerate("ab", 30))
    stage.run(*messages)
    for message in messages:
        assert stage.answer(message.request_id) == expected_answer(message)
    (*_, report) = stage.mailbox.of_type(WorkerReported)
    assert report.num_preemptions == stage.worker.scheduler.counters.num_preemptions > 0
