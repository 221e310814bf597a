"""Tokenizers, templates and conversations for the tests of prompts."""

import json
from collections import Counter
from typing import Any

import pytest
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

from tokenizer_proc.chat import ChatEncoder
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
CHAT_ENCODERS = {kind: ChatEncoder(tokenizer) for kind, tokenizer in KINDS.items()}
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
    options = {"add_generation_prompt": True, **kwargs}
    ids = KINDS[kind].apply_chat_template(messages, return_dict=False, **options)
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
