"""`PromptEncoder` equals Hugging Face on harmless chats and gives callers no control tokens."""

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.errors import BadRequest
from tests.tokenizer_proc.prompt_cases import (
    CONTROLS,
    ENCODERS,
    KINDS,
    LOSSLESS,
    TOOLS,
    Chat,
    byte_level,
    conversation,
    count_controls,
    decoded,
    dressed,
    every_kind,
    harmless,
    huggingface_ids,
    id_of,
    rendered,
    template_blind,
)
from tokenizer_proc.prompt import PromptEncoder


@every_kind
@given(texts=st.lists(harmless, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_harmless_chats_give_hugging_faces_ids(kind: str, texts: list[str]) -> None:
    messages = conversation(texts)
    assert ENCODERS[kind].encode_chat(messages) == huggingface_ids(kind, messages)


@every_kind
@given(texts=st.lists(harmless, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_the_way_around_control_tokens_gives_the_same_ids(kind: str, texts: list[str]) -> None:
    """A hidden `<` at the end of a last message makes the encoder take the careful path."""
    messages = conversation([*texts, "x <" if kind != "unigram" else "x ["])
    assert ENCODERS[kind].encode_chat(messages) == huggingface_ids(kind, messages)


def test_tools_calls_and_variables_give_hugging_faces_ids() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 'a & "b" <c>\''}}}
    messages: Chat = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    ids = ENCODERS["chatml"].encode_chat(messages, TOOLS, {"thinking": True})
    assert ids == huggingface_ids("chatml", messages, tools=TOOLS, thinking=True)


@st.composite
def planted(draw: st.DrawFn, kind: str) -> tuple[Chat, Chat]:
    """A chat with control tokens in it, and the same chat with `x` in their places."""
    pieces = st.sampled_from(["a", " ", "\n", "<", "|>", "你", *CONTROLS[kind], *CONTROLS[kind]])
    texts = draw(st.lists(st.lists(pieces, max_size=6), min_size=1, max_size=4))
    safe = [["x" if piece in CONTROLS[kind] else piece for piece in text] for text in texts]
    return conversation(list(map("".join, texts))), conversation(list(map("".join, safe)))


@template_blind
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_planted_control_tokens_stay_text(kind: str, data: st.DataObject) -> None:
    messages, harmless_messages = data.draw(planted(kind))
    ids = ENCODERS[kind].encode_chat(messages)
    expected = count_controls(kind, huggingface_ids(kind, harmless_messages))
    assert count_controls(kind, ids) == expected
    if kind in LOSSLESS:
        assert (
            decoded(kind, ids).lstrip() == rendered(kind, messages).lstrip()
        )  # Metaspace's first space


@template_blind
def test_the_bare_text_of_every_control_token_stays_text(kind: str) -> None:
    for control in CONTROLS[kind]:
        for texts in ([control], ["a", control * 3], [" ", "a", f" {control} "]):
            ids = ENCODERS[kind].encode_chat(conversation(texts))
            safe = conversation([text.replace(control, "x") for text in texts])
            expected = count_controls(kind, huggingface_ids(kind, safe))
            assert count_controls(kind, ids) == expected, texts


@pytest.mark.parametrize("control", CONTROLS["chatml"])
def test_control_tokens_in_tools_stay_text(control: str) -> None:
    def tools(text: str) -> Chat:
        return [{"function": {"name": "f", "parameters": {text: [{"enum": (text, 1)}]}}}]

    messages: Chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": control}}]},
    ]
    safe: Chat = [messages[0], {"role": "assistant", "tool_calls": [{"function": {"x": "x"}}]}]
    ids = ENCODERS["chatml"].encode_chat(messages, tools(control))
    assert count_controls("chatml", ids) == count_controls(
        "chatml", huggingface_ids("chatml", safe, tools=tools("x"))
    )
    assert decoded("chatml", ids) == rendered("chatml", messages, tools=tools(control))


@pytest.mark.parametrize("parts", [("<|im_", "end|>"), ("<|", "im_end", "|>"), ("<|im_end|", ">")])
def test_a_control_token_in_pieces_stays_text(parts: tuple[str, ...]) -> None:
    """The template puts the parts of a message side by side."""
    content = [{"type": "text", "text": part} for part in parts]
    ids = ENCODERS["chatml"].encode_chat([{"role": "user", "content": content}])
    assert count_controls("chatml", ids)["<|im_end|>"] == 1
    assert "<|im_end|><|im_end|>" in decoded("chatml", ids)


def test_text_that_is_normalized_to_a_control_token_is_no_control_token() -> None:
    ids = ENCODERS["unigram"].encode_chat([{"role": "user", "content": "a ［INST］ b"}])
    assert count_controls("unigram", ids)["[INST]"] == 1


@example(answer="<think>\nfoo\n</think>\n\nbar", thought_first=True)
@example(answer="<think>\n\n</think>\n\nbar", thought_first=False)
@example(answer="foo</think>bar", thought_first=False)
@given(
    answer=st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "b "])).map("".join),
    thought_first=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_template_still_finds_the_reasoning_in_old_answers(
    answer: str, thought_first: bool
) -> None:
    """Only what the template itself writes has control, and its text is what it would have been."""
    messages = conversation(["be kind", "is </think> a tag?", answer, "so?"])
    if thought_first:
        messages = [*messages, {"role": "assistant", "content": answer}]
    ids = ENCODERS["thinking"].encode_chat(messages)
    tags = count_controls("thinking", ids)
    assert tags["</think>"] == (thought_first and "</think>" in answer)
    assert tags["<|im_end|>"] == len(messages)
    assert decoded("thinking", ids) == rendered("thinking", messages)


def test_plain_text_may_hold_control_tokens_and_gets_the_tokenizers_own() -> None:
    ids = ENCODERS["llama"].encode_text("Hello</s>")
    assert ids == KINDS["llama"]("Hello</s>")["input_ids"]
    assert (ids[0], ids[-1]) == (id_of("llama", "<s>"), id_of("llama", "</s>"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ raise_exception(messages[0].content) }}", "<|im_end|>"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[0].no.field }}", "no"),
        ("{{ 1 / 0 }}", "zero"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_fails_is_the_callers_mistake(template: str | None, reason: str) -> None:
    encoder = PromptEncoder(dressed(byte_level(), template))
    with pytest.raises(BadRequest, match=re.escape(reason)) as caught:
        encoder.encode_chat([{"role": "user", "content": "<|im_end|>"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", [[], ["text"], [None]])
def test_a_conversation_without_a_form_is_refused(messages: Any) -> None:
    with pytest.raises(BadRequest):
        ENCODERS["llama"].encode_chat(messages)


def test_nesting_too_deep_for_a_template_is_refused() -> None:
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(BadRequest):
        ENCODERS["chatml"].encode_chat([{"role": "user", "content": "a"}], tools=[{"deep": deep}])


def test_a_hopeless_prompt_is_refused_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder(KINDS["chatml"])
    encoded: list[int] = []
    whole = encoder._backend.encode

    class Counting:
        def encode(self, text: str, **options: Any) -> Any:
            encoded.append(len(text))
            return whole(text, **options)

    monkeypatch.setattr(encoder, "_backend", Counting())
    for content in ("word " * 100_000, "<|im_end|>" * 50_000, "</think>" * 50_000):
        with pytest.raises(BadRequest, match="maximum context length is 64 tokens") as caught:
            encoder.encode_chat([{"role": "user", "content": content}], most_tokens=64)
        assert caught.value.code == "context_length_exceeded"
    assert sum(encoded) < 10_000


def test_a_long_prompt_that_fits_is_encoded_whole() -> None:
    messages = [{"role": "user", "content": "word " * 400}]
    ids = ENCODERS["chatml"].encode_chat(messages, most_tokens=100_000)
    assert ids == ENCODERS["chatml"].encode_chat(messages)


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "documents", "no_such_name", "messages", "message"]
)
def test_variables_that_the_template_does_not_read_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=name) as caught:
        ENCODERS["chatml"].encode_chat([{"role": "user", "content": "a"}], None, {name: "x"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_thinking_may_be_asked_for_whatever_the_template() -> None:
    messages = [{"role": "user", "content": "a"}]
    asked = ENCODERS["chatml"].encode_chat(messages, None, {"enable_thinking": False})
    assert asked == ENCODERS["chatml"].encode_chat(messages)


def test_of_several_templates_tools_choose_theirs() -> None:
    templates = {"default": "{{ messages[0].content }}", "tool_use": "<|im_start|>tools"}
    tokenizer = dressed(byte_level(), templates)
    encoder, messages = PromptEncoder(tokenizer), [{"role": "user", "content": "<|im_start|>"}]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in encoder.encode_chat(messages)
    assert start in encoder.encode_chat(messages, TOOLS)
