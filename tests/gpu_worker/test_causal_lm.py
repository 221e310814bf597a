"""Batched, chunked, staggered answers equal `generate()`'s, token for token."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from scheduler.sequence import State
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, GREEDY, RANDOM_MODEL, make_model
from tests.gpu_worker.engine import NUM_ROWS, SETTINGS, Request, assert_as_generated, run

PROMPT_LENGTHS = (1, 100, 15, 16, 17, 31, 32, 33, 2, 47, 48, 49, 63, 64, 65, 39)
ANSWER_LENGTHS = (20, 3, 17, 16, 1, 9, 33, 2, 15, 5, 18, 12, 1, 7, 24, 10)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 32}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama linear": {"rope_parameters": LINEAR},
    "llama yarn": {"rope_parameters": YARN},
    "llama llama3": {"rope_parameters": LLAMA3},
    "llama one kv head": {"num_key_value_heads": 1},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": None},
}


def model_of(name: str) -> PreTrainedModel:
    """A random model of `MODELS`."""
    return make_model(name.split()[0], **MODELS[name])


def requests(*, sampling: tuple[SamplingParams, ...] = (GREEDY,)) -> list[Request]:
    """Sixteen requests whose lengths lie around the borders of blocks and chunks."""
    numbers = random.Random(5)
    lengths = list(zip(PROMPT_LENGTHS, ANSWER_LENGTHS, strict=True))
    prompts = [tuple(numbers.choices(range(3, 200), k=length)) for length, _ in lengths]
    return [
        Request(prompt, max_tokens, sampling[n % len(sampling)])
        for n, (prompt, (_, max_tokens)) in enumerate(zip(prompts, lengths, strict=True))
    ]


@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_generate(name: str) -> None:
    model = model_of(name)
    wanted = requests()
    done = run(model, wanted)
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)
    assert sum(plan.is_mixed for plan in done.plans) > 5
    assert sum(not chunk.samples for plan in done.plans for chunk in plan.chunks) > 5


def test_random_models_are_worth_comparing() -> None:
    answers = run(model_of("llama"), requests()).answers
    assert len({token_id for answer in answers for token_id in answer}) > 20
    assert any(answer[-1] == END_TOKEN or len(set(answer)) > 5 for answer in answers)


def test_an_end_token_of_the_model_ends_the_answer() -> None:
    model = model_of("llama")
    wanted = Request(tuple(range(3, 20)), 30)
    free = run(model, [wanted]).answers[0]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [END_TOKEN, free[4]]
    assert run(model, [wanted]).answers[0] == free[: free.index(free[4]) + 1]


def test_a_step_is_one_forward_pass_of_one_row_without_padding() -> None:
    done = run(model_of("llama"), requests())
    steps = [plan for plan in done.plans if not plan.is_empty]
    assert done.shapes == [(1, plan.num_tokens) for plan in steps]
    assert max(len(plan.chunks) for plan in steps) == NUM_ROWS


def test_scattered_blocks_give_the_same_answers() -> None:
    model, wanted = model_of("qwen3"), requests()
    done = run(model, wanted, is_fragmented=True)
    scattered = [blocks for blocks in done.blocks if len(blocks) > 1]
    assert len(scattered) > 8
    assert all(b != a + 1 for blocks in scattered for a, b in itertools.pairwise(blocks))
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)


def test_a_seeded_answer_is_the_same_alone_and_in_company() -> None:
    model = model_of("llama")
    settings = (
        SamplingParams(seed=1, temperature=2.0),
        SamplingParams(seed=2, temperature=1.0, top_p=0.8),
        SamplingParams(seed=2**63 - 1, temperature=3.0, top_k=40),
        GREEDY,
    )
    wanted = requests(sampling=settings)
    together = run(model, wanted).answers
    assert [run(model, [request]).answers[0] for request in wanted] == together
    assert together != run(model, requests()).answers


def test_a_penalised_answer_is_the_same_alone_in_a_crowd_and_after_preemption() -> None:
    model = model_of("llama")
    settings = tuple(
        SamplingParams(
            seed=seed,
            temperature=1.0,
            repetition_penalty=1.3,
            frequency_penalty=0.5,
            presence_penalty=0.3,
            min_p=0.01 * (seed % 2),
            logit_bias=((7, 2.0),),
            min_tokens=2,
        )
        for seed in range(16)
    )
    wanted = requests(sampling=settings)
    wanted = [replace(request, max_tokens=request.max_tokens + 15) for request in wanted]
    crowd = run(model, wanted, settings=replace(SETTINGS, continuous_batching_batch_size=16))
    preempted = run(model, wanted, num_blocks=9, prefix_caching=True)
    assert [run(model, [request]).answers[0] for request in wanted] == crowd.answers
    assert preempted.answers == crowd.answers
    assert max(len(plan.chunks) for plan in crowd.plans) > 12
    assert crowd.counters.num_preemptions == 0
    assert preempted.counters.num_preemptions > 2


def test_a_row_that_is_taken_again_remembers_nothing() -> None:
    model = model_of("llama")
    hot = SamplingParams(seed=3, temperature=5.0, top_k=3)
    first = [Request((7, 8, 9), 4, hot) for _ in range(NUM_ROWS)]
    second = requests()[:NUM_ROWS]
    assert run(model, first + second).answers[NUM_ROWS:] == run(model, second).answers


def test_logits_that_are_no_numbers_fail_their_sequence_and_none_that_follows() -> None:
    model = model_of("llama")
    broken_token = 199
    with torch.no_grad():
        embedding: Any = model.get_input_embeddings()
        embedding.weight[broken_token] = float("nan")
    good, bad = Request(tuple(range(3, 20)), 5), Request((5, broken_token, 6), 5)
    done = run(model, [good, *[bad] * NUM_ROWS, *[good] * NUM_ROWS])
    assert done.states.count(State.FAILED) == NUM_ROWS
    assert done.answers[1 : 1 + NUM_ROWS] == [[]] * NUM_ROWS
    for answer in (done.answers[0], *done.answers[1 + NUM_ROWS :]):
        assert_as_generated(model, good, answer)


def test_the_models_are_small() -> None:
    assert RANDOM_MODEL["max_position_embeddings"] >= max(PROMPT_LENGTHS) + max(ANSWER_LENGTHS)
