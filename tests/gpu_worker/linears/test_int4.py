"""`--hqq`: which layers of a model become 4-bit ones, and how near its answers stay."""

import copy
import logging
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
)
from transformers.pytorch_utils import Conv1D

from gpu_worker.linears import hqq_numbers, quantization
from gpu_worker.linears.fused import fuse
from gpu_worker.linears.int4 import Int4
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.quantization import quantize_linears
from gpu_worker.linears.weight_cache import WeightCache
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import make_model
from tests.gpu_worker.linears.int4_layers import library

LAYER_LOSS = 0.1  # of a layer's output: 16 levels over 64 numbers of a bell curve lose 0.09
# Of the logits of a few layers of random weights, which amplify it as trained ones do not.
MODEL_LOSS = 0.4
ACTIVATION_LOSS = 0.08  # of the same logits, beside the same weights in float32

Inputs = dict[str, torch.Tensor]


def llama() -> tuple[PreTrainedModel, Inputs]:
    """Tied, so that the head shares the table of embeddings."""
    model = make_model("llama", hidden_size=96, intermediate_size=160, tie_word_embeddings=True)
    return model, {"input_ids": torch.randint(3, 190, (2, 17))}


def gpt2() -> tuple[PreTrainedModel, Inputs]:
    """Its linear layers are transposed, and have biases."""
    return make_model("gpt2"), {"input_ids": torch.randint(3, 190, (2, 17))}


def t5() -> tuple[PreTrainedModel, Inputs]:
    """Gated, as Flan-T5 is; its sizes are no multiples of 64."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 120, "d_model": 96, "d_kv": 24, "d_ff": 160, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    tokens = torch.randint(2, 120, (2, 9))
    model = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    return model, {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}


def whisper() -> tuple[PreTrainedModel, Inputs]:
    """Two layers each."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=120, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=20,
        max_source_positions=30, max_target_positions=20, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    auto_model: Any = AutoModelForSpeechSeq2Seq
    model: PreTrainedModel = auto_model.from_config(config).eval()
    features = torch.randn(2, 20, 60)
    tokens = torch.randint(2, 120, (2, 6))
    return model, {"input_features": features, "decoder_input_ids": tokens}


MODELS: dict[str, Callable[[], tuple[PreTrainedModel, Inputs]]] = {
    "llama": llama, "gpt2": gpt2, "t5": t5, "whisper": whisper,
}  # fmt: skip


def dense_layers(model: nn.Module) -> set[str]:
    """Names of what stayed as it was."""
    return {name for name, m in model.named_modules() if type(m) in (nn.Linear, Conv1D)}


def distance(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over all numbers."""
    return float((output - expected).norm() / expected.norm())


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_are_hqqs_own_but_where_plain_rounding_is_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(384, 256) * 0.05  # 1,536 groups, of which some ten are nearer plainly
    numbers, scales, zeros = hqq_numbers.quantize(weight)
    quantizer = hqq_numbers._quantizer()
    expected, meta = quantizer.quantize(
        weight, nbits=4, group_size=64, axis=1, device="cpu", compute_dtype=torch.float32
    )
    restored = quantizer.dequantize(expected, {**meta, "compute_dtype": torch.float32})
    own = quantizer.unpack["4bit_u8"](expected, dtype=torch.uint8).view(384, 4, 64)
    is_own = (numbers.view_as(own) == own).all(2)
    assert 0.97 < is_own.float().mean() < 1.0
    unpacked = Int4Weight.of(numbers, scales, zeros).dense(torch.float32, 256)
    assert distance(unpacked.view_as(own)[is_own], restored.view_as(own)[is_own]) < 1e-3


def test_a_weight_is_quantised_in_blocks_as_well_as_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(64, 256) * 0.05
    at_once = Int4Weight.of(*hqq_numbers.quantize(weight))
    monkeypatch.setattr(hqq_numbers, "_BLOCK", 256 * 10)
    in_blocks = Int4Weight.of(*hqq_numbers.quantize(weight))
    assert torch.equal(in_blocks.scales, at_once.scales)
    losses = [distance(w.dense(torch.float32, 256), weight) for w in (in_blocks, at_once)]
    assert losses[0] < 1.001 * losses[1]


@pytest.mark.parametrize("num_inputs", [64, 65, 96, 200])
def test_a_quantised_weight_is_as_near_as_16_levels_allow(num_inputs: int) -> None:
    weight = torch.randn(80, num_inputs) * 0.02
    halves = Int4Weight.of(*hqq_numbers.quantize(weight))
    assert distance(halves.dense(torch.float32, num_inputs), weight) < LAYER_LOSS


def test_packed_numbers_unpack_to_themselves() -> None:
    numbers = torch.randint(0, 16, (7, 192), dtype=torch.uint8)
    metas = torch.ones(7, 3).half()
    assert torch.equal(Int4Weight.of(numbers, metas, metas).numbers(), numbers)


# ── hqq is hidden from transformers ──────────────────────────────────────────────────────────────


def test_hqq_stays_hidden_from_others_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hqq", None)
    hqq_numbers.quantize(torch.randn(2, 64))
    assert sys.modules["hqq"] is None


def test_without_hqq_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(hqq_numbers, "version", no_version)
    with pytest.raises(FatalError, match="pip install hqq") as refusal:
        Int4(nn.Linear(64, 64))
    assert refusal.value.exit_status == EXIT_CONFIGURATION


def test_an_hqq_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hqq.core.quantize", None)
    with pytest.raises(FatalError, match="--hqq: the package hqq does not load") as refusal:
        hqq_numbers.quantize(torch.randn(2, 64))
    assert refusal.value.exit_status == EXIT_CONFIGURATION


# ── models ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_linear_layer_but_the_head_is_quantised_and_answers_stay_near(
    name: str, is_native: bool
) -> None:
    plain, inputs = MODELS[name]()
    model, restored = copy.deepcopy(plain), copy.deepcopy(plain)
    replaced = quantize_linears(model, Int4(model, is_native=is_native), None)
    assert dense_layers(model) == {"proj_out" if name == "whisper" else "lm_head"}
    for layer_name, layer in replaced.layers.items():
        dense = restored.get_submodule(layer_name).get_parameter("weight")
        unpacked = layer.weight
        assert distance(unpacked, dense.detach()) < LAYER_LOSS
        dense.data.copy_(unpacked)
    with torch.inference_mode():
        logits, of_plain, of_restored = (m(**inputs).logits for m in (model, plain, restored))
    assert distance(logits, of_restored) < ACTIVATION_LOSS
    assert distance(logits, of_plain) < MODEL_LOSS
    assert replaced.twice_bytes == 0


def test_routers_and_tiny_layers_stay_dense(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"gate": nn.Linear(128, 64), "up": nn.Linear(128, 512)})
    model["tiny"] = nn.Linear(8, 8)
    with caplog.at_level(logging.INFO, logger=quantization.__name__):
        quantize_linears(model, Int4(model), None)
    assert dense_layers(model) == {"gate", "tiny"}
    assert "dense: router of experts (1), too small to gain (1)" in caplog.text


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_a_model_whose_experts_are_in_one_tensor_is_refused(model_type: str) -> None:
    model = make_model(model_type)
    before = dense_layers(model)
    with pytest.raises(FatalError, match=r"--hqq would reach only \d+% of this") as refusal:
        quantize_linears(model, Int4(model), None)
    assert "million numbers are in no plain linear layer" in str(refusal.value)
    assert refusal.value.exit_status == EXIT_CONFIGURATION
    assert dense_layers(model) == before


@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama", "t5", "whisper"])
def test_layers_of_the_same_input_compute_together_to_the_same_bits(name: str) -> None:
    model, inputs = MODELS[name]()
    quantize_linears(model, Int4(model), None)
    expected = model(**inputs).logits
    library()  # skips where there is none: only native layers join
    assert fuse(model) > 0
    assert torch.equal(model(**inputs).logits, expected)


# ── kept on disk ─────────────────────────────────────────────────────────────────────────────────


def test_weights_from_the_cache_are_not_quantised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    plain, inputs = llama()
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    quantize_linears(first, Int4(first), WeightCache(path))

    def quantize(weight: torch.Tensor) -> None:
        raise AssertionError(weight.shape)

    monkeypatch.setattr(hqq_numbers, "quantize", quantize)
    replaced = quantize_linears(second, Int4(second), WeightCache(path))
    assert len(replaced.layers) == 28
    with torch.inference_mode():
        assert torch.equal(second(**inputs).logits, first(**inputs).logits)


def test_a_long_quantisation_tells_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantization, "_SECONDS_OF_SILENCE", 0.0)
    model, _ = llama()
    with caplog.at_level(logging.INFO, logger=quantization.__name__):
        quantize_linears(model, Int4(model), None)
    told = [record.getMessage() for record in caplog.records if "to do" in record.getMessage()]
    assert len(told) == 28
    assert told[-1].startswith("int4 weights: 0 million quantised, 0 million to do, about 0 s")
