"""What is told of a real model's tokens and prompts equals the stock model's own log softmax."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker import logprobs
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.runner import Runner
from scheduler.plan import StepPlan, StepResult, TokenScore
from scheduler.sequence import State
from shared.sampling import SamplingParams
from tests.builders import GREEDY, make_model
from tests.gpu_worker.engine import NUM_ROWS, Request, Run, run
from tests.gpu_worker.test_causal_lm import requests

TOLERANCE = 1e-4
TOLD = replace(GREEDY, num_logprobs=5)
SCORED = replace(GREEDY, num_logprobs=3, num_prompt_logprobs=4)
SETTINGS = (
    TOLD,
    GREEDY,
    replace(SCORED, temperature=1.0, seed=2, top_p=0.9, repetition_penalty=1.4),
    SamplingParams(seed=3, num_logprobs=0),
    SamplingParams(seed=4, frequency_penalty=0.6, logit_bias=((7, 3.0),), min_tokens=2),
    replace(SCORED, num_logprobs=None, num_prompt_logprobs=0),
    SamplingParams(seed=5, num_logprobs=20, logit_bias=((9, 5.0),), min_tokens=4),
)
WANTED = requests(sampling=SETTINGS)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama")


def stock_logprobs(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """[T, V]: of each token after these, by one full forward pass."""
    forward: Any = model
    with torch.no_grad():
        logits = forward(torch.tensor([[*tokens]])).logits[0]
    logprobs: torch.Tensor = logits.double().log_softmax(-1)
    return logprobs


def assert_score(score: TokenScore | None, expected: torch.Tensor, token: int, count: int) -> None:
    """One token's score; `expected` is [V]."""
    assert score is not None
    assert score.logprob == pytest.approx(float(expected[token]), abs=TOLERANCE)
    best = expected.topk(count).values.tolist()
    assert score.top_logprobs == pytest.approx(best, abs=TOLERANCE)
    assert [float(expected[n]) for n in score.top_ids] == pytest.approx(best, abs=TOLERANCE)
    assert len(set(score.top_ids)) == count


def assert_told(model: PreTrainedModel, wanted: list[Request], done: Run) -> None:
    """Every request was told what it asked for, and nothing else."""
    found = zip(wanted, done.answers, done.scores, done.prompt_scores, strict=True)
    for request, answer, scores, prompt_scores in found:
        tokens, first = [*request.prompt, *answer], len(request.prompt)
        expected = stock_logprobs(model, tokens)
        if (count := request.sampling.num_logprobs) is None:
            assert scores == [None] * len(answer)
        else:
            for place, score in enumerate(scores, start=first):
                assert_score(score, expected[place - 1], tokens[place], count)
        if (count := request.sampling.num_prompt_logprobs) is None:
            assert prompt_scores == ()
        else:
            assert len(prompt_scores) == first - 1
            for place, score in enumerate(prompt_scores, start=1):
                assert_score(score, expected[place - 1], tokens[place], count)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_batched_and_chunked_requests_are_told_what_the_stock_model_says(name: str) -> None:
    model = make_model(name)
    done = run(model, WANTED)
    assert_told(model, WANTED, done)
    cut = [c for plan in done.plans for c in plan.chunks if c.targets and not c.samples]
    assert len(cut) > 2, "prompts are scored over several steps"


def test_logprobs_are_those_of_the_logits_that_generate_saw(model: PreTrainedModel) -> None:
    request = Request(tuple(range(3, 30)), 12, TOLD)
    generate: Any = model.generate
    prompt = torch.tensor([request.prompt])
    found = generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    done = run(model, [request])
    assert done.answers[0] == found.sequences[0, len(request.prompt) :].tolist()
    for score, logits, token in zip(done.scores[0], found.logits, done.answers[0], strict=True):
        assert_score(score, logits[0].log_softmax(-1), token, 5)


def test_preempted_requests_are_told_each_token_once(model: PreTrainedModel) -> None:
    wanted = [replace(request, max_tokens=request.max_tokens + 15) for request in WANTED]
    done = run(model, wanted, num_blocks=9, prefix_caching=True)
    assert done.counters.num_preemptions > 2
    assert_told(model, wanted, done)


def test_a_prompt_that_is_cached_is_scored_all_the_same(model: PreTrainedModel) -> None:
    prompt = tuple(range(3, 80))
    wanted = [Request(prompt, 3, sampling) for sampling in (GREEDY, SCORED, GREEDY, SCORED)]
    done = run(model, wanted, prefix_caching=True)
    assert done.counters.num_cached_tokens > 0, "those that are not scored share"
    assert_told(model, wanted, done)


def test_the_first_of_three_answers_scores_their_prompt(model: PreTrainedModel) -> None:
    sampling = replace(SCORED, temperature=1.0, seed=8)
    done = run(model, [Request(tuple(range(3, 70)), 6, sampling, num_choices=3)])
    assert len({tuple(answer) for answer in done.answers}) == 3
    alone = [replace(sampling, seed=8 + n, num_prompt_logprobs=None) for n in range(3)]
    wanted = [
        Request(tuple(range(3, 70)), 6, replace(alone[n], num_prompt_logprobs=None if n else 4))
        for n in range(3)
    ]
    assert_told(model, wanted, done)


def test_a_request_is_told_the_same_alone_and_in_a_crowd(model: PreTrainedModel) -> None:
    crowd = run(model, WANTED)
    for number, request in enumerate(WANTED):
        alone = run(model, [request])
        assert alone.answers[0] == crowd.answers[number]
        pairs = [*zip(alone.scores[0], crowd.scores[number], strict=True)]
        pairs += zip(alone.prompt_scores[0], crowd.prompt_scores[number], strict=True)
        for score, other in pairs:
            if score is not None:
                assert other is not None
                assert score.logprob == pytest.approx(other.logprob, abs=TOLERANCE)


@pytest.mark.parametrize("size", [1, 7, 33])
def test_prompts_scored_in_tiles_are_told_the_same(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(logprobs, "_PROMPT_LOGITS", size * 200)
    done = run(model, WANTED)
    assert_told(model, WANTED, done)
    most = max(sum(len(chunk.targets) for chunk in plan.chunks) for plan in done.plans)
    assert most > size
    assert len(done.shapes) > sum(not plan.is_empty for plan in done.plans)


class Cramped:
    """A device with memory for nine tokens of a step, which it notices when all is computed."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._runner.execute(plan)
        if plan.num_tokens > 9:
            raise torch.OutOfMemoryError
        return result


def test_steps_that_run_again_in_parts_tell_each_token_once(model: PreTrainedModel) -> None:
    done = run(model, WANTED, wrap=lambda runner: IsolatingRunner(Cramped(runner)))
    assert set(done.states) <= {State.LENGTH, State.STOPPED}
    assert_told(model, WANTED, done)


def test_a_prompt_whose_logits_are_no_numbers_fails_alone(model: PreTrainedModel) -> None:
    broken = 199
    weights: Any = make_model("llama")
    with torch.no_grad():
        weights.get_input_embeddings().weight[broken] = float("nan")
    good, bad = Request(tuple(range(3, 60)), 3, SCORED), Request((*range(3, 60), broken), 3, SCORED)
    done = run(weights, [good, bad, *[good] * NUM_ROWS])
    assert [state is State.FAILED for state in done.states] == [False, True, *[False] * NUM_ROWS]
    assert (done.answers[1], done.prompt_scores[1]) == ([], ())
    assert_told(weights, [good], run(weights, [good]))
    assert {done.prompt_scores[n] for n in range(2, 2 + NUM_ROWS)} != {()}
