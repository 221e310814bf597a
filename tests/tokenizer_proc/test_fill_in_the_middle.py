"""A prefix and a suffix become the prompt that the tokenizer's family of models knows."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import CodeLlamaTokenizer, PreTrainedTokenizerFast

from shared.errors import BadRequest
from shared.parts import Prompt, TextPrompt
from tests.examples import examples
from tests.tokenizer_proc.prompt_cases import (
    ENCODERS,
    LLAMA,
    byte_fallback,
    byte_level,
    dressed,
    harmless,
)
from tokenizer_proc.prompt import PromptEncoder


def tokenizer_with(names: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these tokens added, of which only the first is special."""
    backend = byte_level()
    backend.add_special_tokens([names[0]])
    backend.add_tokens([AddedToken(name, normalized=False) for name in names])
    return dressed(backend, None)


# What a user of transformers writes by hand, by family.
BY_HAND = {
    "Qwen": "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>",
    "StarCoder": "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>",
    "DeepSeek": "<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>",
    "Codestral": "[SUFFIX]{suffix}[PREFIX]{prefix}",
}
MARKS = {
    "Qwen": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    "StarCoder": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    "DeepSeek": ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    "Codestral": ["[SUFFIX]", "[PREFIX]", "[MIDDLE]"],
}
TOKENIZERS = {family: tokenizer_with(names) for family, names in MARKS.items()}
code = harmless | st.sampled_from(["def f(x):\n    return", " x + 1\n", "\n\n", "a<|im_end|>b"])


def fill(tokenizer: PreTrainedTokenizerFast, prefix: str, suffix: str, **fields: bool) -> list[int]:
    prompt = Prompt(text=TextPrompt(prefix, suffix, **fields), param="prompt")
    return PromptEncoder(tokenizer).encode(prompt)


@pytest.mark.parametrize("family", BY_HAND)
@given(prefix=code, suffix=code)
@examples(50)
def test_the_prompt_is_the_one_that_is_written_by_hand(
    family: str, prefix: str, suffix: str
) -> None:
    tokenizer = TOKENIZERS[family]
    by_hand = BY_HAND[family].format(prefix=prefix, suffix=suffix)
    assert fill(tokenizer, prefix, suffix) == tokenizer(by_hand)["input_ids"]


def code_llama() -> CodeLlamaTokenizer:
    model = json.loads(byte_fallback().to_str())["model"]
    merges: Any = [(first, second) for first, second in model["merges"]]  # typed as text alone
    return CodeLlamaTokenizer(vocab=model["vocab"], merges=merges)


@given(prefix=code.map(str.lstrip).filter(bool), suffix=code.filter(bool))
@examples(50)
def test_code_llamas_suffix_follows_its_mark_without_a_space(prefix: str, suffix: str) -> None:
    """As in the code of its makers; transformers agrees on the rest and adds a space there."""
    tokenizer = code_llama()
    ids = fill(tokenizer, prefix, suffix)
    theirs = list(tokenizer(prefix, suffix=suffix)["input_ids"])
    hole = theirs.index(tokenizer.suffix_id)
    assert ids[: hole + 1] == theirs[: hole + 1]
    assert ids[-1] == tokenizer.middle_id
    after = ids[hole + 1 : -1]
    word = tokenizer("x", add_special_tokens=False)["input_ids"]
    assert tokenizer.backend_tokenizer.decode([*word, *after], False) == f"x{suffix}"


def test_mistrals_first_token_comes_before_the_suffix() -> None:
    backend = byte_fallback()
    backend.add_special_tokens(["[SUFFIX]", "[PREFIX]"])
    tokenizer = dressed(backend, LLAMA)
    ids = fill(tokenizer, "are you", "today")
    names = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(names) == "<s>[SUFFIX]today[PREFIX]▁are▁you"
    assert fill(tokenizer, "are you", "today", add_special_tokens=False) == ids[1:]


def test_code_llamas_middle_ends_at_a_token_of_its_own() -> None:
    tokenizer = code_llama()
    encoder = PromptEncoder(tokenizer)
    assert encoder.end_token_ids(Prompt(text=TextPrompt("a", "b"))) == (tokenizer.eot_id,)
    assert encoder.end_token_ids(Prompt(text=TextPrompt("a"))) == ()


def test_qwens_middle_ends_where_its_makers_example_ends() -> None:
    marks = ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
    tokenizer = tokenizer_with([*MARKS["Qwen"], *marks])
    ends = PromptEncoder(tokenizer).end_token_ids(Prompt(text=TextPrompt("a", "b")))
    found = set(tokenizer.convert_ids_to_tokens(list(ends)))
    assert found == {*MARKS["Qwen"], *marks, "<|im_end|>", "<|endoftext|>"}
    assert PromptEncoder(tokenizer).end_token_ids(Prompt(text=TextPrompt("a"))) == ()


def test_a_model_without_such_tokens_takes_no_suffix() -> None:
    with pytest.raises(BadRequest, match="no tokens to fill in the middle with") as caught:
        ENCODERS["chatml"].encode(Prompt(text=TextPrompt("a", "b"), param="prompt"))
    assert caught.value.param == "suffix"


def test_both_texts_together_have_to_fit() -> None:
    prompt = Prompt(text=TextPrompt("word " * 300, "word " * 300), param="prompt")
    with pytest.raises(BadRequest) as caught:
        PromptEncoder(TOKENIZERS["Qwen"]).encode(prompt, context=128)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
