"""Which class serves a checkpoint, and that flags which say otherwise are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoConfig, PreTrainedConfig

from gpu_worker.architectures import refuse_contradiction
from gpu_worker.loading import load
from gpu_worker.model_class import choose_class
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from tests.builders import make_model
from tests.gpu_worker.engine import decoder_of


def config_of(model_type: str) -> PreTrainedConfig:
    """A model's config alone."""
    config: PreTrainedConfig = AutoConfig.for_model(model_type)
    return config


def worker_config(path: Path, *, trust_remote_code: bool = False, **flags: Any) -> WorkerConfig:
    """The worker's settings for a directory, on the CPU."""
    model = ModelConfig(str(path), trust_remote_code=trust_remote_code)
    return WorkerConfig(model=model, accelerator_type="cpu", **flags)


def refusal(path: Path, **flags: Any) -> str:
    """The sentence of a start that is refused."""
    with pytest.raises(FatalError) as caught:
        load(worker_config(path, **flags))
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "asked",
    ["", "AutoModelForCausalLM", "LlamaForCausalLM", "transformers_openai.models.LlamaForCausalLM"],
)
def test_the_model_is_of_the_class_that_was_asked_for(asked: str, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    loaded = load(worker_config(tmp_path, model_type=asked))
    assert type(decoder_of(loaded)) is transformers.LlamaForCausalLM


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("NoSuchModel", "has no such model class"),
        ("os.system", "has no such model class"),
        ("MistralForCausalLM", "not made for this checkpoint, a 'llama'"),
        ("AutoModelForSeq2SeqLM", "not made for this checkpoint, a 'llama'"),
        ("transformers_openai.models.WhisperForConditionalGeneration", "not made for this"),
        ("AutoTokenizer", "not made for this checkpoint"),
        ("LlamaModel", "generates no text"),
        ("LlamaForSequenceClassification", "generates no text"),
        ("AutoModel", "generates no text"),
    ],
)
def test_a_class_that_cannot_serve_the_checkpoint_is_refused(asked: str, reason: str) -> None:
    with pytest.raises(FatalError) as caught:
        choose_class(asked, config_of("llama"))
    assert str(caught.value).startswith(f"--model-type {asked}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "architecture_type", "serving_type"),
    [("llama", "decoder", "chat"), ("t5", "encoder-decoder", "chat"), ("whisper", "", "whisper")],
)
def test_flags_that_say_what_the_checkpoint_says_pass(
    model_type: str, architecture_type: str, serving_type: str
) -> None:
    refuse_contradiction(config_of(model_type), architecture_type, serving_type)
    refuse_contradiction(config_of(model_type), "", "")


@pytest.mark.parametrize(
    ("model_type", "flags", "named"),
    [
        ("llama", {"architecture_type": "encoder-decoder"}, ("encoder-decoder", "says decoder")),
        ("llama", {"serving_type": "whisper"}, ("--serving-type whisper", "says chat")),
        ("t5", {"architecture_type": "decoder"}, ("decoder:", "says encoder-decoder")),
        ("t5", {"serving_type": "whisper"}, ("--serving-type whisper", "says chat")),
        ("whisper", {"serving_type": "chat"}, ("--serving-type chat", "says whisper")),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint_is_refused(
    model_type: str, flags: dict[str, str], named: tuple[str, ...], tmp_path: Path
) -> None:
    config_of(model_type).save_pretrained(tmp_path)
    sentence = refusal(tmp_path, **flags)
    assert all(part in sentence for part in (*named, repr(model_type)))


@pytest.mark.parametrize("model_type", ["bart", "speech_to_text"])
def test_other_encoder_decoders_are_refused_though_flags_agree(
    model_type: str, tmp_path: Path
) -> None:
    config_of(model_type).save_pretrained(tmp_path)
    sentence = refusal(tmp_path, architecture_type="encoder-decoder")
    assert "of encoder-decoders only mt5, t5, umt5, whisper are served" in sentence


@pytest.mark.parametrize(
    "config", [{"model_type": "llama", "hidden_size": "big"}, {}, {"model_type": "no-such-type"}]
)
def test_a_config_that_transformers_cannot_read_is_refused(
    config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert refusal(tmp_path).startswith(f"--hf-model {tmp_path}: ")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = {model_type!r}
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("model_type", ["own_model", "llama"])
def test_code_of_the_checkpoint_runs_only_where_it_is_trusted(
    model_type: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where transformers knows the type too, its own class is what runs without trust."""
    caplog.set_level("INFO")
    modules = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    directory = save_with_code(tmp_path / f"with_{model_type}", model_type)
    if model_type == "llama":
        loaded = load(worker_config(directory))
        assert type(decoder_of(loaded)) is transformers.LlamaForCausalLM
    else:
        assert "--trust-remote-code" in refusal(directory)
    loaded = load(worker_config(directory, trust_remote_code=True))
    assert type(decoder_of(loaded)).__name__ == "OwnForCausalLM"
    assert any(
        "OwnForCausalLM" in line and "no test of its own" in line for line in caplog.messages
    )


def save_with_code(directory: Path, model_type: str) -> Path:
    """A checkpoint that brings the classes of its config and model."""
    make_model("llama").save_pretrained(directory)
    (directory / "own_code.py").write_text(CODE.format(model_type=model_type))
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.OwnForCausalLM",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory
