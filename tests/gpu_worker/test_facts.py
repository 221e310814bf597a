"""What a request means that does not say: what the checkpoint's makers wrote, and no more."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.facts import sampling_defaults
from gpu_worker.loading import serve
from gpu_worker.worker import _facts
from tests.builders import make_model
from tests.gpu_worker.engine import PLAIN_TORCH


def stated(directory: Path, **values: Any) -> dict[str, float]:
    """The defaults of a checkpoint whose file says this."""
    (directory / "generation_config.json").write_text(json.dumps(values))
    return sampling_defaults(str(directory), use_checkpoint=True, override={})


def test_the_checkpoints_own_settings_are_the_defaults(tmp_path: Path) -> None:
    settings = {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
    }
    assert stated(tmp_path, **settings, do_sample=True, eos_token_id=2, max_length=9) == settings


def test_what_transformers_fills_in_is_no_default(tmp_path: Path) -> None:
    assert stated(tmp_path) == {}
    assert stated(tmp_path, top_k=50, temperature=1.0) == {"top_k": 50, "temperature": 1.0}
    assert stated(tmp_path, top_k=None) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_p", "0.9"),
        ("top_k", 2.5),
        ("top_k", float("inf")),
        ("min_p", True),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 11),
    ],
)
def test_a_value_that_no_request_may_have_is_dropped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        assert stated(tmp_path, **{name: value, "min_p": value if name == "min_p" else 0.1}) == (
            {} if name == "min_p" else {"min_p": 0.1}
        )
    assert [name in message for message in caplog.messages] == [True]


def test_a_checkpoint_without_the_file_or_with_a_broken_one_has_no_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling_defaults(str(tmp_path), use_checkpoint=True, override={}) == {}
    assert caplog.messages == []
    for text in ("{", "[1]"):
        (tmp_path / "generation_config.json").write_text(text)
        assert sampling_defaults(str(tmp_path), use_checkpoint=True, override={}) == {}
    assert len(caplog.messages) == 1


def test_the_checkpoint_can_be_left_alone_and_overridden(tmp_path: Path) -> None:
    stated(tmp_path, temperature=0.6, top_p=0.9)
    path = str(tmp_path)
    assert sampling_defaults(path, use_checkpoint=False, override={}) == {}
    assert sampling_defaults(path, use_checkpoint=True, override={"top_p": 0.5}) == {
        "temperature": 0.6, "top_p": 0.5
    }  # fmt: skip


def test_the_other_rooms_are_told_the_models_own_sizes() -> None:
    facts = _facts(serve(make_model("llama"), PLAIN_TORCH), PLAIN_TORCH)
    assert (facts.max_model_len, facts.vocab_size) == (256, 200)


def test_people_are_told_what_was_loaded() -> None:
    details = serve(make_model("llama"), PLAIN_TORCH).details
    assert details.pop("device").startswith("cpu (threads: ")
    assert details.pop("kv_cache").startswith(f"KV cache: {details['num_blocks']} blocks")
    assert details == {
        "model_type": "llama",
        "dtype": "float32",
        "weights": "float32",
        "attention": "plain torch",
        "num_blocks": "96",
        "num_rows": "6",
    }
