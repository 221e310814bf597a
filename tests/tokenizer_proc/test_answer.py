"""An answer's text and its scored tokens say the same, whatever was held back or cut."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shared.parts import ScoredToken, SequenceEnded, TextOptions, TextStart, TokenLogprobs
from tests.builders import ROUTE
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.answer import Answer, Piece
from tokenizer_proc.token_texts import TokenTexts, score_prompt

VOCABULARY: Tokenizer = make_byte_tokenizer().backend_tokenizer
TEXTS = TokenTexts(VOCABULARY)


def ids_of(text: str) -> list[int]:
    """One id for each byte."""
    return VOCABULARY.encode(text, add_special_tokens=False).ids


def told(token_id: int, *others: int) -> TokenLogprobs:
    """As if the token were the best, before these."""
    top = (token_id, *others)
    return TokenLogprobs(-0.5, top, tuple(-0.5 - n for n in range(len(top))))


def start(**values: Any) -> TextStart:
    """A request with these settings of its text."""
    own = {
        name: values.pop(name)
        for name in ("min_tokens", "stop_token_ids", "scored_token_ids")
        if name in values
    }
    return TextStart("r", ROUTE, (), TextOptions(**values), **own)


def pieces_of(
    text: str, begun: TextStart, *, reason: str = "length", hides_last_token: bool = False
) -> tuple[Answer, list[Piece]]:
    """All pieces of an answer whose tokens are the bytes of this text."""
    answer = Answer(begun, VOCABULARY, TEXTS, 0)
    ids = ids_of(text)
    pieces = []
    for number, token_id in enumerate(ids, start=1):
        end = None
        if number == len(ids):
            end = SequenceEnded("r", 0, reason, hides_last_token)
        pieces.append(answer.add(token_id, told(token_id), end))
        if answer.finish_reason is not None:
            break
    return answer, pieces


def joined(pieces: list[Piece]) -> tuple[str, str]:
    """The text, and the text of its tokens."""
    tokens = [token for piece in pieces for token in piece.tokens]
    return "".join(piece.text for piece in pieces), "".join(token.text for token in tokens)


@given(
    text=st.text("ab é🙂", min_size=1, max_size=30),
    stop=st.lists(st.text("ab é🙂", min_size=1, max_size=4), max_size=3),
    includes_stop=st.booleans(),
    min_tokens=st.integers(0, 5),
)
def test_the_texts_of_all_tokens_are_the_text(
    text: str, stop: list[str], includes_stop: bool, min_tokens: int
) -> None:
    begun = start(stop=tuple(stop), includes_stop=includes_stop, min_tokens=min_tokens)
    answer, pieces = pieces_of(text, begun)
    whole, of_tokens = joined(pieces)
    assert whole == of_tokens
    assert text.startswith(whole)
    assert sum(len(piece.tokens) for piece in pieces) <= answer.num_tokens
    if answer.stop_reason is None:
        assert whole == text
        assert sum(len(piece.tokens) for piece in pieces) == answer.num_tokens


@given(text=st.text(min_size=1, max_size=20), stop=st.text("ab", min_size=1, max_size=3))
def test_every_piece_has_exactly_the_tokens_of_its_text(text: str, stop: str) -> None:
    _, pieces = pieces_of(text + "aaab", start(stop=(stop,)))
    shown = of_tokens = ""
    for piece in pieces:
        shown += piece.text
        of_tokens += "".join(token.text for token in piece.tokens)
        assert shown == of_tokens


@given(text=st.text(min_size=1, max_size=20))
def test_the_bytes_of_all_tokens_are_those_of_the_text(text: str) -> None:
    _, pieces = pieces_of(text, start())
    octets = [octet for piece in pieces for token in piece.tokens for octet in token.octets]
    assert bytes(octets) == text.encode()


def test_a_character_in_several_tokens_is_the_last_ones() -> None:
    _, pieces = pieces_of("é!", start())
    assert [[token.text for token in piece.tokens] for piece in pieces] == [[], ["", "é"], ["!"]]
    assert [piece.text for piece in pieces] == ["", "é", "!"]


def test_half_a_character_at_the_end_is_a_token_without_text() -> None:
    answer = Answer(start(), VOCABULARY, TEXTS, 0)
    first = ids_of("é")[0]
    last = answer.add(first, told(first), SequenceEnded("r", 0, "length", False))
    assert last.text == ""
    assert [(token.text, token.octets) for token in last.tokens] == [("", (0xC3,))]


def test_a_hidden_end_token_is_not_scored() -> None:
    answer, pieces = pieces_of("ab", start(), reason="stop", hides_last_token=True)
    assert joined(pieces) == ("a", "a")
    assert answer.num_tokens == 2


def test_alternatives_have_their_own_text_and_bytes() -> None:
    a, space, half = ids_of("a")[0], ids_of(" ")[0], ids_of("é")[0]
    answer = Answer(start(), VOCABULARY, TEXTS, 0)
    (token,) = answer.add(a, told(a, space, half), None).tokens
    assert [(top.text, top.octets) for top in token.top] == [
        ("a", (97,)),
        (" ", (32,)),
        ("\N{REPLACEMENT CHARACTER}", (0xC3,)),
    ]
    assert [top.logprob for top in token.top] == [-0.5, -1.5, -2.5]


def test_nothing_is_scored_unasked() -> None:
    answer = Answer(start(), VOCABULARY, TEXTS, 0)
    assert answer.add(ids_of("a")[0], None, None) == Piece("a", ())


@pytest.mark.parametrize(("includes_stop", "text"), [(False, "xy"), (True, "xyab")])
def test_a_stop_string_is_the_reason_and_part_of_the_text_if_asked(
    includes_stop: bool, text: str
) -> None:
    begun = start(stop=("ab",), includes_stop=includes_stop)
    answer, pieces = pieces_of("xyabz", begun)
    assert joined(pieces) == (text, text)
    assert (answer.finish_reason, answer.stop_reason, answer.num_tokens) == ("stop", "ab", 4)


def test_the_callers_own_end_token_is_the_reason() -> None:
    a, b = ids_of("ab")
    for own, reason in (((b,), b), ((a,), None), ((), None)):
        answer, _ = pieces_of("ab", start(stop_token_ids=own), reason="stop", hides_last_token=True)
        assert (answer.finish_reason, answer.stop_reason) == ("stop", reason)


def test_a_prompt_that_is_only_scored_has_no_answer() -> None:
    answer = Answer(start(only_scores_prompt=True), VOCABULARY, TEXTS, 0)
    a = ids_of("a")[0]
    assert answer.add(a, told(a), SequenceEnded("r", 0, "stop", True)) == Piece("")
    assert (answer.finish_reason, answer.num_tokens) == ("length", 0)


@given(text=st.text(min_size=1, max_size=20))
def test_a_scored_prompt_is_its_tokens(text: str) -> None:
    ids = tuple(ids_of(text))
    scores = [told(token_id) for token_id in ids[1:]]
    tokens = score_prompt(start(scored_token_ids=ids), scores, VOCABULARY, TEXTS)
    assert "".join(token.text for token in tokens) == text
    assert bytes(octet for token in tokens for octet in token.octets) == text.encode()
    assert tokens[0] == ScoredToken(tokens[0].text, tokens[0].octets, None, (), ids[0])
    assert all(token.logprob == -0.5 for token in tokens[1:])


def test_a_scored_text_shows_what_stands_in_it_and_not_what_the_tokenizer_put_before() -> None:
    mark, end = "<|im_start|>", "<|im_end|>"
    ids = tuple(VOCABULARY.encode(f"{mark}{mark}hi{end}", add_special_tokens=False).ids)
    scores = [told(token_id) for token_id in ids[1:]]
    for num_framing, hides, text in ((1, False, f"{mark}hi{end}"), (0, True, "hi")):
        begun = replace(
            start(scored_token_ids=ids), num_framing_tokens=num_framing, hides_special_tokens=hides
        )
        tokens = score_prompt(begun, scores, VOCABULARY, TEXTS)
        assert "".join(token.text for token in tokens) == text
