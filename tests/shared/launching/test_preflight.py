"""What is refused before any process starts: one sentence that names the flag and the way out."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from shared.config import ModelConfig, ServerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching import preflight


def checked(hf_model: str, chat_template: str = "") -> None:
    """Checks a start with this model and template."""
    default, model = ServerConfig(), ModelConfig(hf_model)
    config = dataclasses.replace(
        default,
        worker=dataclasses.replace(default.worker, model=model),
        tokenizer=dataclasses.replace(default.tokenizer, model=model, chat_template=chat_template),
    )
    preflight.check(config)


def refusal(hf_model: str, chat_template: str = "") -> str:
    """The sentence of a start that is refused."""
    with pytest.raises(FatalError) as caught:
        checked(hf_model, chat_template)
    assert caught.value.exit_status == EXIT_CONFIGURATION
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_named_or_is_a_directory_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for hf_model in ("demo", "org/model", str(tmp_path)):
        checked(hf_model)


@pytest.mark.parametrize("name", ["pidfd_open", "memfd_create"])
def test_a_python_that_lacks_what_the_launcher_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(os, name)
    sentence = refusal("demo")
    assert sys.executable in sentence
    assert f"lacks os.{name}: make the environment with" in sentence


def test_no_model_is_refused() -> None:
    assert "`demo`" in refusal("")


@pytest.mark.parametrize(
    "path", ["./nothing", "/nothing", "../nothing", "~/nothing", "~nobody-here/x"]
)
def test_a_directory_that_is_not_there_is_refused(path: str) -> None:
    assert refusal(path).startswith(f"--hf-model {path}: there is no such directory; ")


def test_a_name_too_long_for_a_path_is_left_to_the_hub() -> None:
    checked("x" * 5000)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    sentence = refusal(str(tmp_path))
    assert sentence.startswith(f"--hf-model {tmp_path}: config.json: No such file")
    assert "save_pretrained" in sentence


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{", b'{"a": 1} x', b"[" * 100_000])
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    sentence = refusal(str(tmp_path))
    assert "config.json" in sentence
    assert "download" in sentence


def test_a_template_must_be_a_file_of_text(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    assert refusal("demo", str(template)).startswith(f"--chat-template {template}: No such file")
    template.write_bytes(b"\xff")
    assert "no UTF-8 text" in refusal("demo", str(template))
    template.write_text("{{ messages }}")
    checked("demo", str(template))
