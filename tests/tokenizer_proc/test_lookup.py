"""Lookups: ids of prompts of any length, and text of ids that gives the same ids again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from shared.messages import Decode, Encode
from shared.parts import ChatPrompt, Prompt, TextPrompt
from tests.examples import examples
from tests.tokenizer_proc.prompt_cases import (
    CONTROLS,
    ENCODERS,
    KINDS,
    LOSSLESS,
    conversation,
    id_of,
)
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.context import MAX_IDS
from tokenizer_proc.lookup import decoded, encoded
from tokenizer_proc.prompt import PromptEncoder


def encoder_of(kind: str) -> PromptEncoder:
    return PromptEncoder(make_byte_tokenizer()) if kind == "bytes" else ENCODERS[kind]


def ids_of(encoder: PromptEncoder, text: str, **fields: Any) -> tuple[int, ...]:
    prompt = Prompt(text=TextPrompt(text, **fields), param="prompt")
    return encoded(Encode("a", 0, prompt, wants_strings=False), encoder).token_ids


def text_of(encoder: PromptEncoder, token_ids: tuple[int, ...]) -> str:
    return decoded(Decode("a", 0, token_ids), encoder).text


@pytest.mark.parametrize("kind", [*LOSSLESS, "bytes"])
@pytest.mark.parametrize("special", [True, False])
@given(data=st.data())
@examples(100)
def test_the_text_of_a_texts_ids_is_the_text(kind: str, special: bool, data: st.DataObject) -> None:
    encoder = encoder_of(kind)
    controls = [text for text in CONTROLS.get(kind, ["<|im_end|>"]) if text != "<s>"]
    pieces = st.sampled_from(["a", " b", "\n", "  ", "<", "你", "é😀", "x1", *controls])
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    if kind == "llama" and text.startswith(" "):
        text = f"x{text}"  # its pre-tokenizer adds no space where there is one, and cannot tell
    assert text_of(encoder, ids_of(encoder, text, add_special_tokens=special)) == text


def test_a_first_token_that_was_written_as_well_is_shown() -> None:
    encoder = ENCODERS["llama"]
    assert text_of(encoder, ids_of(encoder, "<s>hi")) == "<s>hi"


def test_special_tokens_are_shown() -> None:
    ids = tuple(id_of("chatml", name) for name in ("<|im_start|>", "<|im_end|>"))
    assert text_of(ENCODERS["chatml"], ids) == "<|im_start|><|im_end|>"


def test_no_ids_are_no_text_and_no_text_is_no_ids() -> None:
    assert text_of(ENCODERS["chatml"], ()) == ""
    assert ids_of(ENCODERS["chatml"], "") == ()


@pytest.mark.parametrize("stranger", [-1, 10**9])
def test_an_id_that_does_not_exist_is_refused_by_name(stranger: int) -> None:
    with pytest.raises(BadRequest, match=f"'tokens' names token {stranger};") as caught:
        text_of(ENCODERS["chatml"], (1, stranger))
    assert caught.value.param == "tokens"


def test_more_ids_than_can_be_decoded_at_once_are_refused() -> None:
    with pytest.raises(BadRequest, match=f"at most {MAX_IDS}") as caught:
        text_of(ENCODERS["chatml"], (1,) * (MAX_IDS + 1))
    assert caught.value.param == "tokens"


def test_a_conversation_can_be_looked_up() -> None:
    chat = ChatPrompt(tuple(conversation(["hi", "there"])), {})
    answer = encoded(Encode("a", 0, Prompt(chat=chat), wants_strings=True), ENCODERS["chatml"])
    assert answer.token_ids == tuple(ENCODERS["chatml"].encode(Prompt(chat=chat)))
    assert answer.strings is not None
    assert len(answer.strings) == len(answer.token_ids)
    assert "".join(answer.strings) == KINDS["chatml"].decode(list(answer.token_ids))


def test_strings_are_told_only_where_they_are_wanted() -> None:
    prompt = Prompt(text=TextPrompt("hi"), param="content")
    assert encoded(Encode("a", 0, prompt, wants_strings=False), ENCODERS["llama"]).strings is None
    strings = encoded(Encode("a", 0, prompt, wants_strings=True), ENCODERS["llama"]).strings
    assert strings is not None
    assert strings[0] == "<s>"


def test_a_lookup_is_not_truncated() -> None:
    prompt = Prompt(text=TextPrompt("hi"), truncate_to=1, param="prompt")
    with pytest.raises(BadRequest) as caught:
        encoded(Encode("a", 0, prompt, wants_strings=False), ENCODERS["llama"])
    assert caught.value.param == "truncate_prompt_tokens"
