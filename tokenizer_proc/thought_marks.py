"""How a model marks its thoughts: looked up once, when its tokenizer is loaded.

A checkpoint may say so itself, in the `response_template` of its tokenizer. Most do not; then the
marks are those of a small table that stand in its chat template or among its added tokens.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_parsing.response_templates import load_response_template

from shared.parts import ChatPrompt, ThoughtMarks
from tokenizer_proc.control_tokens import template_source
from tokenizer_proc.thoughts import THOUGHT_FIELDS

logger = logging.getLogger(__name__)

_PROMPT_TAIL = 64  # tokens: more than any template writes between the last message and the answer
_ANCHORS = ("open", "open_pattern", "close", "close_pattern")

# What stands before thoughts and behind them. Of all models that use the first pair, few mean
# anything else by it; the others are their makers' own.
_PAIRS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, GLM and many more
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),  # ByteDance Seed
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<|channel>thought", "<channel|>"),  # Gemma
    ("<thinking>", "</thinking>"),
)
# OpenAI's harmony: every message is in a channel, and there may be several.
_HARMONY = ("<|channel|>analysis<|message|>", "<|end|>")
_HEADER = r"(?:<\|start\|>assistant[^<]*)?<\|channel\|>"
_HARMONY_FIELDS: dict[str, dict[str, Any]] = {
    "thinking": {
        "open_pattern": _HEADER + r"analysis[^<]*<\|message\|>",
        "close": "<|end|>",
    },
    "final": {
        "open_pattern": _HEADER
        + r"(?:final|commentary)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        "close": ["<|end|>", "<|return|>", "<|call|>"],
    },
    "content": {},
}


class _Found(NamedTuple):
    """The regions of an answer, and what its part of the prompt comes after."""

    fields: Mapping[str, Mapping[str, Any]]
    header: re.Pattern[str]
    opening: str = ""  # the mark of thoughts that come first or not at all


class ThoughtFormat:
    """How one model marks its thoughts, told for each of its prompts."""

    def __init__(self, found: _Found, special_ids: tuple[int, ...], backend: Tokenizer) -> None:
        # What comes before the answer is cut off here, so the parser need not look for it.
        self.template = {"start_anchor_pattern": r"\A", "fields": found.fields}
        self.special_ids = special_ids
        self._found = found
        self._backend = backend

    def marks(self, prompt_token_ids: Sequence[int], chat: ChatPrompt) -> ThoughtMarks | None:
        """What the detokenizer must know to read the answer; None if it can hold no thoughts."""
        opening = self._found.opening
        if chat.continue_final_message:
            prefix = str(chat.messages[-1]["content"]).lstrip()
            if prefix and not prefix.startswith(opening):
                return None
        else:
            prefix = self._begun_answer(prompt_token_ids[-_PROMPT_TAIL:])
        return ThoughtMarks(self.template, prefix, self.special_ids, come_first=opening != "")

    def _begun_answer(self, prompt_tail: Sequence[int]) -> str:
        """What the template itself wrote of the answer: thoughts that it opened, or closed."""
        text = self._backend.decode(prompt_tail, skip_special_tokens=False)
        ends = [match.end() for match in self._found.header.finditer(text)]
        return text[ends[-1] :] if ends else ""


def find_thoughts(tokenizer: PreTrainedTokenizerFast) -> ThoughtFormat | None:
    """How this model marks its thoughts; None if it is not known to think."""
    found = _stated(tokenizer) or _guessed(tokenizer)
    if found is None:
        return None
    marks = [mark for field in found.fields.values() for mark in _marks_of(field)]
    added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
    special_ids = tuple(
        token_id
        for token_id, token in added.items()
        if token.special and _is_part(token.content, marks)
    )
    return ThoughtFormat(found, special_ids, tokenizer.backend_tokenizer)


def _stated(tokenizer: PreTrainedTokenizerFast) -> _Found | None:
    """The regions of the checkpoint's own template; all of them are read as plain text."""
    stated = getattr(tokenizer, "response_template", None)
    if stated is None:
        return None
    try:
        template = load_response_template(stated)
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("the checkpoint's response_template is not used: %s", error)
        return None
    if THOUGHT_FIELDS.isdisjoint(template.fields):
        return None
    names = set(template.fields)
    if template.implicit is not None:  # what is left out stays in the answer, with its marks
        names &= THOUGHT_FIELDS | {template.implicit, "content"}
    fields = {name: _plain(field) for name, field in stated["fields"].items() if name in names}
    return _Found(fields, template.start_anchor_re)


def _plain(field: Mapping[str, Any]) -> dict[str, Any]:
    """The field's bounds alone: a model's broken JSON must not fail its answer."""
    return {key: field[key] for key in _ANCHORS if key in field} | {"transform": "{content}"}


def _guessed(tokenizer: PreTrainedTokenizerFast) -> _Found | None:
    """The first known marks that both stand in the chat template, or else are tokens."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    source = template_source(tokenizer)
    if all(mark in source for mark in _HARMONY):
        return _Found(_HARMONY_FIELDS, _before(*_HARMONY))
    for where in (source, tokens):
        for opening, closing in _PAIRS:
            if opening in where and closing in where:
                return _pair(opening, closing)
    return None


def _pair(opening: str, closing: str) -> _Found:
    """Thoughts come first or not at all: an answer may well speak of the marks."""
    thinking = {"open_pattern": rf"\A\s{{0,32}}{re.escape(opening)}", "close": closing}
    fields = {"thinking": thinking, "content": {}}
    return _Found(fields, _before(opening, closing), opening=opening)


def _before(opening: str, closing: str) -> re.Pattern[str]:
    """All of a prompt but the marks at its end."""
    opening, closing = re.escape(opening), re.escape(closing)
    return re.compile(rf"\A.*?(?=(?:{opening}\s*(?:{closing}\s*)?)?\Z)", re.DOTALL)


def _marks_of(field: Mapping[str, Any]) -> Iterator[str]:
    for anchor in _ANCHORS:
        mark = field.get(anchor, ())
        yield from [mark] if isinstance(mark, str) else mark


def _is_part(token: str, marks: Iterable[str]) -> bool:
    """Whether the token stands in a mark, be that literal or a pattern."""
    return any(token in mark or re.escape(token) in mark for mark in marks)
