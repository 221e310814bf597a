"""Turns a conversation into token ids; only the chat template has control in it.

Owns the rendering of the chat template and the rule that chat content is always text. Must not know
requests, sampling or the model. Ids equal Hugging Face's `apply_chat_template(tokenize=True)` as
long as the caller's strings hold no control token. A template that glues a control token together
from names, like `'<|' + role + '|>'`, is trusted with them: the frontend checks roles.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, meta
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from shared.errors import BadRequest
from tokenizer_proc.context import Bound
from tokenizer_proc.control_tokens import ControlTokens, Disguise, random_word, template_source
from tokenizer_proc.text_only import TextOnlyTokenizer

# What a template can raise over a conversation that it does not expect: its own refusal, and
# Python's errors for a missing field, a wrong type or a nesting that is too deep.
TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

# Names that would steer Hugging Face's function, or stand for what it passes itself.
_RESERVED_NAMES = frozenset(
    inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
) | {"messages"}

# Names that clients send whatever the model; a template that does not read them is not harmed.
_ALWAYS_ALLOWED_NAMES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})

_NO_CONTEXT = Bound("messages")
_Change = Callable[[str], str]


@dataclass(frozen=True)
class _Chat:
    """What `apply_chat_template` is given, and the word that stands where the answer goes on."""

    arguments: dict[str, Any]
    mark: str | None  # None: the answer begins where the template ends


class ChatEncoder:
    """Encodes conversations for one tokenizer, whose truncation and padding are off."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._controls = ControlTokens(tokenizer)

    def encode(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        bound: Bound = _NO_CONTEXT,
    ) -> list[int]:
        """Ids of a conversation; BadRequest if it has no form.

        They end where the assistant speaks, or where the last message's content ends.
        """
        if self._tokenizer.chat_template is None:
            raise BadRequest("the served model has no chat template", "messages")
        self._check_names(template_kwargs or {})
        if continue_final_message:
            _check_last(messages)
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
        chat = _Chat(
            {"conversation": messages, **options, **(template_kwargs or {})},
            random_word() if continue_final_message else None,
        )
        return self._encode(chat, bound)

    def _encode(self, chat: _Chat, bound: Bound) -> list[int]:
        disguise = Disguise(self._controls)
        if bound.may_be_broken_by(_num_characters(chat.arguments)):
            bound.check(_cut(self._render(chat, str, disguise), chat), self._backend)
        text = _cut(self._render_disguised(chat, disguise), chat)
        bound.check_bytes(text)  # stand-ins for many control tokens can make it far longer
        if chat.mark is not None:
            _check_end(disguise.restore(text), chat)
        return self._encode_rendered(text, disguise)

    def _check_names(self, template_kwargs: dict[str, Any]) -> None:
        """Refuses a variable that the template does not read, so that none is silently ignored."""
        for name in template_kwargs:
            shown = name[:64]
            if name in _RESERVED_NAMES:
                sentence = f"{shown!r} is a reserved name: 'chat_template_kwargs' may not set it"
            elif name not in self._names_read:
                sentence = f"the chat template does not read {shown!r}"
            else:
                continue
            raise BadRequest(sentence, f"chat_template_kwargs.{shown}")

    def _render_disguised(self, chat: _Chat, disguise: Disguise) -> str:
        """The rendered chat, in which every control token is the template's own.

        Templates may read tags in a message, to cut old reasoning for example. Where hiding them
        changes more than the tags, the template gets to see them, if they can be told apart after.
        """
        hidden = self._render(chat, disguise.hide, disguise)
        if not disguise.hides_tags:
            return hidden
        plain = self._render(chat, str, disguise)
        if disguise.restore(hidden) == plain:
            return hidden
        shown = disguise.settle(self._render(chat, disguise.show, disguise))
        return shown if disguise.restore(shown) == plain else hidden

    def _render(self, chat: _Chat, change: _Change, disguise: Disguise) -> str:
        try:
            arguments = _map_strings(chat.arguments, change)
            if chat.mark is not None:
                arguments["conversation"][-1]["content"] += f"{chat.mark} "
            rendered = self._tokenizer.apply_chat_template(**arguments, tokenize=False)
        except TEMPLATE_ERRORS as error:
            reason = disguise.restore(str(error))
            raise BadRequest(f"the chat template failed: {reason}", "messages") from error
        assert isinstance(rendered, str)  # one conversation, not tokenized
        return rendered

    def _encode_rendered(self, text: str, disguise: Disguise) -> list[int]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        written, forged = self._controls.find(encoding, text)
        if not disguise.is_worn and not forged:
            return encoding.ids
        ids: list[int] = []
        begin, previous = 0, None
        for token_id, start, end in written:
            ids += self._encode_piece(disguise.restore(text[begin:start]), previous)
            ids.append(token_id)
            begin, previous = end, token_id
        return ids + self._encode_piece(disguise.restore(text[begin:]), previous)

    def _encode_piece(self, text: str, previous: int | None) -> list[int]:
        """Ids of text that stands at the very start, or after the control token `previous`."""
        if previous is None:
            return self._text_only.encode(text)
        return self._text_only.encode_after(text, self._controls.tokens[previous].normalized)

    @cached_property
    def _names_read(self) -> frozenset[str]:
        """The variables that the template reads, and those that any may be given."""
        return _names_read(template_source(self._tokenizer)) | _ALWAYS_ALLOWED_NAMES

    @cached_property
    def _text_only(self) -> TextOnlyTokenizer:
        # A second vocabulary in memory, so it is built when a prompt first needs it.
        return TextOnlyTokenizer(self._backend, self._controls.texts)


def _check_last(messages: list[dict[str, Any]]) -> None:
    if not messages or not isinstance(messages[-1].get("content"), str):
        sentence = "'continue_final_message' needs a last message with a text to continue."
        raise BadRequest(sentence, "continue_final_message")


def _cut(rendered: str, chat: _Chat) -> str:
    """The text up to the mark, by Hugging Face's rule for `continue_final_message`.

    The mark is followed by a blank: where the template trims that away, it would have trimmed the
    end of the content as well.
    """
    if chat.mark is None:
        return rendered
    text, mark, rest = rendered.rpartition(chat.mark)
    if not mark or chat.mark in text:  # a message that is written twice ends in two places
        raise _not_continued()
    return text if rest.startswith(" ") else text.rstrip()


def _check_end(text: str, chat: _Chat) -> None:
    """Refuses a prompt that does not end with the last message's content, which it goes on from."""
    content = chat.arguments["conversation"][-1]["content"]
    if not text.rstrip().endswith(content.strip()):
        raise _not_continued()


def _not_continued() -> BadRequest:
    sentence = "The chat template changes or repeats the last message: it cannot be continued."
    return BadRequest(sentence, "continue_final_message")


def _map_strings(value: Any, change: _Change) -> Any:
    """The value with every string in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _num_characters(value: Any) -> int:
    """Of all strings in the value, however deep."""
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            rest += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            rest += item
    return total


def _names_read(source: str) -> frozenset[str]:
    try:
        # Private, but the only way to the environment in which transformers renders templates.
        environment = _compile_jinja_template(source).environment
        return frozenset(meta.find_undeclared_variables(environment.parse(source)))
    except TemplateError:
        return frozenset()  # rendering it says what is wrong
