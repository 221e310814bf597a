"""A model that cannot be served rightly is refused with the way out; the rest is sized to fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from gpu_worker import kv_cache
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import choose_device, choose_dtype, load, refuse_unsupported, serve
from gpu_worker.paged_attention import ATTENTION
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import END_TOKEN, make_model

CPU = torch.device("cpu")
FOUR_KV_BYTES = 2 * 4 * BLOCK_SIZE * 2 * 16 * 4  # kv, layers, tokens, heads, head size, float32


def config_of(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A model's config alone."""
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **overrides)
    return config


def settings(max_model_len: int = 0, **overrides: Any) -> WorkerConfig:
    """The worker's settings for four rows on the CPU."""
    return WorkerConfig(
        model=ModelConfig("random", max_model_len),
        accelerator_type="cpu",
        **{"continuous_batching_batch_size": 4, **overrides},
    )


def refusal(config: PreTrainedConfig) -> str:
    """The sentence with which a config is refused."""
    with pytest.raises(FatalError) as caught:
        refuse_unsupported(config)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["falcon", "gpt2", "t5", "whisper", "bloom", "gemma2"])
def test_another_architecture_is_refused_by_name(model_type: str) -> None:
    assert f"'{model_type}'" in refusal(config_of(model_type))
    assert "llama" in refusal(config_of(model_type))


@pytest.mark.parametrize(
    "config",
    [
        config_of("mistral"),
        config_of("mistral", sliding_window=64),
        config_of("qwen2", use_sliding_window=True, sliding_window=64),
        config_of("qwen3", use_sliding_window=True, sliding_window=64),
    ],
    ids=["mistral default", "mistral", "qwen2", "qwen3"],
)
def test_a_sliding_window_is_refused(config: PreTrainedConfig) -> None:
    assert "sliding window" in refusal(config)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "new_invention"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_angles_that_depend_on_other_rows_are_refused(field: str, rope_type: str) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = config_of("llama", **{field: rope})
    refuse_unsupported(config)
    config.rope_parameters = {**config.rope_parameters, "rope_type": rope_type}
    assert f"'{rope_type}'" in refusal(config)


def test_a_dynamic_rope_of_an_old_checkpoint_is_refused() -> None:
    config = config_of("llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "'dynamic'" in refusal(config)


@pytest.mark.parametrize(
    "config",
    [
        config_of("llama"),
        config_of("qwen2", sliding_window=64),  # written in the config, but not used
        config_of("qwen3"),
        config_of("mistral", sliding_window=None),
    ],
    ids=lambda config: str(config.model_type),
)
def test_what_is_supported_is_not_refused(config: PreTrainedConfig) -> None:
    refuse_unsupported(config)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FatalError, match="--accelerator-type cpu") as caught:
        choose_device("cuda")
    assert caught.value.exit_status == EXIT_CONFIGURATION


@pytest.mark.parametrize(
    ("asked", "has_gpu", "expected"),
    [("", False, "cpu"), ("", True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_device_is_what_was_asked_or_the_fastest(
    asked: str, has_gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device(asked) == torch.device(expected)


@pytest.mark.parametrize("asked", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("device", [CPU, torch.device("cuda")], ids=str)
def test_the_dtype_is_what_was_asked(asked: str, device: torch.device) -> None:
    assert choose_dtype(asked, device) is getattr(torch, asked)


@pytest.mark.parametrize("asked", ["", "auto"])
@pytest.mark.parametrize(
    ("device", "has_matrix_units", "expected"),
    [("cpu", False, torch.float32), ("cpu", True, torch.bfloat16), ("cuda", False, torch.bfloat16)],
)
def test_left_alone_the_dtype_is_the_devices_fastest(
    asked: str,
    device: str,
    has_matrix_units: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_matrix_units)
    assert choose_dtype(asked, torch.device(device)) is expected


def test_the_cache_is_no_larger_than_the_rows_can_use() -> None:
    loaded = serve(make_model("llama"), settings(max_model_len=100))
    assert loaded.max_model_len == 100
    assert loaded.num_blocks == 4 * 7
    assert loaded.vocab_size == 200


def test_left_alone_the_context_is_the_models() -> None:
    assert serve(make_model("llama"), settings()).max_model_len == 256


def test_little_memory_shortens_a_context_that_nobody_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda _: 10 * FOUR_KV_BYTES)
    loaded = serve(make_model("llama"), settings())
    assert (loaded.num_blocks, loaded.max_model_len) == (5, 5 * BLOCK_SIZE)


def test_the_cache_has_the_models_own_head_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda _: 10 * FOUR_KV_BYTES)
    assert serve(make_model("qwen3", head_dim=80), settings()).num_blocks == 1


@pytest.mark.parametrize("asked", [0, 81, 256])
def test_too_little_memory_is_refused_with_what_helps(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = 10 * FOUR_KV_BYTES if asked else FOUR_KV_BYTES
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda _: free_bytes)
    with pytest.raises(FatalError, match="--kv-cache-memory-fraction"):
        serve(make_model("llama"), settings(asked))


@pytest.mark.parametrize("asked", [1, 8, BLOCK_SIZE, 256])
def test_a_context_that_fits_is_what_was_asked(asked: int) -> None:
    assert serve(make_model("llama"), settings(asked)).max_model_len == asked


def test_a_negative_context_is_refused() -> None:
    with pytest.raises(FatalError, match="--max-model-len"):
        serve(make_model("llama"), settings(-5))


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(FatalError, match=r"--max-model-len 257: .* 256 tokens"):
        serve(make_model("llama"), settings(257))


@pytest.mark.parametrize(
    ("generation", "of_model", "expected"),
    [(7, 8, {7}), ([7, 8], None, {7, 8}), (None, 8, {8}), (None, [8, 9], {8, 9}), (None, None, {})],
)
def test_end_tokens_are_the_generation_configs_or_the_models(
    generation: Any, of_model: Any, expected: set[int]
) -> None:
    model = make_model("llama")
    model.generation_config = GenerationConfig(eos_token_id=generation)
    model.config.eos_token_id = of_model
    assert serve(model, settings()).end_token_ids == frozenset(expected)


def test_a_directory_is_loaded(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path)
    config = WorkerConfig(
        model=ModelConfig(str(tmp_path), 64), accelerator_type="cpu", torch_dtype="bfloat16"
    )
    loaded = load(config)
    assert loaded.end_token_ids == {END_TOKEN}
    assert loaded.max_model_len == 64
    model = loaded.runner._model
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    assert model.config._attn_implementation == ATTENTION


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(FatalError, match=f"--hf-model {path}: ") as caught:
        load(WorkerConfig(model=ModelConfig(path), accelerator_type="cpu"))
    assert caught.value.exit_status == EXIT_CONFIGURATION


def test_a_directory_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=f"--hf-model {tmp_path}: ") as caught:
        load(WorkerConfig(model=ModelConfig(str(tmp_path)), accelerator_type="cpu"))
    assert "\n" not in str(caught.value)


def test_an_unsupported_checkpoint_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    config_of("gpt2").save_pretrained(tmp_path)  # there are no weights to read
    with pytest.raises(FatalError, match="'gpt2'"):
        load(WorkerConfig(model=ModelConfig(str(tmp_path)), accelerator_type="cpu"))


def test_weights_that_are_not_safetensors_are_not_unpickled(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FatalError, match="safetensors"):
        load(WorkerConfig(model=ModelConfig(str(tmp_path)), accelerator_type="cpu"))


def drop_a_weight(path: Path) -> None:
    """Leaves one tensor out of a checkpoint."""
    weights = load_file(path)
    del weights["model.layers.0.mlp.gate_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def cut_in_half(path: Path) -> None:
    """Leaves what an interrupted download leaves."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [drop_a_weight, cut_in_half])
def test_half_a_checkpoint_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make_model("llama").save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(FatalError, match="--hf-model"):
        load(WorkerConfig(model=ModelConfig(str(tmp_path)), accelerator_type="cpu"))
