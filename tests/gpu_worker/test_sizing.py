"""The cache is as large as memory, use and flags allow, and says which of them decided."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpu_worker import sampler as sampling_module
from gpu_worker import sizing
from gpu_worker.batch import Rows, prepare
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from gpu_worker.loading import serve
from gpu_worker.sampler import Sampler
from gpu_worker.sizing import (
    CacheSize,
    activation_bytes,
    lengths_without_effect,
    num_blocks_of,
    probe_plan,
    scoring,
    size_cache,
)
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.sampling import MAX_LOGPROBS
from tests.builders import make_model

CPU = torch.device("cpu")
GEOMETRY = KVGeometry((LayerGeometry(2, 16, 16),) * 4, torch.float32, CPU)
BLOCK_BYTES = 4 * BLOCK_SIZE * 2 * 32 * 4  # layers, tokens, heads, key and value, float32
LONGEST = 256


@pytest.fixture
def free_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 81 blocks: at a half 40, of which one is scratch."""
    monkeypatch.setattr(sizing, "free_bytes", lambda _: 81 * BLOCK_BYTES)


def settings(max_model_len: int = 0, **overrides: Any) -> WorkerConfig:
    """Settings for four rows."""
    rest = {"continuous_batching_batch_size": 4, **overrides}
    return WorkerConfig(model=ModelConfig("random", max_model_len), **rest)


def size(max_model_len: int = 0, **overrides: Any) -> CacheSize:
    """What these settings give."""
    return size_cache(GEOMETRY, settings(max_model_len, **overrides), LONGEST)


def refusal(max_model_len: int = 0, **overrides: Any) -> str:
    """The sentence with which these settings are refused."""
    with pytest.raises(FatalError) as caught:
        size_cache(GEOMETRY, settings(max_model_len, **overrides), LONGEST)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return str(caught.value)


def test_a_block_has_the_bytes_of_every_layer() -> None:
    assert GEOMETRY.block_bytes == BLOCK_BYTES
    uneven = KVGeometry((LayerGeometry(1, 3, 5), LayerGeometry(2, 4, 4)), torch.bfloat16, CPU)
    assert uneven.block_bytes == BLOCK_SIZE * (8 + 16) * 2


def test_no_more_is_taken_than_the_rows_can_use() -> None:
    chosen = size(100)
    assert (chosen.num_blocks, chosen.max_model_len) == (4 * 7, 100)
    assert "enough for 4 sequences of 100 tokens" in chosen.reason


@pytest.mark.usefixtures("free_blocks")
def test_scarce_memory_bounds_the_pool_and_not_the_context() -> None:
    chosen = size()
    assert (chosen.num_blocks, chosen.max_model_len) == (39, LONGEST)
    assert "39 blocks of 16 tokens" in chosen.reason
    assert "50% of 1 MiB of free memory" in chosen.reason
    assert "lowered" not in chosen.reason


@pytest.mark.usefixtures("free_blocks")
def test_a_share_is_a_share_of_the_free_memory() -> None:
    assert size(kv_cache_memory_fraction=1.0).num_blocks == min(80, 4 * 16)
    assert size(kv_cache_memory_fraction=0.25).num_blocks == 19
    assert "7.25% of 1 MiB" in size(kv_cache_memory_fraction=0.0725).reason


@pytest.mark.usefixtures("free_blocks")
def test_what_the_forward_pass_needs_is_left_to_it() -> None:
    chosen = size_cache(GEOMETRY, settings(), LONGEST, reserved_bytes=41 * BLOCK_BYTES)
    assert chosen.num_blocks == 19
    assert "for the forward pass" in chosen.reason


@pytest.mark.usefixtures("free_blocks")
def test_a_gpu_gives_more_of_its_memory() -> None:
    on_gpu = KVGeometry(GEOMETRY.layers, GEOMETRY.dtype, torch.device("cuda"))
    chosen = size_cache(on_gpu, settings(continuous_batching_batch_size=9), LONGEST)
    assert chosen.num_blocks == 71
    assert "90%" in chosen.reason


@pytest.mark.usefixtures("free_blocks")
def test_a_context_that_nobody_asked_for_is_lowered_and_the_log_says_so() -> None:
    chosen = size(kv_cache_memory_fraction=0.1)
    assert (chosen.num_blocks, chosen.max_model_len) == (7, 7 * BLOCK_SIZE)
    assert "context 112 tokens, lowered from the model's 256" in chosen.reason


@pytest.mark.usefixtures("free_blocks")
@pytest.mark.parametrize(("asked", "fraction"), [(113, 0.1), (256, 0.1), (0, 0.01)])
def test_a_context_that_does_not_fit_is_refused_with_what_helps(
    asked: int, fraction: float
) -> None:
    sentence = refusal(asked, kv_cache_memory_fraction=fraction)
    assert "--max-model-len" in sentence
    assert "--kv-cache-memory-fraction" in sentence


@pytest.mark.usefixtures("free_blocks")
def test_a_context_that_was_asked_for_and_fits_is_kept() -> None:
    assert size(112, kv_cache_memory_fraction=0.1).max_model_len == 112


def test_more_context_than_the_models_is_refused() -> None:
    assert refusal(257).startswith("--max-model-len 257: the model's longest context is 256")
    sentence = refusal(static_cache=True, static_cache_decoder_max_length=257)
    assert sentence.startswith("--static-cache-decoder-max-length 257: the model's longest")


@pytest.mark.parametrize("length", [1, 16, 100, 256])
def test_a_static_cache_is_exactly_the_batch_times_its_length(length: int) -> None:
    chosen = size(static_cache=True, static_cache_decoder_max_length=length)
    assert chosen.num_blocks == 4 * -(-length // BLOCK_SIZE)
    assert chosen.max_model_len == length
    assert f"static for 4 sequences of {length} tokens" in chosen.reason


@pytest.mark.usefixtures("free_blocks")
def test_a_static_cache_that_does_not_fit_is_refused_with_what_helps() -> None:
    sentence = refusal(static_cache=True)
    assert "--static-cache: 4 sequences of " in sentence
    assert "--continuous-batching-batch-size or --static-cache-decoder-max-length" in sentence


def test_two_answers_to_how_long_a_context_may_be_are_refused() -> None:
    assert "--max-model-len 100" in refusal(100, static_cache=True)
    assert size(256, static_cache=True).max_model_len == 256


@pytest.mark.parametrize(("rows", "budget"), [(4, 40), (4, 512), (20, 20), (3, 100)])
def test_the_probe_is_a_full_step_that_a_small_cache_can_run(rows: int, budget: int) -> None:
    plan = probe_plan(rows, budget, LONGEST)
    assert budget - rows < plan.num_tokens <= budget
    tables = Rows(rows)
    tables.update(plan)
    batch = prepare(plan, tables, CPU)
    assert len(batch.slots.unique()) == plan.num_tokens  # nobody shares a place
    assert int(batch.slots.max()) // BLOCK_SIZE == num_blocks_of(plan)
    assert len(batch.kept) == rows


@pytest.mark.parametrize(("rows", "budget"), [(4, 40), (20, 20), (3, 100)])
def test_the_probe_also_scores_whole_prompts_with_all_that_may_be_told(
    rows: int, budget: int
) -> None:
    plan = probe_plan(rows, budget, LONGEST)
    assert all(admission.sampling.num_logprobs == MAX_LOGPROBS for admission in plan.admissions)
    scored = scoring(plan)
    assert scored.num_tokens == plan.num_tokens
    assert sum(len(chunk.targets) for chunk in scored.chunks) == plan.num_tokens - rows
    assert {a.sampling.num_prompt_logprobs for a in scored.admissions} == {MAX_LOGPROBS}
    causal_lm = serve(make_model("llama"), settings(continuous_batching_batch_size=rows)).runner
    assert len(causal_lm.execute(scored).prompt_scores) == plan.num_tokens - rows


def test_nothing_is_reserved_on_the_cpu() -> None:
    assert activation_bytes(lambda _: None, [probe_plan(1, 1, LONGEST)], CPU) == 0


def test_no_row_of_the_probe_is_longer_than_the_context() -> None:
    plan = probe_plan(2, 4 * LONGEST, LONGEST)
    assert [len(chunk.token_ids) for chunk in plan.chunks] == [LONGEST, LONGEST]


def test_the_probe_takes_all_the_memory_that_sampling_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = probe_plan(2, 8, LONGEST)
    sampler = Sampler(2, 3000, CPU)
    for admission in plan.admissions:
        sampler.begin(admission)
    assert None not in (sampler._penalties._is_seen, sampler._penalties._losses)
    monkeypatch.setattr(sampling_module, "narrow", None)  # few candidates take little
    rows = torch.arange(2)
    assert len(sampler.sample(torch.zeros(2, 3000), rows, rows, [0, 1])) == 2


@pytest.mark.parametrize(
    ("static_cache", "has_encoder", "expected"),
    [
        (False, False, ["encoder", "decoder"]),
        (False, True, ["encoder", "decoder"]),
        (True, False, ["encoder"]),
        (True, True, []),
    ],
)
def test_lengths_that_were_set_for_nothing_are_named(
    static_cache: bool, has_encoder: bool, expected: list[str]
) -> None:
    config = WorkerConfig(
        static_cache=static_cache,
        static_cache_encoder_max_length=100,
        static_cache_decoder_max_length=100,
    )
    names = [f"--static-cache-{part}-max-length" for part in expected]
    assert lengths_without_effect(config, has_encoder=has_encoder) == names
    lengthened = replace(config, max_encoder_len=100)
    is_used = has_encoder and not static_cache
    others = [] if is_used else ["--max-encoder-len"]
    assert lengths_without_effect(lengthened, has_encoder=has_encoder) == others + names
    assert lengths_without_effect(WorkerConfig(), has_encoder=has_encoder) == []


def test_a_model_of_sound_has_lengths_of_its_own() -> None:
    config = WorkerConfig(
        static_cache=True,
        max_encoder_len=100,
        static_cache_encoder_max_length=100,
        static_cache_decoder_max_length=100,
    )
    assert len(lengths_without_effect(config, has_encoder=True, hears=True)) == 3
