"""`StopMatcher` against an oracle that sees the whole text at once."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenizer_proc.stopping import StopMatcher

stop_strings = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple)
pieces = st.lists(st.text("abc", max_size=6), max_size=12)


def first_match(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The text before the match that starts first (of those: ends first), and that stop."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


def longest_partial(text: str, stops: tuple[str, ...]) -> int:
    """How much of the text's end is a proper prefix of a stop."""
    partials = [stop[:length] for stop in stops for length in range(1, len(stop))]
    return max((len(partial) for partial in partials if text.endswith(partial)), default=0)


@given(pieces, stop_strings)
@example(["abc"], ("abcd", "c"))
@example(["ab", "ce"], ("abcd", "c"))
def test_output_is_the_text_before_the_first_match(
    chunks: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    output = "".join([matcher.add(chunk) for chunk in chunks]) + matcher.flush()
    assert (output, matcher.matched) == first_match("".join(chunks), stops)


@given(pieces, stop_strings)
def test_holds_back_exactly_the_longest_possible_beginning_of_a_stop(
    chunks: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    text = output = ""
    for chunk in chunks:
        text += chunk
        output += matcher.add(chunk)
        if first_match(text, stops)[1] is not None:
            break
        assert output == text[: len(text) - longest_partial(text, stops)]


def test_an_earlier_start_is_awaited_before_a_later_match_counts() -> None:
    matcher = StopMatcher(("abcd", "c"))
    assert (matcher.add("abc"), matcher.matched) == ("", None)
    assert (matcher.add("e"), matcher.matched) == ("ab", "c")


def test_an_open_match_counts_when_the_text_ends() -> None:
    matcher = StopMatcher(("abcd", "c"))
    matcher.add("abc")
    assert (matcher.flush(), matcher.matched) == ("ab", "c")


@pytest.mark.parametrize("stops", [("User:", "User"), ("User", "User:")])
def test_of_matches_at_one_place_the_first_to_complete_wins(stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    assert (matcher.add("hi User: x"), matcher.matched) == ("hi ", "User")


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(("\n",))
    assert [matcher.add("one\ntwo"), matcher.add("three"), matcher.flush()] == ["one", "", ""]


def test_without_stops_text_passes_through() -> None:
    matcher = StopMatcher(())
    assert (matcher.add("anything"), matcher.flush(), matcher.matched) == ("anything", "", None)


def test_cost_does_not_grow_with_what_was_streamed() -> None:
    stops = tuple("a" * 255 + chr(ord("b") + index) for index in range(4))
    matcher = StopMatcher(stops)
    begin = time.perf_counter()
    for _ in range(20_000):
        matcher.add("a")
    assert time.perf_counter() - begin < 5  # rescanning the held text takes minutes
