"""Which tokens only the chat template may write, and how a caller's strings are kept from them.

Owns the control tokens of one tokenizer and the stand-ins that hide them while a template runs.
Must not know requests or how text is encoded.
"""

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable

from tokenizers import AddedToken, Encoding
from transformers import PreTrainedTokenizerFast

# Blank lines beside a token that a template may strip and will never write itself.
_PADDING = "\n" * 8

Span = tuple[int, int, int]  # a token's id, and where its text starts and ends


class ControlTokens:
    """The tokens that only the template may write, and their text.

    These are the added tokens flagged special, and the tags (`<think>`, `[CALL]`) that stand in the
    template's source. Other added tokens, such as runs of spaces, are text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        source = template_source(tokenizer)
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

    def find(self, encoding: Encoding, text: str) -> tuple[list[Span], list[Span]]:
        """The control tokens of the encoding that stand in `text`, and those that do not.

        A normalizer or a vocabulary can make the latter from other text. The unknown token is no
        such forgery: it stands for characters that the vocabulary lacks.
        """
        written: list[Span] = []
        forged: list[Span] = []
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


class Disguise:
    """Stand-ins for the control tokens in one caller's strings, while the template runs.

    They are random letters and digits: nobody can forge them, and they come through `trim`,
    `tojson`, `upper` and the like. Templates put strings side by side, so half a control token at
    the edge of a string is hidden as well.
    """

    def __init__(self, controls: ControlTokens) -> None:
        self._controls = controls
        self._stand_ins: dict[str, str] = {}  # hidden text to its stand-in
        self._nonce, self._left, self._right = (random_word() for _ in range(3))

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


def template_source(tokenizer: PreTrainedTokenizerFast) -> str:
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


def random_word() -> str:
    return secrets.token_hex(10)
