"""A made model is a whole one: it loads, chats, and is the same again from the same seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.make_model import SHAPES, main

SENTENCE = "def größe(x): return 'naïve — ok' * 17  # 你好"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in bfloat16."""
    path = tmp_path_factory.mktemp("made")
    main([str(path), "--shape", "tiny"])
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    """Its tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(directory)


def test_the_model_loads_with_its_dtype_and_computes_a_finite_step(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 4096
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, SHAPES["tiny"]["vocab_size"])
    assert logits.isfinite().all()


def test_the_vocabulary_has_the_size_that_the_model_has(tokenizer: Any) -> None:
    assert len(tokenizer) == SHAPES["tiny"]["vocab_size"]


def test_any_sentence_comes_back_from_its_tokens(tokenizer: Any) -> None:
    token_ids = tokenizer(SENTENCE)["input_ids"]
    assert tokenizer.decode(token_ids) == SENTENCE
    assert len(token_ids) < len(SENTENCE.encode())  # it has learnt more than bytes


def test_a_chat_is_rendered_in_chatml_and_its_marks_are_single_tokens(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    token_ids = tokenizer(text)["input_ids"]
    assert token_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "user\nHi\nassistant\n"


def test_one_seed_makes_the_same_files_and_another_one_others(
    directory: Path, tmp_path: Path
) -> None:
    main([str(tmp_path / "same"), "--shape", "tiny"])
    main([str(tmp_path / "other"), "--shape", "tiny", "--seed", "1"])
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / file).read_bytes() == (directory / file).read_bytes()
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "other" / file).read_bytes() != (directory / file).read_bytes()


def test_weights_of_another_dtype_are_the_same_ones_rounded(
    directory: Path, tmp_path: Path
) -> None:
    main([str(tmp_path), "--shape", "tiny", "--dtype", "float32"])
    rounded = load_file(directory / "model.safetensors")
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight.to(torch.bfloat16), rounded[name]), name


def test_heads_are_as_wide_as_vllm_needs_on_the_cpu() -> None:
    for name, shape in SHAPES.items():
        width = shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"])
        assert width >= 32, name
