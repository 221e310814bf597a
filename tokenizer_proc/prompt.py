"""Turns a conversation or a text into token ids; in a conversation only the template has control.

Owns the rendering of the chat template and the rule that chat content is always text. Must not know
requests, sampling or the model. Ids equal Hugging Face's `apply_chat_template(tokenize=True)` as
long as the caller's strings hold no control token. A template that glues a control token together
from names, like `'<|' + role + '|>'`, is trusted with them: the frontend checks roles.
"""

import inspect
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import BadRequest

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

# Names that would steer Hugging Face's function instead of reaching the template.
_RESERVED_NAMES = frozenset(
    inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
)

# Names that clients send whatever the model; a template that does not read them is not harmed.
_ALWAYS_ALLOWED_NAMES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})

# Blank lines beside a token that a template may strip and will never write itself.
_PADDING = "\n" * 8

_Change = Callable[[str], str]
_Span = tuple[int, int, int]  # a token's id, and where its text starts and ends


class PromptEncoder:
    """Encodes prompts for one tokenizer. Truncation and padding are switched off in it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._controls = _ControlTokens(tokenizer)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain prompt: control tokens in it count, and the tokenizer adds its own."""
        return self._backend.encode(text).ids

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation up to where the assistant speaks; BadRequest if it has no form."""
        if self._tokenizer.chat_template is None:
            raise BadRequest("the served model has no chat template", "messages")
        self._check_names(template_kwargs or {})
        disguise = _Disguise(self._controls)
        chat = {"conversation": messages, "tools": tools, **(template_kwargs or {})}
        return self._encode_rendered(self._render_disguised(chat, disguise), disguise)

    def _check_names(self, template_kwargs: dict[str, Any]) -> None:
        """Refuses a variable that the template does not read, so that none is silently ignored."""
        read = set(re.findall(r"\w+", _template_source(self._tokenizer))) | _ALWAYS_ALLOWED_NAMES
        for name in template_kwargs:
            if name in _RESERVED_NAMES or name not in read:
                field = f"chat_template_kwargs.{name[:64]}"
                raise BadRequest(f"the chat template does not read {name[:64]!r}", field)

    def _render_disguised(self, chat: dict[str, Any], disguise: "_Disguise") -> str:
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

    def _render(self, chat: dict[str, Any], change: _Change, disguise: "_Disguise") -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                **_map_strings(chat, change), add_generation_prompt=True, tokenize=False
            )
        except _TEMPLATE_ERRORS as error:
            reason = disguise.restore(str(error))
            raise BadRequest(f"the chat template failed: {reason}", "messages") from error
        assert isinstance(rendered, str)  # one conversation, not tokenized
        return rendered

    def _encode_rendered(self, text: str, disguise: "_Disguise") -> list[int]:
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
    def _text_only(self) -> "_TextOnlyTokenizer":
        # A second vocabulary in memory, so it is built when a prompt first needs it.
        return _TextOnlyTokenizer(self._backend, self._controls.texts)


class _ControlTokens:
    """The tokens that only the template may write, and their text.

    These are the added tokens flagged special, and the tags (`<think>`, `[CALL]`) that stand in the
    template's source. Other added tokens, such as runs of spaces, are text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        source = _template_source(tokenizer)
        added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        self.tokens = {
            token_id: token
            for token_id, token in added.items()
            if not token.content.isspace() and (token.special or _is_tag(token.content, source))
        }
        self.texts = {token.content for token in self.tokens.values()}
        self.tags = {token.content for token in self.tokens.values() if not token.special}
        self.pattern = re.compile(f"({_any_of(self.texts) if self.texts else '(?!)'})")
        self.beginnings, self.ends = _fragments(self.texts)
        self.edge_lengths = range(1, max(map(len, self.texts), default=1))
        self._unknown_id: int | None = tokenizer.unk_token_id

    def find(self, encoding: Encoding, text: str) -> tuple[list[_Span], list[_Span]]:
        """The control tokens of the encoding that stand in `text`, and those that do not.

        A normalizer or a vocabulary can make the latter from other text. The unknown token is no
        such forgery: it stands for characters that the vocabulary lacks.
        """
        written: list[_Span] = []
        forged: list[_Span] = []
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token = self.tokens.get(token_id)
            if token is None:
                continue
            if text[start:end].strip() == token.content.strip():
                written.append((token_id, *_with_blanks(token, text, start, end)))
            elif token_id != self._unknown_id:
                forged.append((token_id, start, end))
        return written, forged


def _with_blanks(token: AddedToken, text: str, start: int, end: int) -> tuple[int, int]:
    """The span with the blanks that the token swallows; some tokenizers leave them out of it."""
    while token.lstrip and text[start - 1 : start].isspace():
        start -= 1
    while token.rstrip and text[end : end + 1].isspace():
        end += 1
    return start, end


class _Disguise:
    """Stand-ins for the control tokens in one caller's strings, while the template runs.

    They are random letters and digits: nobody can forge them, and they come through `trim`,
    `tojson`, `upper` and the like. Templates put strings side by side, so half a control token at
    the edge of a string is hidden as well.
    """

    def __init__(self, controls: _ControlTokens) -> None:
        self._controls = controls
        self._stand_ins: dict[str, str] = {}  # hidden text to its stand-in
        self._nonce, self._left, self._right = (_random_word() for _ in range(3))

    @property
    def is_worn(self) -> bool:
        """Whether anything was hidden so far."""
        return bool(self._stand_ins)

    @property
    def hides_tags(self) -> bool:
        """Whether a tag, which a template may want to read, was hidden so far."""
        return not self._controls.tags.isdisjoint(self._stand_ins)

    def hide(self, text: str) -> str:
        """The text without any control token."""
        return self._hide_edges(self._controls.pattern.sub(lambda m: self._stand_in(m[0]), text))

    def show(self, text: str) -> str:
        """The text with its tags readable, in marks that survive splitting and stripping there."""
        parts = self._controls.pattern.split(text)  # text, token, text, ..., token, text
        for index in range(1, len(parts), 2):
            token = parts[index]
            if token not in self._controls.tags:
                parts[index] = self._stand_in(token)
                continue
            before, after = parts[index - 1].rstrip(), parts[index + 1].lstrip()
            blank_before = parts[index - 1][len(before) :]
            blank_after = parts[index + 1][: len(parts[index + 1]) - len(after)]
            marked = self._left + _PADDING + blank_before + token + blank_after + _PADDING
            parts[index - 1 : index + 2] = before, marked + self._right, after
        return self._hide_edges("".join(parts))

    def settle(self, rendered: str) -> str:
        """Hide the tags that are still between their marks; drop the marks of the others."""
        left, right = self._left, self._right
        whole = f"{left}{_PADDING}(\\s*){self._controls.pattern.pattern}(\\s*){_PADDING}{right}"
        rendered = re.sub(whole, lambda m: m[1] + self._stand_in(m[2]) + m[3], rendered)
        return re.sub(f"{left}(?:{_PADDING})?|(?:{_PADDING})?{right}", "", rendered)

    def restore(self, text: str) -> str:
        """The text with what was hidden."""
        hidden = list(self._stand_ins)
        stand_in = re.compile(f"{self._nonce}([0-9]{{6}})", re.IGNORECASE)
        return stand_in.sub(lambda m: hidden[int(m[1])], text)

    def _hide_edges(self, text: str) -> str:
        body = text.lstrip()
        head = _longest_in(self._controls.ends, (body[:n] for n in self._controls.edge_lengths))
        if head:
            text = text[: len(text) - len(body)] + self._stand_in(head) + body[len(head) :]
        body = text.rstrip()
        tail = _longest_in(
            self._controls.beginnings, (body[-n:] for n in self._controls.edge_lengths)
        )
        if tail:
            text = body[: -len(tail)] + self._stand_in(tail) + text[len(body) :]
        return text

    def _stand_in(self, hidden: str) -> str:
        return self._stand_ins.setdefault(hidden, f"{self._nonce}{len(self._stand_ins):06}")


class _TextOnlyTokenizer:
    """A copy of a tokenizer whose vocabulary has other, unguessable names for some tokens.

    So no text can ever become one of them, whether as an added token, by a Unigram piece or by a
    merge; all other text encodes as before.
    """

    def __init__(self, tokenizer: Tokenizer, removed: Iterable[str]) -> None:
        names = {content: _random_word() for content in removed}
        state = json.loads(tokenizer.to_str())
        state["post_processor"] = None
        kept = [token for token in state["added_tokens"] if token["content"] not in names]
        state["added_tokens"] = kept
        _rename_in_model(state["model"], names)
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        # Without the removed tokens the copy numbers the other added tokens anew.
        self._original_ids = {
            self._tokenizer.token_to_id(token["content"]): token["id"] for token in kept
        }
        self._anchors = {is_normalized: _random_word() for is_normalized in (False, True)}
        for is_normalized, anchor in self._anchors.items():
            self._tokenizer.add_tokens([AddedToken(anchor, normalized=is_normalized)])

    def encode(self, text: str) -> list[int]:
        """Ids of text at the start of a prompt."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._original_ids.get(token_id, token_id) for token_id in ids]

    def encode_after(self, text: str, is_normalized: bool) -> list[int]:
        """Ids of text after an added token, where some tokenizers do not begin with a space."""
        return self.encode(self._anchors[is_normalized] + text)[1:]


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in a model of a `tokenizer.json`; their ids stay."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocab.items()}
    else:  # Unigram: scored pieces, whose position is their id
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if "merges" in model:
        merges = model["merges"]
        model["merges"] = [
            pair for pair in merges if names.keys().isdisjoint([*pair, "".join(pair)])
        ]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])


def _map_strings(value: Any, change: _Change) -> Any:
    """The value with every string in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _template_source(tokenizer: PreTrainedTokenizerFast) -> str:
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else "".join(template.values())


def _is_tag(content: str, template_source: str) -> bool:
    """Whether the template writes or reads this token and it looks like a sign, not a word."""
    in_brackets = not content[0].isalnum() and not content[-1].isalnum()
    return in_brackets and any(map(str.isalnum, content)) and content in template_source


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of the words, as fast for thousands of them as for one."""
    tails: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        tails[word[:1]].append(word[1:])
    can_end = tails.pop("", None) is not None
    branches = [re.escape(first) + _any_of(rest) for first, rest in tails.items()]
    if not can_end and len(branches) == 1:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if can_end else ''}" if branches else ""


def _fragments(tokens: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The proper beginnings and the proper ends of the tokens, less those that are mere words."""
    cuts = [(token[:n], token[n:]) for token in tokens for n in range(1, len(token))]
    beginnings, ends = ({cut[side] for cut in cuts} for side in (0, 1))
    return _signs(beginnings), _signs(ends)


def _signs(fragments: Iterable[str]) -> frozenset[str]:
    return frozenset(part for part in fragments if not part.isalnum() and not part.isspace())


def _longest_in(fragments: frozenset[str], candidates: Iterable[str]) -> str:
    return max((text for text in candidates if text in fragments), key=len, default="")


def _random_word() -> str:
    return secrets.token_hex(10)
