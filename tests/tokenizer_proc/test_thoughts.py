"""Thoughts and answer are told apart the same way, however their text was cut."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.parts import (
    ChatPrompt,
    SequenceEnded,
    TextOptions,
    TextStart,
    ThoughtMarks,
    TokenLogprobs,
)
from tests.builders import ROUTE
from tests.tokenizer_proc.marks import THINK
from tests.tokenizer_proc.vocabularies import END, make_byte_tokenizer, make_thinking_tokenizer
from tokenizer_proc.answer import Answer, Piece
from tokenizer_proc.thought_marks import find_thoughts
from tokenizer_proc.thoughts import ThoughtSplitter
from tokenizer_proc.token_texts import TokenTexts

CHAT = ChatPrompt(({"role": "user", "content": "hello"},), {})
HARMONY = (
    "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>analysis<|message|>two"
    "<|end|><|start|>assistant<|channel|>final<|message|>Hi!"
)


def marks_of(tokenizer: PreTrainedTokenizerFast) -> ThoughtMarks:
    """The marks of a model with this tokenizer."""
    found = find_thoughts(tokenizer)
    assert found is not None
    marks = found.marks([], CHAT)
    assert marks is not None
    return marks


HARMONY_TOKENIZER = make_thinking_tokenizer(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    special=("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
)
HARMONY_MARKS = marks_of(HARMONY_TOKENIZER)


def split(marks: ThoughtMarks, pieces: list[str]) -> list[tuple[str, str]]:
    """The thoughts and the content that each piece made certain."""
    splitter = ThoughtSplitter(marks)
    found = [splitter.add(piece, is_last=False) for piece in pieces]
    found.append(splitter.add("", is_last=True))
    return [(parts.thoughts, parts.content) for parts in found]


def joined(marks: ThoughtMarks, pieces: list[str]) -> tuple[str, str]:
    """All thoughts and all content."""
    found = split(marks, pieces)
    return "".join(thoughts for thoughts, _ in found), "".join(content for _, content in found)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


# Letters, blanks, and the marks with enough of their halves.
WILD = st.lists(
    st.sampled_from(
        ["a", "b ", "\n", " ", "<think>", "</think>", "<", "</th", "ink>", "<|channel|>analysis",
         "<|channel|>final", "<|message|>", "<|end|>", "<|start|>assistant"]
    ),
    max_size=12,
).map("".join)  # fmt: skip
PLACES = st.lists(st.integers(0, 200), max_size=8)
PREFIXES = st.sampled_from(["", "<think>\n", "<think>", "<think>\n\n</think>\n\n", "<think>\nso "])


@given(text=WILD, places=PLACES, prefix=PREFIXES)
def test_any_cut_gives_the_same_thoughts_and_content(
    text: str, places: list[int], prefix: str
) -> None:
    for marks in (replace(THINK, prefix=prefix), HARMONY_MARKS):
        whole = joined(marks, [text])
        assert joined(marks, cut(text, places)) == whole
        assert joined(marks, list(text)) == whole


@given(text=st.text("ab<>/\n thinkéchanel|", max_size=40))
def test_text_without_marks_passes_unchanged(text: str) -> None:
    assume("<think>" not in text and "<|channel|>" not in text)
    for marks in (THINK, HARMONY_MARKS):
        assert joined(marks, list(text)) == ("", text)


def test_text_that_cannot_become_a_mark_is_not_held() -> None:
    assert split(THINK, ["Hel", "lo <", "thi", "nk>"]) == [
        ("", "Hel"), ("", "lo <"), ("", "thi"), ("", "nk>"), ("", ""),
    ]  # fmt: skip


@given(thoughts=st.text("ab \n<é", max_size=20), content=st.text("ab \n<é", max_size=20))
def test_marks_and_the_blanks_beside_them_belong_to_neither(thoughts: str, content: str) -> None:
    text = f"<think>\n{thoughts}\n</think>\n\n{content}"
    assert joined(THINK, [text]) == (thoughts.strip(), content.lstrip())


def test_no_piece_has_a_part_of_a_mark() -> None:
    found = split(THINK, list("<think>ab</think>cd"))
    assert [parts for parts in found if parts != ("", "")] == [
        ("a", ""), ("b", ""), ("", "c"), ("", "d"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "thoughts", "content"),
    [
        ("<thi", "", "<thi"),
        ("\n<think", "", "\n<think"),
        (" \n", "", " \n"),
        ("<think>a</thi", "a</thi", ""),
        ("<think>a \n", "a", ""),
        ("<think>", "", ""),
        ("<think></think>\n", "", ""),
    ],
)
def test_half_a_mark_at_the_end_comes_out_as_text(text: str, thoughts: str, content: str) -> None:
    assert joined(THINK, list(text)) == (thoughts, content)


@pytest.mark.parametrize(
    ("prefix", "text", "thoughts", "content"),
    [
        ("<think>\n", "so\n</think>\n\nHi", "so", "Hi"),
        ("<think>", "</think>Hi", "", "Hi"),
        ("<think>\n\n</think>\n\n", "Hi <think>", "", "Hi <think>"),
        ("<think>\n\n</think>\n\n", "\nHi", "", "Hi"),
        ("<think>\nand so", " on</think>Hi", " on", "Hi"),
        ("Once upon", " a time", "", " a time"),
    ],
)
def test_what_the_prompt_began_goes_on(prefix: str, text: str, thoughts: str, content: str) -> None:
    marks = replace(THINK, prefix=prefix)
    assert joined(marks, [text]) == joined(marks, list(text)) == (thoughts, content)


def test_an_answer_may_speak_of_marks() -> None:
    text = "<think>a</think>Write <think>b</think>."
    assert joined(THINK, [text]) == ("a", "Write <think>b</think>.")


def test_harmony_has_its_thoughts_in_a_channel() -> None:
    assert joined(HARMONY_MARKS, list(HARMONY)) == ("one\ntwo", "Hi!")
    assert joined(HARMONY_MARKS, ["<|channel|>final<|message|>", "Hi"]) == ("", "Hi")


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def answer(
    tokenizer: Tokenizer,
    text: str,
    marks: ThoughtMarks,
    *,
    reason: str = "length",
    **options: object,
) -> tuple[Answer, list[Piece]]:
    """All pieces of an answer that is this text."""
    start = TextStart("r", ROUTE, (), TextOptions(**options), thoughts=marks)  # type: ignore[arg-type]  # any of them
    given_answer = Answer(start, tokenizer, TokenTexts(tokenizer), 0)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = []
    for number, token_id in enumerate(ids, start=1):
        end = SequenceEnded("r", 0, reason, False) if number == len(ids) else None
        pieces.append(given_answer.add(token_id, TokenLogprobs(-0.5, (), ()), end))
        if given_answer.finish_reason is not None:
            break
    return given_answer, pieces


def said(pieces: list[Piece]) -> tuple[str, str, str]:
    """Thoughts, content and the text of the scored tokens."""
    return (
        "".join(piece.thoughts for piece in pieces),
        "".join(piece.text for piece in pieces),
        "".join(token.text for piece in pieces for token in piece.tokens),
    )


BYTES: Tokenizer = make_byte_tokenizer().backend_tokenizer


def test_thoughts_are_counted_with_their_marks() -> None:
    text = "<think>\nab</think>\n\ncd"
    given_answer, pieces = answer(BYTES, text, THINK)
    assert said(pieces) == ("ab", "cd", text)
    assert given_answer.num_tokens == len(text)
    assert given_answer.reasoning_tokens == len("<think>\nab</think>")


@pytest.mark.parametrize(("text", "count"), [("cd", 0), ("\n<thin", 0), ("<think>ab", 9)])
def test_only_thoughts_are_counted(text: str, count: int) -> None:
    given_answer, _ = answer(BYTES, text, THINK)
    assert given_answer.reasoning_tokens == count


def test_thoughts_that_the_prompt_opened_are_counted_from_the_first_token() -> None:
    given_answer, _ = answer(BYTES, "ab</think>cd", replace(THINK, prefix="<think>\n"))
    assert given_answer.reasoning_tokens == len("ab</think>")


def test_a_stop_string_ends_an_answer_in_its_thoughts() -> None:
    given_answer, pieces = answer(BYTES, "<think>one two</think>three", THINK, stop=("two",))
    assert said(pieces)[:2] == ("one", "")
    assert (given_answer.finish_reason, given_answer.stop_reason) == ("stop", "two")
    _, pieces = answer(BYTES, "<think>one</think>two", THINK, stop=("</think>",))
    assert said(pieces) == ("one", "", "<think>one")


@given(
    text=WILD.filter(bool),
    stop=st.lists(st.sampled_from(["a", "b \n", "k>", "</think>", "<"]), max_size=2),
    includes_stop=st.booleans(),
)
def test_an_answer_is_split_where_its_text_is(
    text: str, stop: list[str], includes_stop: bool
) -> None:
    _, pieces = answer(BYTES, text, THINK, stop=tuple(stop), includes_stop=includes_stop)
    thoughts, content, raw = said(pieces)
    assert joined(THINK, [raw]) == (thoughts, content)


def test_tokens_go_with_the_text_that_they_made() -> None:
    _, pieces = answer(BYTES, "<think>a</think>b", THINK)
    told = [(piece.thoughts + piece.text, len(piece.tokens)) for piece in pieces if piece.tokens]
    assert told == [("a", len("<think>a")), ("b", len("</think>b"))]


def test_marks_that_are_special_tokens_are_read_though_they_are_hidden() -> None:
    backend = HARMONY_TOKENIZER.backend_tokenizer
    begun = HARMONY.partition("<|start|>assistant<|channel|>final")[0]
    for hides in (True, False):
        given_answer, pieces = answer(backend, HARMONY, HARMONY_MARKS, skips_special_tokens=hides)
        assert said(pieces) == ("one\ntwo", "Hi!", HARMONY)
        assert given_answer.reasoning_tokens == len(backend.encode(begun).ids)


def test_other_special_tokens_stay_hidden() -> None:
    _, pieces = answer(BYTES, f"<think>a{END}b</think>c{END}d", THINK)
    assert said(pieces)[:2] == ("ab", "cd")
