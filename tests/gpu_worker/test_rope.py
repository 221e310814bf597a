"""Angles follow from a token's own sequence, whoever shares its flat row, as in `generate()`."""

import copy
import dataclasses
import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker.architectures import longest_context
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.rope import SequenceAngles
from scheduler.plan import Chunk, StepPlan
from shared.sampling import SamplingParams
from tests.builders import make_admission, make_model
from tests.gpu_worker.engine import Request, assert_equal, generated, run

ORIGINAL = 48  # tokens: what the random models are "trained" for
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0 + n / 16 for n in range(8)],
    "long_factor": [2.0 + n for n in range(8)],
}
MODELS: dict[str, dict[str, Any]] = {
    "llama dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL},
    "llama longrope": {"rope_parameters": LONGROPE},
    "phi3 longrope": {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": ORIGINAL,
    },
    "gemma3_text dynamic": {
        "head_dim": 16,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": DYNAMIC,
        },
    },
}
VARIED = SamplingParams(seed=0, temperature=0.0, repetition_penalty=3.0)


def model_of(name: str) -> PreTrainedModel:
    """A random model of `MODELS` whose answers have full length."""
    model = make_model(name.split()[0], **MODELS[name])
    assert model.generation_config is not None
    model.generation_config.eos_token_id = []
    return model


def request(num_prompt_tokens: int, max_tokens: int, seed: int = 0) -> Request:
    """A prompt of random tokens."""
    prompt = random.Random(seed).choices(range(3, 200), k=num_prompt_tokens)
    return Request(tuple(prompt), max_tokens, VARIED)


def batch_of(lengths: list[int]) -> Batch:
    """A step in which prompts of these lengths are computed whole."""
    chunks = []
    for row, length in enumerate(lengths):
        blocks = range(1 + 10 * row, 1 + 10 * row + -(-length // 16))
        chunks.append(Chunk(row, 0, (7,) * length, tuple(blocks), 0, samples=True))
    admissions = tuple(
        make_admission(row, num_prompt_tokens=length) for row, length in enumerate(lengths)
    )
    plan = StepPlan(1, admissions, tuple(chunks), 0)
    rows = Rows(len(lengths))
    rows.update(plan)
    return prepare(plan, rows, torch.device("cpu"))


@pytest.mark.parametrize("name", MODELS)
def test_one_long_sequence_among_seven_short_ones_changes_none_of_them(name: str) -> None:
    model = model_of(name)
    short = [request(length, 5, seed=length) for length in (1, 9, 16, 30, 33, 40, 43)]
    together = run(model, [short[0], request(150, 20), *short[1:]]).answers
    del together[1]
    assert together == run(model, short).answers
    for wanted, answer in zip(short, together, strict=True):
        assert_equal(answer, generated(copy.deepcopy(model), wanted))


@pytest.mark.parametrize("name", MODELS)
def test_a_long_prompt_among_short_ones_is_answered_as_generated(name: str) -> None:
    model = model_of(name)
    wanted = [request(9, 12), request(ORIGINAL + 1, 20), request(100, 20), request(ORIGINAL, 1)]
    answers = run(model, wanted).answers
    for one, answer in zip(wanted, answers, strict=True):
        assert_equal(answer, generated(copy.deepcopy(model), one))


@pytest.mark.parametrize("name", [name for name in MODELS if "phi3" not in name])
def test_an_answer_that_outgrows_the_original_length_is_as_generated(name: str) -> None:
    model = model_of(name)
    wanted = [request(40, 30), request(ORIGINAL, 10), request(5, 20)]
    answers = run(model, wanted).answers
    for one, answer in zip(wanted, answers, strict=True):
        assert_equal(answer, generated(copy.deepcopy(model), one))


@pytest.mark.parametrize("name", MODELS)
def test_sequences_recomputed_or_begun_from_shared_blocks_have_the_same_angles(name: str) -> None:
    model = model_of(name)
    long = request(90, 8)
    wanted = [
        long,
        dataclasses.replace(long, max_tokens=3),
        Request(long.prompt[:40], 6, VARIED),
        Request(long.prompt[:70], 6, VARIED),
        request(20, 25),
        request(3, 40),
    ]
    done = run(model, wanted, num_blocks=9, prefix_caching=True)
    assert done.counters.num_cached_tokens > 0
    assert done.answers == [run(model, [one]).answers[0] for one in wanted]


@pytest.mark.parametrize("length", [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL])
@pytest.mark.parametrize("name", MODELS)
def test_angles_are_those_of_stock_code_alone(name: str, length: int) -> None:
    ours, stock = model_of(name), model_of(name)
    batch = batch_of([2 * ORIGINAL, length, 4])
    SequenceAngles(ours).begin(batch)
    rotary, fresh = ours.model.rotary_emb, stock.model.rotary_emb
    by_type = ["full_attention"] if "gemma3" in name else []
    row = torch.zeros(1)
    actual = rotary(row, batch.positions, *by_type)
    own = slice(2 * ORIGINAL, 2 * ORIGINAL + length)
    expected = fresh(row, torch.arange(length)[None], *by_type)
    for part, stock_part in zip(actual, expected, strict=True):
        torch.testing.assert_close(part[:, own], stock_part)


def test_other_rope_is_left_alone() -> None:
    model = make_model("llama")
    angles = SequenceAngles(model)
    assert "forward" not in vars(model.model.rotary_emb)
    assert angles.prefix_class(10**6) == ""


@pytest.mark.parametrize(
    ("name", "classes"),
    [("llama dynamic", ["", "", "49", "50"]), ("llama longrope", ["", "", "long", "long"])],
)
def test_prompts_share_blocks_only_with_those_whose_keys_are_rotated_alike(
    name: str, classes: list[str]
) -> None:
    angles = SequenceAngles(model_of(name))
    assert [angles.prefix_class(length) for length in (1, 48, 49, 50)] == classes


def test_ntk_scaling_lengthens_the_context() -> None:
    assert longest_context(model_of("llama dynamic").config, 0) == 4 * ORIGINAL
    assert longest_context(model_of("llama longrope").config, 0) == 256
