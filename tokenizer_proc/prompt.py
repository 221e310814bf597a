"""Turns a conversation or a text into token ids; in a conversation only the template has control.

Owns the rendering of the chat template and the rule that chat content is always text. Must not know
requests, sampling or the model. Ids equal Hugging Face's `apply_chat_template(tokenize=True)` as
long as the caller's strings hold no control token. A template that glues a control token together
from names, like `'<|' + role + '|>'`, is trusted with them: the frontend checks roles.
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, meta
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from shared.errors import BadRequest, ErrorCode
from tokenizer_proc.control_tokens import ControlTokens, Disguise, template_source
from tokenizer_proc.text_only import TextOnlyTokenizer

# What a template can raise over a conversation that it does not expect: its own refusal, and
# Python's errors for a missing field, a wrong type or a nesting that is too deep.
_TEMPLATE_ERRORS = (
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

# More characters than a token has in any text but runs of one sign: above so many for each token
# of the context, a conversation is measured by its beginning first.
_MANY_CHARACTERS = 16
_TOKENS_AT_A_CUT = 8  # cutting a text can change the tokens beside the cut

# Names that clients send whatever the model; a template that does not read them is not harmed.
_ALWAYS_ALLOWED_NAMES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})

_Change = Callable[[str], str]


class PromptEncoder:
    """Encodes prompts for one tokenizer. Truncation and padding are switched off in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._controls = ControlTokens(tokenizer)
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain prompt: control tokens in it count, and the tokenizer adds its own."""
        return self._backend.encode(text).ids

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Ids of a conversation up to where the assistant speaks; BadRequest if it has no form.

        Of a conversation far above `most_tokens` only the beginning is encoded, to refuse it.
        """
        if self._tokenizer.chat_template is None:
            raise BadRequest("the served model has no chat template", "messages")
        self._check_names(template_kwargs or {})
        disguise = Disguise(self._controls)
        chat = {"conversation": messages, "tools": tools, **(template_kwargs or {})}
        if most_tokens is not None and _num_characters(chat) > _MANY_CHARACTERS * most_tokens:
            self._refuse_hopeless(self._render(chat, str, disguise), most_tokens)
        return self._encode_rendered(self._render_disguised(chat, disguise), disguise)

    def _refuse_hopeless(self, text: str, most_tokens: int) -> None:
        """Refuses what is too long by its beginning alone, at a cost that the context bounds."""
        num_characters = _MANY_CHARACTERS * most_tokens
        while num_characters < len(text):
            encoding = self._backend.encode(text[:num_characters], add_special_tokens=False)
            if len(encoding.ids) > most_tokens + _TOKENS_AT_A_CUT:
                raise too_long(most_tokens, f"more than {most_tokens}")
            num_characters *= 2

    def _check_names(self, template_kwargs: dict[str, Any]) -> None:
        """Refuses a variable that the template does not read, so that none is silently ignored."""
        for name in template_kwargs:
            if name in _RESERVED_NAMES or name not in self._names_read:
                field = f"chat_template_kwargs.{name[:64]}"
                raise BadRequest(f"the chat template does not read {name[:64]!r}", field)

    def _render_disguised(self, chat: dict[str, Any], disguise: Disguise) -> str:
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

    def _render(self, chat: dict[str, Any], change: _Change, disguise: Disguise) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                **_map_strings(chat, change), add_generation_prompt=True, tokenize=False
            )
        except _TEMPLATE_ERRORS as error:
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


def _map_strings(value: Any, change: _Change) -> Any:
    """The value with every string in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def too_long(most_tokens: int, num_tokens: str) -> BadRequest:
    """The refusal of a prompt that fills the context, in the words that clients look for."""
    return BadRequest(
        f"This model's maximum context length is {most_tokens} tokens. However, your messages "
        f"resulted in {num_tokens} tokens. Please reduce the length of the messages.",
        "messages",
        ErrorCode.CONTEXT_LENGTH,
    )


def _num_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_num_characters(k) + _num_characters(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_num_characters, value))
    return 0


def _names_read(source: str) -> frozenset[str]:
    try:
        # Private, but the only way to the environment in which transformers renders templates.
        environment = _compile_jinja_template(source).environment
        return frozenset(meta.find_undeclared_variables(environment.parse(source)))
    except TemplateError:
        return frozenset()  # rendering it says what is wrong
