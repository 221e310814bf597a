"""Tokens become the words that transformers makes of them, with the same times."""

from itertools import cycle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import (
    LANGUAGES,
    _collate_word_timestamps,
)

from frontend.transcript_words import Word, in_order, words_of
from shared.parts import ScoredToken
from tokenizer_proc.token_texts import TokenTexts

LETTERS = bytes_to_unicode()  # of bytes, as vocabularies name them
SNIPPETS = [
    " ", "  ", "\n", " Straße", " Müller", "über", " it", "'s", " \"", "\"", " (", "(", ")", "!",
    "?!", " -", "-", " –", "...", ".", ",", " ¿", "¡", " “", "”", "你好", "。", "，", "、", "：",
    " 世界", "ไทย", "မြန်", "😀", " 👩‍👩‍👧", "é", "e\u0301", "\ufffd", " 3", ".14", "$", " $", "a",
]  # fmt: skip
LANGUAGE_CODES = ["de", "en", "zh", "ja", "th", "lo", "my", "yue"]


class ByteTokenizer:
    """What the reference asks of a tokenizer, with these pieces of text as its vocabulary."""

    eos_token_id = 1_000_000
    language = None

    def __init__(self, pieces: list[bytes]) -> None:
        names = dict.fromkeys("".join(LETTERS[byte] for byte in piece) for piece in pieces)
        vocabulary = {name: token_id for token_id, name in enumerate(names)}
        self.backend = Tokenizer(models.BPE(vocabulary, []))
        self.backend.decoder = decoders.ByteLevel()
        self.ids = [vocabulary["".join(LETTERS[b] for b in piece)] for piece in pieces]

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return str(self.backend.decode(token_ids, skip_special_tokens=False))


def pieces_of(text: str, lengths: list[int]) -> list[bytes]:
    """The text's bytes in pieces of these lengths, again and again."""
    octets, pieces = text.encode(), list[bytes]()
    for length in cycle(lengths):
        if not octets:
            return pieces
        pieces.append(octets[:length])
        octets = octets[length:]
    return pieces


TEXTS = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=4), min_size=1, max_size=12)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@given(TEXTS.map("".join).filter(bool), LENGTHS, st.sampled_from(LANGUAGE_CODES))
@example(' Sie sagte: "Grüß Gott!" (leise) - und ging...', [1], "de")
@example(' Sie sagte: "Grüß Gott!" (leise) - und ging...', [5, 2, 3], "de")
@example("他说：“你好。”（笑）👩‍👩‍👧！", [2, 1], "zh")
def test_words_are_transformers_own(text: str, lengths: list[int], language: str) -> None:
    tokenizer = ByteTokenizer(pieces_of(text, lengths))
    spans = [(float(n), n + 0.5) for n in range(len(tokenizer.ids))]
    name = LANGUAGES[language]
    told: Any = _collate_word_timestamps(tokenizer, tokenizer.ids, spans, name, False)
    expected = [(*word["timestamp"], word["text"]) for word in told]
    texts = TokenTexts(tokenizer.backend)
    tokens = [texts.scored(token_id, "", None) for token_id in tokenizer.ids]
    found = words_of(tokens, spans, language)
    assert [(word.start, word.end, word.text) for word in found] == expected


def test_there_are_no_words_of_nothing() -> None:
    assert words_of((), (), "de") == []
    assert words_of([ScoredToken("", (), 0.0, ())], [(1.0, 2.0)], "de") == [Word(1.0, 2.0, "")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([(0.5, 1.0, " a"), (1.0, 2.0, " b\n")], [(0.5, 1.0, "a"), (1.0, 2.0, "b")]),
        ([(0.5, 1.0, " a"), (1.0, 1.5, " ")], [(0.5, 1.0, "a")]),
        ([(3.0, 4.0, "a"), (2.0, 2.5, "b")], [(3.0, 4.0, "a"), (3.0, 3.0, "b")]),
        ([(7.0, 9.0, "a"), (8.5, 9.0, "b")], [(7.0, 8.0, "a"), (8.0, 8.0, "b")]),
        ([(-0.02, -0.02, "a")], [(0.0, 0.0, "a")]),
        ([], []),
    ],
)
def test_words_are_in_order_and_within_the_sound(
    words: list[tuple[float, float, str]], expected: list[tuple[float, float, str]]
) -> None:
    found = in_order((Word(*word) for word in words), duration=8.0)
    assert [(word.start, word.end, word.text) for word in found] == expected
