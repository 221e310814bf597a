"""The tokenizer that a checkpoint and the flags give; what cannot be read is refused by name."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from shared.config import DEMO_DIRECTORY, Identity, ModelConfig, TokenizerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.parts import ChatPrompt, Prompt
from tokenizer_proc.loading import load_tokenizer
from tokenizer_proc.prompt import PromptEncoder

DEMO = ModelConfig("demo")
CHAT = Prompt(chat=ChatPrompt(({"role": "user", "content": "hi"},), {}))


def ids_of_chat(tokenizer: Any) -> list[int]:
    """The prompt of a short conversation."""
    return PromptEncoder(tokenizer).encode(CHAT, context=100)


def config(hf_model: ModelConfig = DEMO, index: int = 0, **flags: Any) -> TokenizerConfig:
    """The settings of one tokenizer process."""
    identity = Identity("tokenizer", index, 1, "/nowhere")
    return TokenizerConfig(identity=identity, model=hf_model, **flags)


def refusal(**flags: Any) -> str:
    """The sentence of settings that are refused."""
    with pytest.raises(FatalError) as caught:
        load_tokenizer(config(**flags))
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def bare_demo(tmp_path: Path) -> ModelConfig:
    """The demo model without a chat template."""
    directory = tmp_path / "bare"
    shutil.copytree(DEMO_DIRECTORY / "chat", directory)
    (directory / "chat_template.jinja").unlink()
    return ModelConfig(str(directory))


def test_left_alone_it_follows_the_checkpoint() -> None:
    assert type(load_tokenizer(config())) is transformers.PreTrainedTokenizerFast


@pytest.mark.parametrize("flag", ["tokenizer_type", "processor_type"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("AutoTokenizer", "PreTrainedTokenizerFast"),
        ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
        ("WhisperTokenizer", "WhisperTokenizer"),
        ("transformers_openai.models.WhisperTokenizer", "WhisperTokenizer"),
    ],
)
def test_the_tokenizer_is_of_the_class_that_was_asked_for(
    flag: str, asked: str, expected: str
) -> None:
    flags: dict[str, Any] = {flag: asked}
    tokenizer = load_tokenizer(config(**flags))
    assert type(tokenizer) is getattr(transformers, expected)


def test_a_text_models_processor_is_its_tokenizer() -> None:
    tokenizer = load_tokenizer(config(processor_type="AutoProcessor"))
    assert type(tokenizer) is transformers.PreTrainedTokenizerFast
    both = config(processor_type="WhisperTokenizer", tokenizer_type="WhisperTokenizer")
    assert type(load_tokenizer(both)) is transformers.WhisperTokenizer


def test_two_tokenizers_for_one_model_are_refused() -> None:
    sentence = refusal(tokenizer_type="GPT2Tokenizer", processor_type="WhisperTokenizer")
    assert "--tokenizer-type GPT2Tokenizer and --processor-type WhisperTokenizer differ" in sentence


@pytest.mark.parametrize("flag", ["tokenizer_type", "processor_type"])
@pytest.mark.parametrize("asked", ["NoSuchTokenizer", "os.system", "logging", "a.b."])
def test_a_class_that_transformers_lacks_is_refused(flag: str, asked: str) -> None:
    option = f"--{flag.replace('_', '-')}"
    sentence = refusal(**{flag: asked})
    assert sentence.startswith(f"{option} {asked}: transformers ")


@pytest.mark.parametrize("asked", ["WhisperProcessor", "LlamaForCausalLM"])
def test_a_class_that_is_no_tokenizer_is_refused(asked: str) -> None:
    assert refusal(processor_type=asked).startswith(f"--processor-type {asked} is no tokenizer")


@pytest.mark.parametrize("asked", ["CTRLTokenizer", "BertTokenizer", "T5Tokenizer"])
def test_a_class_that_cannot_read_the_checkpoint_is_refused(asked: str) -> None:
    assert refusal(tokenizer_type=asked).startswith(
        f"--tokenizer-type {asked} cannot read this checkpoint ("
    )


def test_a_tokenizer_in_python_is_refused() -> None:
    assert "ByT5Tokenizer" in refusal(tokenizer_type="ByT5Tokenizer")


def test_a_slow_tokenizer_costs_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for index in range(3):  # several processes
        load_tokenizer(config(index=index, tokenizer_use_fast=False))
    (line,) = caplog.messages
    assert line.startswith("--tokenizer-use-fast false has no effect")
    caplog.clear()
    load_tokenizer(config())
    assert not caplog.messages


def test_a_template_of_ones_own_renders_the_prompts(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    tokenizer = load_tokenizer(config(chat_template=str(template)))
    ids = ids_of_chat(tokenizer)
    assert tokenizer.decode(ids) == "[hi]"
    assert ids_of_chat(load_tokenizer(config())) != ids


def test_a_template_makes_a_model_without_one_chat(bare_demo: ModelConfig, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    tokenizer = load_tokenizer(config(bare_demo, chat_template=str(template)))
    assert tokenizer.decode(ids_of_chat(tokenizer)) == "hi"


BROKEN_TEMPLATES = (
    "{% for %}", "{{ messages", "{{ x | nosuchfilter }}", "{{ 1 / 0 }}",
    "{% if x %}{{ x | nosuchfilter }}{% endif %}", "{{ nothing() }}",
    "{{ messages[0].role + 1 }}", "", " \n", "{# a comment #}",
)  # fmt: skip


@pytest.mark.parametrize("source", BROKEN_TEMPLATES)
def test_a_template_that_cannot_render_a_conversation_is_refused(
    bare_demo: ModelConfig, tmp_path: Path, source: str
) -> None:
    template = tmp_path / "bad.jinja"
    template.write_text(source)
    assert refusal(chat_template=str(template)).startswith(f"--chat-template {template}: ")
    (Path(bare_demo.path) / "chat_template.jinja").write_text(source)
    sentence = refusal(hf_model=bare_demo)
    assert sentence.startswith(f"--hf-model {bare_demo.hf_model}: its chat template is broken: ")
    assert "--chat-template FILE" in sentence


def test_every_template_of_a_checkpoint_must_compile(bare_demo: ModelConfig) -> None:
    directory = Path(bare_demo.path)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (directory / "additional_chat_templates").mkdir()
    tools = directory / "additional_chat_templates" / "tool_use.jinja"
    tools.write_text("{{ tools }}")
    assert set(load_tokenizer(config(bare_demo)).chat_template) == {"default", "tool_use"}
    tools.write_text("{% for %}")
    assert "its chat template is broken" in refusal(hf_model=bare_demo)


def test_a_template_may_refuse_the_conversation_that_it_is_tried_with(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ raise_exception('a system message must come first') }}")
    assert load_tokenizer(config(chat_template=str(template))).chat_template


def test_a_tokenizer_file_that_lacks_a_part_is_refused_by_its_name(bare_demo: ModelConfig) -> None:
    (Path(bare_demo.path) / "tokenizer.json").write_text("{}")
    sentence = refusal(hf_model=bare_demo)
    assert "its tokenizer: KeyError: 'added_tokens'; correct the checkpoint" in sentence


def test_a_model_without_a_template_is_served_with_one_warning(
    bare_demo: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        assert load_tokenizer(config(bare_demo, index=index)).chat_template is None
    (line,) = caplog.messages
    assert "--chat-template" in line
    assert "/v1/completions" in line


TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_code_of_the_checkpoint_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    directory = tmp_path / "own"
    shutil.copytree(DEMO_DIRECTORY / "chat", directory)
    (directory / "own_code.py").write_text(TOKENIZER_CODE)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "OwnTokenizer"
    settings["auto_map"] = {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    trusted = ModelConfig(str(directory), trust_remote_code=True)
    assert type(load_tokenizer(config(trusted))).__name__ == "OwnTokenizer"
    assert "--trust-remote-code" in refusal(hf_model=ModelConfig(str(directory)))
