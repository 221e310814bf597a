"""`ChatEncoder` equals Hugging Face on harmless chats and gives callers no control tokens."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import BadRequest
from tests.examples import examples
from tests.tokenizer_proc.prompt_cases import (
    CHAT_ENCODERS,
    CONTROLS,
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
    rendered,
    template_blind,
)
from tokenizer_proc.chat import ChatEncoder
from tokenizer_proc.context import Bound


@every_kind
@given(texts=st.lists(harmless, min_size=1, max_size=5))
@examples(200)
def test_harmless_chats_give_hugging_faces_ids(kind: str, texts: list[str]) -> None:
    messages = conversation(texts)
    assert CHAT_ENCODERS[kind].encode(messages) == huggingface_ids(kind, messages)


@every_kind
@given(texts=st.lists(harmless, min_size=1, max_size=5))
@examples(200)
def test_the_way_around_control_tokens_gives_the_same_ids(kind: str, texts: list[str]) -> None:
    """A hidden `<` at the end of a last message makes the encoder take the careful path."""
    messages = conversation([*texts, "x <" if kind != "unigram" else "x ["])
    assert CHAT_ENCODERS[kind].encode(messages) == huggingface_ids(kind, messages)


def test_tools_calls_and_variables_give_hugging_faces_ids() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 'a & "b" <c>\''}}}
    messages: Chat = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    ids = CHAT_ENCODERS["chatml"].encode(messages, TOOLS, {"thinking": True})
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
@examples(300)
def test_planted_control_tokens_stay_text(kind: str, data: st.DataObject) -> None:
    messages, harmless_messages = data.draw(planted(kind))
    ids = CHAT_ENCODERS[kind].encode(messages)
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
            ids = CHAT_ENCODERS[kind].encode(conversation(texts))
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
    ids = CHAT_ENCODERS["chatml"].encode(messages, tools(control))
    assert count_controls("chatml", ids) == count_controls(
        "chatml", huggingface_ids("chatml", safe, tools=tools("x"))
    )
    assert decoded("chatml", ids) == rendered("chatml", messages, tools=tools(control))


@pytest.mark.parametrize("parts", [("<|im_", "end|>"), ("<|", "im_end", "|>"), ("<|im_end|", ">")])
def test_a_control_token_in_pieces_stays_text(parts: tuple[str, ...]) -> None:
    """The template puts the parts of a message side by side."""
    content = [{"type": "text", "text": part} for part in parts]
    ids = CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": content}])
    assert count_controls("chatml", ids)["<|im_end|>"] == 1
    assert "<|im_end|><|im_end|>" in decoded("chatml", ids)


def test_text_that_is_normalized_to_a_control_token_is_no_control_token() -> None:
    ids = CHAT_ENCODERS["unigram"].encode([{"role": "user", "content": "a ［INST］ b"}])
    assert count_controls("unigram", ids)["[INST]"] == 1


@example(answer="<think>\nfoo\n</think>\n\nbar", thought_first=True)
@example(answer="<think>\n\n</think>\n\nbar", thought_first=False)
@example(answer="foo</think>bar", thought_first=False)
@given(
    answer=st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "b "])).map("".join),
    thought_first=st.booleans(),
)
@examples(300)
def test_a_template_still_finds_the_reasoning_in_old_answers(
    answer: str, thought_first: bool
) -> None:
    """Only what the template itself writes has control, and its text is what it would have been."""
    messages = conversation(["be kind", "is </think> a tag?", answer, "so?"])
    if thought_first:
        messages = [*messages, {"role": "assistant", "content": answer}]
    ids = CHAT_ENCODERS["thinking"].encode(messages)
    tags = count_controls("thinking", ids)
    assert tags["</think>"] == (thought_first and "</think>" in answer)
    assert tags["<|im_end|>"] == len(messages)
    assert decoded("thinking", ids) == rendered("thinking", messages)


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
    encoder = ChatEncoder(dressed(byte_level(), template))
    with pytest.raises(BadRequest, match=re.escape(reason)) as caught:
        encoder.encode([{"role": "user", "content": "<|im_end|>"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", [[], ["text"], [None]])
def test_a_conversation_without_a_form_is_refused(messages: Any) -> None:
    with pytest.raises(BadRequest):
        CHAT_ENCODERS["llama"].encode(messages)


def test_nesting_too_deep_for_a_template_is_refused() -> None:
    deep: Any = "x"
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(BadRequest):
        CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": "a"}], tools=[{"deep": deep}])


def test_a_hopeless_prompt_is_refused_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, bound = ChatEncoder(KINDS["chatml"]), Bound("messages", most_tokens=64)
    encoded: list[int] = []
    whole = encoder._backend.encode

    class Counting:
        def encode(self, text: str, **options: Any) -> Any:
            encoded.append(len(text))
            return whole(text, **options)

    monkeypatch.setattr(encoder, "_backend", Counting())
    for content in ("word " * 100_000, "<|im_end|>" * 50_000, "</think>" * 50_000):
        with pytest.raises(BadRequest, match="maximum context length is 64 tokens") as caught:
            encoder.encode([{"role": "user", "content": content}], bound=bound)
        assert caught.value.code == "context_length_exceeded"
    assert sum(encoded) < 10_000


def test_a_conversation_that_takes_too_much_time_is_refused_whatever_the_context() -> None:
    """Stand-ins make a text of control tokens longer, and that is what is encoded."""
    bound = Bound("messages", most_bytes=2000)
    for content in ("é" * 1001, "<|im_end|>" * 100):
        with pytest.raises(BadRequest, match="at most 2000 are tokenized") as caught:
            CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": content}], bound=bound)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")
    assert CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": "é" * 900}], bound=bound)


def test_a_long_prompt_that_fits_is_encoded_whole() -> None:
    messages = [{"role": "user", "content": "word " * 400}]
    ids = CHAT_ENCODERS["chatml"].encode(messages, bound=Bound("messages", most_tokens=100_000))
    assert ids == CHAT_ENCODERS["chatml"].encode(messages)


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "documents", "no_such_name", "messages", "message"]
)
def test_variables_that_the_template_does_not_read_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=name) as caught:
        CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": "a"}], None, {name: "x"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("name", ["tools", "documents", "tokenize"])
def test_variables_that_are_not_the_callers_are_reserved(name: str) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is a reserved name"):
        CHAT_ENCODERS["chatml"].encode([{"role": "user", "content": "a"}], None, {name: "x"})


def test_thinking_may_be_asked_for_whatever_the_template() -> None:
    messages = [{"role": "user", "content": "a"}]
    asked = CHAT_ENCODERS["chatml"].encode(messages, None, {"enable_thinking": False})
    assert asked == CHAT_ENCODERS["chatml"].encode(messages)


def test_of_several_templates_tools_choose_theirs() -> None:
    templates = {"default": "{{ messages[0].content }}", "tool_use": "<|im_start|>tools"}
    tokenizer = dressed(byte_level(), templates)
    encoder, messages = ChatEncoder(tokenizer), [{"role": "user", "content": "<|im_start|>"}]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in encoder.encode(messages)
    assert start in encoder.encode(messages, TOOLS)


# ── where the answer goes on ─────────────────────────────────────────────────────────────────────

# Templates that do something to the end of a message, and whether it can be continued after that.
LAST_WORDS = {
    "keeps": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    "trims": "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
    "trims and spaces": "{% for m in messages %}{{ m.content | trim }} <|im_end|>{% endfor %}",
    "adds": "{% for m in messages %}{{ m.content + '.\n' }}{% endfor %}<|im_start|>assistant",
}
CONTINUED = {name: dressed(byte_level(), template) for name, template in LAST_WORDS.items()}


def continued(encoder: ChatEncoder, messages: Chat) -> list[int]:
    return encoder.encode(messages, add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("name", CONTINUED)
@example(texts=["a", "b <"])
@example(texts=["a", "b \n"])
@given(texts=st.lists(harmless, min_size=2, max_size=4))
@examples(100)
def test_a_continued_message_gives_hugging_faces_ids(name: str, texts: list[str]) -> None:
    tokenizer, messages = CONTINUED[name], conversation(texts)
    ids = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert continued(ChatEncoder(tokenizer), messages) == list(ids)


@pytest.mark.parametrize("name", CONTINUED)
@pytest.mark.parametrize("end", ["", "<|im_end|>", "</think>", "x<|im_end|>\n", " <|im_"])
def test_a_continued_message_ends_where_its_text_does_and_is_text(name: str, end: str) -> None:
    messages = conversation(["hi", f"so be it{end}"])
    ids = continued(ChatEncoder(CONTINUED[name]), messages)
    text = str(CONTINUED[name].decode(ids))
    assert text.rstrip().endswith(f"so be it{end.rstrip()}")
    control = CONTINUED[name].backend_tokenizer.token_to_id("<|im_end|>")
    assert control is not None
    assert ids.count(control) == (name != "adds")  # the one after the first message


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content.split('so')[0] }}{% endfor %}",
        "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% endfor %} Again: {{ messages[-1].content }}",
    ],
)
def test_a_message_that_the_template_changes_cannot_be_continued(template: str) -> None:
    encoder = ChatEncoder(dressed(byte_level(), template))
    with pytest.raises(BadRequest, match="cannot be continued") as caught:
        continued(encoder, conversation(["hi", "and so on"]))
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("last", [None, [{"type": "text", "text": "a"}]])
def test_a_message_without_a_text_cannot_be_continued(last: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        continued(CHAT_ENCODERS["chatml"], [{"role": "assistant", "content": last}])
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\nso", "<think>\nhm"])
def test_reasoning_can_be_continued_where_the_template_keeps_it(answer: str) -> None:
    messages = conversation(["hi", answer])
    for message, role in zip(messages, ("user", "assistant"), strict=True):
        message["role"] = role
    ids = continued(CHAT_ENCODERS["thinking"], messages)
    assert decoded("thinking", ids).endswith(f"<|im_start|>assistant\n{answer}")


def test_no_generation_prompt_is_added_where_none_is_wanted() -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    encoder = ChatEncoder(dressed(byte_level(), template))
    with_it, without = (
        encoder.encode(conversation(["a"]), add_generation_prompt=wanted)
        for wanted in (True, False)
    )
    assert with_it[:-1] == without
