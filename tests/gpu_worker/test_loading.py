"""A model that cannot be served rightly is refused with the way out; the rest is sized to fit."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
)

from gpu_worker import sizing
from gpu_worker.architectures import refuse_impossible_sizes
from gpu_worker.cpu_kernels.build import default_cache_directory
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import choose_device, choose_dtype, load, serve
from gpu_worker.paged_attention import ATTENTION
from scheduler.plan import Chunk, StepPlan
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import END_TOKEN, make_admission, make_model
from tests.gpu_worker.engine import Request, decoder_of, generated
from tests.gpu_worker.test_architectures import model_of

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
    ("device", "has_bfloat16", "expected"),
    [("cpu", False, torch.float32), ("cpu", True, torch.bfloat16), ("cuda", False, torch.bfloat16)],
)
def test_left_alone_the_dtype_is_the_devices_fastest(
    asked: str,
    device: str,
    has_bfloat16: bool,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    assert choose_dtype(asked, torch.device(device)) is expected


def test_the_cache_is_no_larger_than_the_rows_can_use() -> None:
    loaded = serve(make_model("llama"), settings(max_model_len=100))
    assert loaded.max_model_len == 100
    assert loaded.cache.num_blocks == 4 * 7
    assert loaded.vocab_size == 200


def test_left_alone_the_context_is_the_models() -> None:
    assert serve(make_model("llama"), settings()).max_model_len == 256


def test_the_cache_has_the_models_own_head_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "free_bytes", lambda _: 22 * FOUR_KV_BYTES)
    assert serve(make_model("llama"), settings()).cache.num_blocks == 11 - 1  # one block is scratch
    assert serve(make_model("qwen3", head_dim=80), settings()).cache.num_blocks == 2 - 1


@pytest.mark.parametrize("asked", [1, 8, BLOCK_SIZE, 256])
def test_a_context_that_fits_is_what_was_asked(asked: int) -> None:
    assert serve(make_model("llama"), settings(asked)).max_model_len == asked


def test_the_log_says_how_large_the_cache_is_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    serve(make_model("llama"), settings(static_cache=True, static_cache_decoder_max_length=50))
    (line,) = [record.message for record in caplog.records if record.name == "gpu_worker.loading"]
    assert re.match(r"llama, torch.float32 on cpu \(threads: \d+\); KV cache: 16 blocks ", line)
    assert line.endswith("static for 4 sequences of 50 tokens")


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


@pytest.mark.parametrize(
    ("stated", "kept"),
    [([99999, "x", 7], {7}), ("x", set()), (-1, set()), ([True, 200, 199], {199})],
)
def test_end_tokens_that_the_model_lacks_are_dropped_with_a_warning(
    stated: Any, kept: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = make_model("llama")
    model.generation_config.eos_token_id = stated
    assert serve(model, settings()).end_token_ids == kept
    dropped = [message for message in caplog.messages if "end token" in message]
    assert len(dropped) == (len(stated) if isinstance(stated, list) else 1) - len(kept)


def test_a_directory_is_loaded(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path)
    config = WorkerConfig(
        model=ModelConfig(str(tmp_path), 64), accelerator_type="cpu", torch_dtype="bfloat16"
    )
    stages: list[str] = []
    loaded = load(config, stages.append)
    assert stages == ["loading the weights", "sizing the KV cache"]
    assert loaded.end_token_ids == {END_TOKEN}
    assert loaded.max_model_len == 64
    model = decoder_of(loaded)
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("name", ["gemma3", "gemma3_text", "llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_checkpoints_of_many_kinds_load_and_answer(name: str, dtype: str, tmp_path: Path) -> None:
    """With a vision tower, tied heads, field names of their own, experts."""
    model = model_of(name)
    model.save_pretrained(tmp_path)
    config = WorkerConfig(
        model=ModelConfig(str(tmp_path)), accelerator_type="cpu", torch_dtype=dtype
    )
    loaded = load(config)
    assert (loaded.max_model_len, loaded.vocab_size) == (256, 200)
    chunk = Chunk(0, 0, (5, 6, 7), (1,), 0, samples=True)
    admission = make_admission(token_ids=(5, 6, 7), num_prompt_tokens=3)
    plan = StepPlan(1, (admission,), (chunk,), 0)
    token_id = loaded.runner.execute(plan).token_ids[0]
    if dtype == "float32":
        assert token_id == generated(model, Request((5, 6, 7), 1)).token_ids[0]
    assert 0 <= token_id < 200


def test_gpt2s_own_field_names_are_understood(tmp_path: Path) -> None:
    sizes = {"n_embd": 96, "n_head": 6, "n_layer": 3, "n_positions": 128, "vocab_size": 211}
    model: Any = AutoModelForCausalLM
    model.from_config(config_of("gpt2", **sizes)).save_pretrained(tmp_path)
    loaded = load(WorkerConfig(model=ModelConfig(str(tmp_path)), accelerator_type="cpu"))
    assert (loaded.max_model_len, loaded.vocab_size) == (128, 211)


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
    config_of("bloom").save_pretrained(tmp_path)  # there are no weights to read
    with pytest.raises(FatalError, match="'bloom'"):
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


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (
            {"hidden_size": 256},
            "lm_head.weight is [200, 64] in the files and [200, 256]",
        ),
        ({"num_hidden_layers": 9}, "model.layers.4.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0 in its config.json"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0 in its config.json"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1 in its config.json"),
        ({"vocab_size": 0}, "vocab_size is 0 in its config.json"),
        ({"max_position_embeddings": "x"}, "'max_position_embeddings' expected int, got str"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
    ],
)
def test_a_config_that_its_weights_do_not_fit_is_refused_by_name(
    tmp_path: Path, stated: dict[str, Any], named: str
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    with pytest.raises(FatalError) as caught:
        load(settings_of(tmp_path))
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert str(caught.value).startswith(f"--hf-model {tmp_path}: ")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sizes_of_a_decoder_within_a_model_are_checked_too() -> None:
    refuse_impossible_sizes("m", {"hidden_size": 8, "text_config": {"hidden_size": 1}})
    with pytest.raises(FatalError, match="hidden_size is 0"):
        refuse_impossible_sizes("m", {"hidden_size": 8, "text_config": {"hidden_size": 0}})


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels that this machine has compiled: once is enough for all tests."""
    serve(make_model("llama"), settings())
    directory = tmp_path_factory.mktemp("loading") / "kernels"
    directory.mkdir(mode=0o700)
    for library in default_cache_directory().glob("*.so"):
        shutil.copy2(library, directory)
    return directory


def test_cpu_kernels_are_loaded_from_where_the_setting_says(
    kernels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    caplog.set_level("INFO")
    serve(make_model("llama"), settings(cpu_kernels_directory=str(kernels)))
    used = [Path(message.split()[-1]) for message in caplog.messages if "native kern" in message]
    assert [path.parent for path in used] == [kernels] * 2


def test_without_the_kernels_plain_torch_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    serve(make_model("llama"), settings(cpu_kernels=False))
    assert any("plain torch" in message for message in caplog.messages)
    assert not any("prepacked" in message for message in caplog.messages)


def test_eight_bit_weights_are_refused_where_there_is_no_kernel_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = settings_of(tmp_path, quantization="int8")
    with pytest.raises(FatalError, match="--quantization int8 is for the CPU: give --hqq"):
        load(replace(asked, accelerator_type="cuda"))


def test_a_checkpoint_is_served_with_eight_bit_weights_that_are_kept(
    tmp_path: Path, kernels: Path
) -> None:
    kept = shutil.copytree(kernels, tmp_path / "kept")
    make_model("llama").save_pretrained(tmp_path)
    asked = settings_of(
        tmp_path, quantization="int8", torch_dtype="float32", cpu_kernels_directory=str(kept)
    )
    loaded = load(asked)
    assert loaded.details["weights"] == "int8, others float32"
    assert len(list(kept.glob("weights-*.safetensors"))) == 1


def test_a_checkpoint_is_served_with_four_bit_weights(tmp_path: Path, kernels: Path) -> None:
    kept = shutil.copytree(kernels, tmp_path / "kept")
    make_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    asked = settings_of(tmp_path, hqq=True, torch_dtype="float32", cpu_kernels_directory=str(kept))
    assert load(asked).details["weights"] == "int4, others float32"
    assert len(list(kept.glob("weights-*.safetensors"))) == 1


@pytest.mark.parametrize("asked", [1, 3])
def test_a_step_has_as_many_threads_as_were_asked_for(asked: int, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    before = torch.get_num_threads()
    try:
        load(settings_of(tmp_path, cpu_threads=asked))
        assert torch.get_num_threads() == asked
    finally:
        torch.set_num_threads(before)


def settings_of(path: Path, **overrides: Any) -> WorkerConfig:
    """The worker's settings for a directory, on the CPU."""
    return WorkerConfig(model=ModelConfig(str(path)), accelerator_type="cpu", **overrides)
