"""`PromptEncoder` equals Hugging Face on harmless chats and gives callers no control tokens."""

import json
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.decoders import ByteFallback, Fuse, Replace, Strip
from transformers import PreTrainedTokenizerFast

from shared.errors import BadRequest
from tokenizer_proc.prompt import PromptEncoder

Chat = list[dict[str, Any]]

LINES = [
    "Hello world, how are you today? I am fine.",
    "def f(x):\n    return x + 1\n",
    "system user assistant tool name parameters description",
    "café naïve — 你好，世界。",
    "emoji 😀 and x text",
]
CHATML = """
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content | trim }}
{%- else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{%- for call in m.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if not thinking %}<think>

</think>

{% endif %}"""
LLAMA = """
{%- for m in messages %}
{%- if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]
{%- else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"""
# Qwen 3's way with old reasoning: cut it from all answers but those after the last question.
THINKING = """
{%- for m in messages %}
{%- set content = m.content %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- if loop.last %}{% set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}
{%- endif %}{%- endif %}<|im_start|>{{ m.role }}
{{ content }}<|im_end|>
{% endfor %}"""
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>", "    ", "unused"]
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*specials, *BYTE_TOKENS], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return altered(tokenizer, added=specials)


def altered(tokenizer: Tokenizer, added: list[str], **model: Any) -> Tokenizer:
    """The tokenizer with only some of its added tokens, and with other settings of its model."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in added]
    state["model"] |= model
    return Tokenizer.from_str(json.dumps(state))


def legacy_byte_fallback() -> Tokenizer:
    """Llama 2's first conversion: the space sign comes from the normalizer."""
    tokenizer = byte_fallback()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def eager_byte_fallback() -> Tokenizer:
    """A vocabulary that turns the bare text `</s>` into the control token."""
    return altered(byte_fallback(), ["<unk>", "<s>", "</s>"], ignore_merges=True)


def unigram() -> Tokenizer:
    """T5's kind, where `</s>` is a piece like any other."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*LINES, "[INST] < / s > [/INST]"], trainer)
    tokenizer.add_tokens([AddedToken("[INST]", normalized=True)])
    return tokenizer


def dressed(tokenizer: Tokenizer, template: Any) -> PreTrainedTokenizerFast:
    vocab = tokenizer.get_vocab()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known = {name: token for name, token in names.items() if token in vocab}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        **known,
        clean_up_tokenization_spaces=False,
    )


def trimmed_byte_level() -> Tokenizer:
    """Control tokens that swallow the blanks beside them, and offsets that do not say so."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    names = ["<|im_start|>", "<|im_end|>"]
    kept = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    tokenizer = altered(tokenizer, [name for name in kept if name not in names])
    greedy = [AddedToken(name, lstrip=True, rstrip=True, normalized=False) for name in names]
    tokenizer.add_special_tokens(greedy)
    return tokenizer


KINDS = {
    "chatml": dressed(byte_level(), CHATML),
    "trimmed": dressed(trimmed_byte_level(), CHATML),
    "thinking": dressed(byte_level(), THINKING),
    "llama": dressed(byte_fallback(), LLAMA),
    "legacy": dressed(legacy_byte_fallback(), LLAMA),
    "eager": dressed(eager_byte_fallback(), LLAMA),
    "unigram": dressed(unigram(), LLAMA),
}
LOSSLESS = ["chatml", "llama"]
every_kind = pytest.mark.parametrize("kind", KINDS)
# The kinds whose template never looks for control tokens in a message.
template_blind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "thinking"])
ENCODERS = {kind: PromptEncoder(tokenizer) for kind, tokenizer in KINDS.items()}
CONTROLS = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"],
    "trimmed": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "thinking": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    "llama": ["<s>", "</s>", "<unk>"],
    "legacy": ["<s>", "</s>", "<unk>"],
    "eager": ["<s>", "</s>", "<unk>"],
    "unigram": ["<s>", "</s>", "<pad>", "[INST]"],
}
TOOLS: Chat = [{"type": "function", "function": {"name": "f", "parameters": {"x": ["a < b"]}}}]

harmless = st.text(st.sampled_from("ab x1<>|/[]\n\t  你é😀_")).filter(
    lambda text: "<s>" not in text
)


def huggingface_ids(kind: str, messages: Chat, **kwargs: Any) -> list[int]:
    ids = KINDS[kind].apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **kwargs
    )
    return list(map(int, ids))


def rendered(kind: str, messages: Chat, **kwargs: Any) -> str:
    text = KINDS[kind].apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **kwargs
    )
    return str(text)


def decoded(kind: str, ids: list[int]) -> str:
    return str(KINDS[kind].decode(ids))


def id_of(kind: str, token: str) -> int:
    token_id = KINDS[kind].backend_tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def conversation(texts: list[str]) -> Chat:
    roles = ["system", "user", "assistant", "tool"]
    return [{"role": roles[n % 4], "content": text} for n, text in enumerate(texts)]


def count_controls(kind: str, ids: list[int]) -> Counter[str]:
    names = {id_of(kind, control): control for control in CONTROLS[kind]}
    return Counter(names[token_id] for token_id in ids if token_id in names)


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
