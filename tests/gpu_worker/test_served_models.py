"""What cannot be served rightly is refused in one sentence; unknown types must prove themselves."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gpu_worker import architectures
from gpu_worker.architectures import ENCODER_DECODERS, longest_context, refuse_unsupported
from gpu_worker.attention import torch_paged
from gpu_worker.attention.backend import AttentionRules
from gpu_worker.kv_cache import LayerGeometry
from gpu_worker.loading import serve
from gpu_worker.paged_attention import ATTENTION
from gpu_worker.probe import probe
from gpu_worker.rope import SequenceAngles
from gpu_worker.self_check import SelfCheck
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import make_model
from tests.gpu_worker.engine import SETTINGS, Request, assert_as_generated, run
from tests.gpu_worker.test_architectures import ARCHITECTURES, GEMMA3, model_of, requests

REFUSED = {
    model_type: reason
    for reason, model_types in architectures._REFUSED.items()
    for model_type in model_types
}
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/models.md"
OTHER_ENCODER_DECODERS = ("bart", "pegasus", "speech_to_text")


def config_of(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A model's config alone."""
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **overrides)
    return config


def refusal(config: PreTrainedConfig) -> str:
    """The sentence with which a config is refused."""
    with pytest.raises(FatalError) as caught:
        refuse_unsupported(config)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_dtype(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A random model of `ARCHITECTURES` in another precision."""
    model: Any = model_of(name)  # transformers types its `to` as torch's first overload
    converted: PreTrainedModel = model.to(dtype)
    return converted


def check(model: PreTrainedModel) -> float:
    """The error that the self-check finds."""
    self_check = SelfCheck(model, probe(model))
    return self_check.run(SequenceAngles(model))


# ── by their config ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_type_that_is_known_to_fail_is_refused_by_name_with_the_reason(model_type: str) -> None:
    expected = f"--hf-model: model type '{model_type}' cannot be served: {REFUSED[model_type]}"
    assert refusal(config_of(model_type)) == expected


@pytest.mark.parametrize("model_type", sorted(ENCODER_DECODERS))
def test_encoder_decoders_of_these_types_are_served(model_type: str) -> None:
    refuse_unsupported(config_of(model_type))


@pytest.mark.parametrize("model_type", OTHER_ENCODER_DECODERS)
def test_other_encoder_decoders_are_refused(model_type: str) -> None:
    expected = f"'{model_type}' cannot be served: of encoder-decoders only mt5, t5, umt5, whisper"
    assert expected in refusal(config_of(model_type))


@pytest.mark.parametrize("model_type", ["vit", "clip"])
def test_models_that_write_no_text_are_refused(model_type: str) -> None:
    assert "AutoModelForCausalLM" in refusal(config_of(model_type))


@pytest.mark.parametrize("model_type", ["granitemoehybrid", "lfm3"])
def test_layers_without_attention_are_refused(model_type: str) -> None:
    assert "only attention layers are served" in refusal(config_of(model_type))


def test_attention_that_looks_ahead_is_refused() -> None:
    assert "looks ahead" in refusal(config_of("gemma3_text", use_bidirectional_attention=True))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "yarn", "llama3", "linear"])
def test_known_rope_is_not_refused(rope_type: str) -> None:
    config = config_of("llama")
    config.rope_parameters = {"rope_type": rope_type}
    refuse_unsupported(config)


def test_rope_of_an_unknown_type_is_refused() -> None:
    config = config_of("llama")
    config.rope_parameters = {"rope_type": "new_invention"}
    assert "'new_invention'" in refusal(config)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_tested_is_not_refused(name: str) -> None:
    refuse_unsupported(model_of(name).config)


def test_a_model_without_a_longest_context_needs_to_be_told_one() -> None:
    config = PreTrainedConfig()
    assert longest_context(config, 500) == 500
    with pytest.raises(FatalError, match="--max-model-len"):
        longest_context(config, 0)


def test_the_documentation_names_exactly_these_types() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    tested, refused = text.partition("## Any other decoder")[0], text.partition("## Refused")[2]
    cells = re.findall(r"^\| (`[^|]+`) \|", tested, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(architectures.TESTED_MODEL_TYPES)
    table = "".join(re.findall(r"^\| .+$", refused, re.MULTILINE))
    assert sorted(re.findall(r"`([^`]+)`", table)) == sorted(REFUSED)
    count = f"{len(architectures.TESTED_MODEL_TYPES)} types of decoder are tested"
    assert count in (DOCUMENT.parents[1] / "README.md").read_text(encoding="utf-8")


# ── by one token ─────────────────────────────────────────────────────────────────────────────────


def test_the_probe_learns_what_each_layer_asks_for() -> None:
    layers = probe(model_of("gemma3_text")).layers
    assert [layer.rules.window for layer in layers] == [12, None, 12, None]
    assert {layer.geometry for layer in layers} == {LayerGeometry(2, 16, 16)}
    assert {layer.num_heads for layer in layers} == {4}
    assert {layer.rules.softcap for layer in probe(model_of("gemma2")).layers} == {0.5}
    assert all(layer.rules.sinks is not None for layer in probe(model_of("gpt_oss")).layers)
    chunks = [layer.rules.chunk for layer in probe(model_of("llama4_text")).layers]
    assert chunks == [20, None, 20, None]


def test_the_probe_learns_sizes_that_no_config_names() -> None:
    geometry = probe(model_of("deepseek_v3")).geometry
    assert set(geometry.layers) == {LayerGeometry(num_kv_heads=4, key_size=16, value_size=16)}
    wide: dict[str, Any] = {**ARCHITECTURES["deepseek_v3"], "v_head_dim": 24}
    geometry = probe(make_model("deepseek_v3", **wide)).geometry
    assert set(geometry.layers) == {LayerGeometry(num_kv_heads=4, key_size=16, value_size=24)}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bloom", "its forward pass takes no position_ids"),
        ("falcon_h1", "its layer 0 is of type 'hybrid'"),
        ("minimax", "its 4 layers call the attention interface 2 times"),
        ("doge", "it does not run over a paged cache"),
    ],
)
def test_a_model_that_evades_the_interface_is_refused(model_type: str, reason: str) -> None:
    with pytest.raises(FatalError, match=reason):
        probe(make_model(model_type, head_dim=16, num_local_experts=2))


def test_a_window_that_does_not_reach_the_seam_is_noticed() -> None:
    model = make_model("gemma3_text", **GEMMA3)
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(FatalError, match="otherwise than 'sliding_attention' says"):
        probe(model)


# ── by their logits ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_self_check_agrees_with_the_tests(name: str) -> None:
    assert check(model_of(name)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "gpt2", "deepseek_v3", "mixtral"])
def test_half_precision_passes_the_self_check(name: str, dtype: torch.dtype) -> None:
    check(in_dtype(name, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_half_precision_is_served(name: str, dtype: torch.dtype) -> None:
    model, wanted = in_dtype(name, dtype), requests()[:4]
    answers = run(model, wanted).answers
    assert [len(answer) for answer in answers] == [request.max_tokens for request in wanted]


def test_an_untested_type_that_passes_is_served_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    model = make_model("olmo")
    wanted = Request(tuple(range(3, 40)), 12)
    assert_as_generated(model, wanted, run(model, [wanted]).answers[0])
    assert any("model type 'olmo' has no test" in record.message for record in caplog.records)


def test_a_model_is_left_with_our_attention() -> None:
    model = make_model("olmo")
    serve(model, SETTINGS)
    assert model.config._attn_implementation == ATTENTION


def test_an_encoder_is_refused_by_its_logits() -> None:
    with pytest.raises(FatalError, match="'bert' cannot be served: over a paged cache"):
        serve(make_model("bert"), SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_without_its_window_is_noticed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_dtype("mistral", dtype)
    reach = torch_paged._reach

    def without_window(span: Any, rules: Any, device: Any) -> Any:
        return reach(span, AttentionRules(rules.scaling), device)

    monkeypatch.setattr(torch_paged, "_reach", without_window)
    with pytest.raises(FatalError, match="relative error"):
        check(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_that_depends_on_the_others_is_noticed(dtype: torch.dtype) -> None:
    model: Any = in_dtype("llama", dtype)
    model.model.layers[1].register_forward_hook(
        lambda _, __, hidden: hidden + hidden.mean(1, keepdim=True)
    )
    with pytest.raises(FatalError, match="relative error"):
        check(model)
