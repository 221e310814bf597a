"""Logprobs on their way out of the worker: beside the tokens, and with the request's beginning."""

from dataclasses import replace

import pytest

from gpu_worker.runner import Runner
from scheduler.plan import StepPlan, StepResult, TokenScore
from scheduler.scheduler import Scheduler
from shared import wire
from shared.parts import RequestStarted, SequenceEnded, TokenLogprobs
from tests.builders import END_TOKEN, GREEDY
from tests.fakes import POISON, formula_answer, formula_score
from tests.gpu_worker.stage import Stage, expected_answer, generate, in_turn, make_stage

TOLD = replace(GREEDY, num_logprobs=1)
SCORED = replace(GREEDY, num_prompt_logprobs=1)
PROMPT = tuple(range(20, 60))  # longer than a step


def message_of(score: TokenScore | None) -> TokenLogprobs:
    """What a score becomes on the wire."""
    assert score is not None
    return TokenLogprobs(*score)


def prompt_logprobs(prompt: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    """What a prompt's tokens but the first are told with."""
    scores = [formula_score(prompt[:end]) for end in range(2, len(prompt) + 1)]
    return tuple(message_of(score) for score in scores)


def test_a_step_tells_logprobs_in_the_rows_that_want_them(stage: Stage) -> None:
    told, plain = generate("a", 20, 21, sampling=TOLD), generate("b", 30, 31)
    stage.run(told, plain)
    answer = expected_answer(told)
    for number, step in enumerate(stage.steps):
        tokens = [20, 21, *answer[: number + 1]]
        assert step.request_ids == ("a", "b")
        assert step.logprobs == (message_of(formula_score(tokens)), None)
        assert wire.decode(wire.encode(step)) == step


def test_a_step_in_which_nobody_wants_any_has_no_column(stage: Stage) -> None:
    stage.run_with(generate("a", max_tokens=2, sampling=TOLD), generate("b", 30, 31), step=2)
    assert [len(step.logprobs) for step in stage.steps if "b" in step.request_ids] == [0] * 3
    assert [len(step.logprobs) for step in stage.steps if "a" in step.request_ids] == [1] * 2


@in_turn
def test_a_row_that_fails_has_no_logprobs_and_takes_nobodys(stage: Stage) -> None:
    bad = generate("bad", 20, POISON, sampling=TOLD)
    good = generate("good", 21, 22, max_tokens=1, sampling=TOLD)
    stage.run(bad, good)
    (step,) = stage.steps
    assert step.request_ids == ("good",)
    token = expected_answer(good)[0]
    assert step.logprobs == (message_of(formula_score([21, 22, token])),)


def test_a_prompts_logprobs_come_whole_with_the_requests_beginning(stage: Stage) -> None:
    message = generate("r", *PROMPT, sampling=SCORED)
    stage.run(message)
    assert [len(step.started) for step in stage.steps] == [1, 0, 0]
    assert stage.started == [RequestStarted(message.text, 1, 0, prompt_logprobs(PROMPT))]
    assert all(step.logprobs == () for step in stage.steps)
    assert stage.answer("r") == expected_answer(message)


@pytest.mark.parametrize("length", [2, 40], ids=["within a block", "over several steps"])
def test_one_of_several_answers_brings_the_prompts_logprobs(length: int) -> None:
    stage = make_stage(prefix_caching=True)
    stage.run(generate("r", *PROMPT[:length], num_choices=3, sampling=SCORED))
    assert [s.prompt_logprobs for s in stage.started] == [prompt_logprobs(PROMPT[:length])]
    assert sorted(end.choice for end in stage.ends) == [0, 1, 2]


def test_a_known_prompt_is_scored_without_the_cache() -> None:
    stage = make_stage(prefix_caching=True)
    stage.run_with(generate("first", *PROMPT), generate("r", *PROMPT, sampling=SCORED), step=5)
    assert [started.cached_tokens for started in stage.started] == [0, 0]
    assert stage.started[1].prompt_logprobs == prompt_logprobs(PROMPT)


class Watching:
    """Counts, before each step, the scores that the worker keeps."""

    def __init__(self, runner: Runner) -> None:
        self.kept: list[int] = []
        self.scheduler: Scheduler | None = None
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.scheduler is not None
        self.kept += [len(sequence._prompt_scores) for sequence in self.scheduler._places.running]
        return self._runner.execute(plan)


def test_nothing_of_a_prompts_logprobs_is_kept_once_they_are_sent() -> None:
    watching: list[Watching] = []

    def watch(runner: Runner) -> Runner:
        watching.append(Watching(runner))
        return watching[0]

    stage = make_stage(watch)
    watching[0].scheduler = stage.worker.scheduler
    stage.run(generate("r", *PROMPT, max_tokens=5, sampling=SCORED))
    assert watching[0].kept == [0, 16, 32, 0, 0, 0, 0]


def test_a_prompt_without_valid_logits_tells_no_half_of_its_scores(stage: Stage) -> None:
    prompt = (*PROMPT, POISON, 5)
    stage.run(generate("bad", *prompt, sampling=SCORED))
    (started,) = stage.started
    assert started.prompt_logprobs == ()
    assert [end.finish_reason for end in stage.ends] == ["error"]


def first_ending_prompt() -> tuple[int, ...]:
    """A prompt that the formula answers with an end token."""
    prompts = ((number, 7) for number in range(10, 90))
    return next(p for p in prompts if formula_answer(p, 1, frozenset()) == [END_TOKEN])


@pytest.mark.parametrize("prompt", [PROMPT, first_ending_prompt()], ids=["long", "ending"])
def test_a_prompt_that_is_only_scored_ends_by_its_length_after_one_token(
    stage: Stage, prompt: tuple[int, ...]
) -> None:
    stage.run(generate("r", *prompt, max_tokens=0, sampling=SCORED))
    assert len(stage.answer("r")) == 1
    assert stage.started[0].prompt_logprobs == prompt_logprobs(prompt)
    assert stage.ends == [SequenceEnded("r", 0, "length", hides_last_token=False)]


def test_an_echo_of_the_whole_context_is_computed(stage: Stage) -> None:
    prompt = tuple(n % 90 for n in range(256))
    stage.run(generate("r", *prompt, max_tokens=0))
    assert len(stage.answer("r")) == 1
    assert stage.started[0].prompt_logprobs == ()
