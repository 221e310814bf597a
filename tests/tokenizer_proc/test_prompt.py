"""`PromptEncoder` gives the ids of transformers for every kind of prompt, and text for ids."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from shared.parts import ChatPrompt, Prompt, TextPrompt
from tests.examples import examples
from tests.tokenizer_proc.prompt_cases import (
    CONTROLS,
    ENCODERS,
    KINDS,
    conversation,
    every_kind,
    huggingface_ids,
    id_of,
)
from tokenizer_proc.context import MAX_BYTES

WITH_FIRST_TOKEN = ["llama", "legacy", "eager"]


@st.composite
def texts(draw: st.DrawFn, kind: str) -> str:
    """Text with and without control tokens."""
    pieces = st.sampled_from(["a", "x1 ", "\n", "<", "|>", "你", "é😀", *CONTROLS[kind]])
    return "".join(draw(st.lists(pieces, max_size=8)))


def text_prompt(text: str, **fields: Any) -> Prompt:
    return Prompt(text=TextPrompt(text, **fields), param="prompt")


def chat_prompt(*contents: str, **fields: Any) -> Prompt:
    return Prompt(chat=ChatPrompt(tuple(conversation(list(contents))), {}, **fields))


@every_kind
@given(data=st.data())
@examples(100)
def test_a_text_gives_transformers_ids_and_its_control_tokens_count(
    kind: str, data: st.DataObject
) -> None:
    text, special = data.draw(texts(kind)), data.draw(st.booleans())
    ids = ENCODERS[kind].encode(text_prompt(text, add_special_tokens=special))
    assert ids == KINDS[kind](text, add_special_tokens=special)["input_ids"]


def test_a_text_may_begin_and_end_with_control_tokens() -> None:
    ids = ENCODERS["llama"].encode(text_prompt("Hello</s>"))
    assert (ids[0], ids[-1]) == (id_of("llama", "<s>"), id_of("llama", "</s>"))


@every_kind
@pytest.mark.parametrize("opens", [True, False])
def test_a_conversation_gives_transformers_ids(kind: str, opens: bool) -> None:
    prompt = chat_prompt("Hello world", "def f(x):", "  café ", add_generation_prompt=opens)
    assert prompt.chat is not None
    expected = huggingface_ids(kind, list(prompt.chat.messages), add_generation_prompt=opens)
    assert ENCODERS[kind].encode(prompt) == expected


@pytest.mark.parametrize("kind", WITH_FIRST_TOKEN)
@pytest.mark.parametrize("content", ["hi", "hi </s> there"])
def test_a_conversation_gets_the_tokenizers_own_tokens_on_demand(kind: str, content: str) -> None:
    ids = ENCODERS[kind].encode(chat_prompt("q", content))
    more = ENCODERS[kind].encode(chat_prompt("q", content, add_special_tokens=True))
    assert more == [id_of(kind, "<s>"), *ids]


def test_a_conversation_can_be_continued() -> None:
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    prompt = chat_prompt("Hello", "I am", **options)
    assert prompt.chat is not None
    expected = huggingface_ids("llama", list(prompt.chat.messages), **options)
    assert ENCODERS["llama"].encode(prompt) == expected


def test_token_ids_are_used_as_they_are() -> None:
    last = ENCODERS["chatml"].vocab_size - 1
    assert ENCODERS["chatml"].encode(Prompt(token_ids=(last, 0, 7, 7), param="prompt")) == [
        last, 0, 7, 7,
    ]  # fmt: skip


@pytest.mark.parametrize("stranger", [-1, ENCODERS["chatml"].vocab_size, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_refused_by_name(stranger: int) -> None:
    with pytest.raises(BadRequest, match=f"'prompt' names token {stranger};") as caught:
        ENCODERS["chatml"].encode(Prompt(token_ids=(0, stranger, 1), param="prompt"))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("text", ["word " * 100_000, "<|im_end|>" * 50_000])
def test_a_hopeless_text_is_refused_in_the_words_that_clients_look_for(text: str) -> None:
    prompt = text_prompt(text)
    with pytest.raises(BadRequest) as caught:
        ENCODERS["chatml"].encode(prompt, context=64)
    assert caught.value.message.startswith(
        "This model's maximum context length is 64 tokens. However, your prompt resulted in more"
    )
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


def test_a_text_that_need_not_fit_may_be_longer_than_the_context() -> None:
    text = TextPrompt("word " * 1000)
    for prompt, context in ((Prompt(text=text), None), (Prompt(text=text, truncate_to=5), 64)):
        assert len(ENCODERS["chatml"].encode(prompt, context)) >= 1000


@pytest.mark.parametrize("num_characters", [MAX_BYTES + 1, MAX_BYTES // 2 + 1])
def test_a_text_that_takes_too_much_time_is_refused(num_characters: int) -> None:
    letter = "x" if num_characters > MAX_BYTES else "é"
    with pytest.raises(BadRequest, match=f"at most {MAX_BYTES} are tokenized") as caught:
        ENCODERS["chatml"].encode(text_prompt(letter * num_characters))
    assert (caught.value.param, caught.value.code) == ("prompt", "invalid_value")


# ── ids to text ──────────────────────────────────────────────────────────────────────────────────


def test_what_the_tokenizer_puts_around_a_text_is_taken_away_once() -> None:
    encoder, first = ENCODERS["llama"], id_of("llama", "<s>")
    assert encoder.unframed([first, first, 300]) == [first, 300]
    assert encoder.unframed([first]) == []
    for ids in ([300, first], []):
        assert encoder.unframed(ids) == ids


def test_each_token_has_its_own_text_and_a_name_where_that_is_no_whole_character() -> None:
    encoder = ENCODERS["chatml"]
    strings = encoder.strings(encoder.encode(text_prompt(" the<|im_end|>    ñ")))
    assert "".join(strings[:-2]) == " the<|im_end|>    "
    assert strings[-2:] == ("Ã", "±")  # a vocabulary's names of the bytes C3 and B1


def test_the_space_before_a_word_is_in_its_tokens_text() -> None:
    encoder = ENCODERS["llama"]
    strings = encoder.strings(encoder.encode(text_prompt("how are you", add_special_tokens=False)))
    assert "".join(strings) == " how are you"
    assert encoder.strings([id_of("llama", "<0x0A>"), id_of("llama", "<0xC3>")]) == ("\n", "<0xC3>")
