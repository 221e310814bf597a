"""What single tokens look like beside others: their text, and their bytes even where that is half
a character. Pure."""

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from shared.parts import ScoredToken, TextStart, TokenLogprobs, TopToken
from tokenizer_proc.incremental import IncrementalDetokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # of SentencePiece's byte fallback
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2's `encoder.py`)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTES = _byte_letters()


class TokenTexts:
    """The texts of a vocabulary's tokens, each looked up once."""

    def __init__(self, vocabulary: Tokenizer) -> None:
        self.silent: dict[tuple[int, bool], bool] = {}  # what `IncrementalDetokenizer` has found
        self._vocabulary = vocabulary
        self._known: dict[int, tuple[str, tuple[int, ...]]] = {}

    def of(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        """A token's text where other text comes before it, and its bytes."""
        if token_id not in self._known:
            text = self._text(token_id)
            self._known[token_id] = (text, self._octets(token_id, text))
        return self._known[token_id]

    def scored(self, token_id: int, text: str, told: TokenLogprobs | None) -> ScoredToken:
        """A token that added `text`, with what the worker told of it."""
        _, octets = self.of(token_id)
        if told is None:
            return ScoredToken(text, octets, None, (), token_id)
        pairs = zip(told.top_ids, told.top_logprobs, strict=True)
        top = tuple(self._top(top_id, logprob, token_id, text) for top_id, logprob in pairs)
        return ScoredToken(text, octets, told.logprob, top, token_id)

    def _top(self, top_id: int, logprob: float, token_id: int, text: str) -> TopToken:
        """One of the best tokens; the one that was taken looks as it does in the answer."""
        own_text, octets = self.of(top_id)
        return TopToken(text if top_id == token_id else own_text, octets, logprob)

    def _text(self, token_id: int) -> str:
        # Twice, because some decoders strip the space of a first token.
        once, twice = (
            self._vocabulary.decode([token_id] * count, skip_special_tokens=False)
            for count in (1, 2)
        )
        return twice[len(once) :]

    def _octets(self, token_id: int, text: str) -> tuple[int, ...]:
        name = self._vocabulary.id_to_token(token_id)
        if _REPLACEMENT not in text or name is None:
            return tuple(text.encode())
        if match := _BYTE_TOKEN.fullmatch(name):
            return (int(match[1], 16),)
        if all(letter in _BYTES for letter in name):
            return tuple(_BYTES[letter] for letter in name)
        return tuple(text.encode())


def score_prompt(
    start: TextStart,
    told: Sequence[TokenLogprobs],
    vocabulary: Tokenizer,
    texts: TokenTexts,
) -> tuple[ScoredToken, ...]:
    """The prompt's tokens, whose texts joined are the prompt's; of the first nothing is told."""
    detokenizer = IncrementalDetokenizer(vocabulary, (), start.hides_special_tokens)
    columns = zip(start.scored_token_ids, (None, *told), strict=True)
    tokens = [
        texts.scored(
            token_id, "" if n < start.num_framing_tokens else detokenizer.add(token_id), own
        )
        for n, (token_id, own) in enumerate(columns)
    ]
    tokens[-1] = replace(tokens[-1], text=tokens[-1].text + detokenizer.flush())
    return tuple(tokens)
