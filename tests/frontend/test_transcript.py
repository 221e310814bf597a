"""Tokens of windows become segments, text and a language, whatever order they come in."""

import json
import re
from dataclasses import replace

import pytest

from frontend import transcript_shapes
from frontend.events import TextAdded, WindowStarted
from frontend.transcript import HeardWindow, Segment, Transcript
from shared.parts import Heard, ScoredToken

HEADS = ("<|de|>", "<|transcribe|>")


FIRST_TIME, MARK = 1000, 0.02
HEARD = Heard(0.2, -0.5, 1.25, 0.1, 0.2)


def id_of(text: str, number: int) -> int:
    """Marks of time have the ids of a vocabulary that may not name them."""
    mark = re.fullmatch(r"<\|(\d+\.\d\d)\|>", text)
    return FIRST_TIME + round(float(mark[1]) / MARK) if mark else number


def tokens(*texts: str) -> tuple[ScoredToken, ...]:
    return tuple(
        ScoredToken(text, tuple(text.encode()), -0.5, (), id_of(text, number))
        for number, text in enumerate(texts)
    )


def heard_window(
    *made: ScoredToken, start: float = 0.0, seconds: float = 8.0, heard: Heard = HEARD
) -> HeardWindow:
    """One that is over."""
    found = HeardWindow(start, seconds, FIRST_TIME, MARK)
    found.tokens, found.num_tokens, found.heard = list(made), len(made) + 1, heard
    return found


def window(
    *texts: str, start: float = 10.0, seconds: float = 8.0, heard: Heard = HEARD
) -> HeardWindow:
    return heard_window(*tokens(*HEADS, *texts), start=start, seconds=seconds, heard=heard)


def timed(
    *texts: str, heads: tuple[str, ...] = HEADS, start: float = 10.0, seconds: float = 8.0
) -> HeardWindow:
    """A window whose n-th token behind the heads is over after n + 1 steps of 0.4 seconds."""
    # An end token is not shown, but has its time.
    times = tuple(20.0 * number for number in range(1, len(texts) + 2))
    made = tokens(*heads, *texts)
    heard = replace(HEARD, token_times=times)
    return heard_window(*made, start=start, seconds=seconds, heard=heard)


def word_spans(found: HeardWindow) -> list[tuple[float, float, str]]:
    return [(round(w.start, 6), round(w.end, 6), w.text) for w in found.words()]


def spans(found: HeardWindow) -> list[tuple[float, float, str]]:
    return [(segment.start, segment.end, segment.text) for segment in found.segments()]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("<|0.00|>", " a", " b", "<|2.00|>"), [(10.0, 12.0, " a b")]),
        (
            ("<|0.50|>", " a", "<|2.00|>", "<|3.00|>", " b", "<|4.00|>"),
            [(10.5, 12.0, " a"), (13.0, 14.0, " b")],
        ),
        (("<|1.00|>", " a"), [(11.0, 18.0, " a")]),
        ((" a", " b"), [(10.0, 18.0, " a b")]),
        (("<|0.00|>", " a", "<|29.00|>"), [(10.0, 18.0, " a")]),
        (("<|0.00|>", "<|2.00|>"), []),
        (("<|0.00|>", "  ", "<|2.00|>", "<|2.00|>", " b", "<|3.00|>"), [(12.0, 13.0, " b")]),
        ((), []),
    ],
)
def test_segments_lie_between_marks(
    texts: tuple[str, ...], expected: list[tuple[float, float, str]]
) -> None:
    assert spans(window(*texts)) == expected


def test_a_segments_tokens_have_its_marks() -> None:
    found = window("<|0.50|>", " a", "<|2.00|>", "<|2.00|>", " b").segments()
    assert [segment.token_ids for segment in found] == [(1025, 3, 1100), (1100, 6)]


def test_halves_of_a_character_are_one_text_and_marks_stay_marks() -> None:
    first, second = "é".encode()
    halves = [
        ScoredToken("", (first,), -0.5, ()),
        ScoredToken("é", (second,), -0.5, ()),
        ScoredToken("", (first,), -0.5, ()),
        ScoredToken("\N{REPLACEMENT CHARACTER}", (), -0.5, (), FIRST_TIME + 100),
    ]
    heard = heard_window(*tokens(*HEADS, "<|0.00|>"), *halves)
    assert spans(heard) == [(0.0, 2.0, "é\N{REPLACEMENT CHARACTER}")]


def test_silence_has_no_text() -> None:
    spoken = ("<|0.00|>", " Thank you.", "<|2.00|>")
    for avg_logprob, no_speech_prob, is_silent in (
        (-1.5, 0.9, True),
        (-0.2, 0.9, False),
        (-1.5, 0.5, False),
    ):
        heard = replace(HEARD, avg_logprob=avg_logprob, no_speech_prob=no_speech_prob)
        assert (spans(window(*spoken, heard=heard)) == []) == is_silent


def test_nothing_is_told_of_a_window_that_is_not_over() -> None:
    found = window("<|0.00|>", " a", "<|2.00|>")
    found.heard = None
    assert spans(found) == []


def test_in_sequence_what_is_heard_again_is_told_once() -> None:
    found = window("<|0.00|>", " a", "<|2.00|>", "<|2.00|>", " b")
    assert spans(found) == [(10.0, 12.0, " a"), (12.0, 18.0, " b")]
    found.is_sequential = True
    assert spans(found) == [(10.0, 12.0, " a")]
    whole = window("<|0.00|>", " a", "<|2.00|>", "<|2.00|>", " b", "<|3.00|>")
    whole.is_sequential = True
    assert spans(whole) == [(10.0, 12.0, " a"), (12.0, 13.0, " b")]
    single = window("<|0.00|>", " a")
    single.is_sequential = True
    assert spans(single) == [(10.0, 18.0, " a")]


def test_the_language_is_the_first_head() -> None:
    assert window(" a").language == "de"
    english_only = heard_window(*tokens("<|0.00|>", " a"))
    assert english_only.language == ""
    assert HeardWindow(0.0, 8.0, FIRST_TIME, MARK).language == ""


def added(number: int, texts: tuple[str, ...], *, is_last: bool) -> TextAdded:
    reason, heard = ("stop", HEARD) if is_last else (None, None)
    made = tokens(*texts)
    return TextAdded(number, "".join(texts), len(texts), reason, tokens=made, heard=heard)


def test_the_language_is_that_of_the_first_who_speaks() -> None:
    transcript = Transcript()
    silent = replace(HEARD, avg_logprob=-1.5, no_speech_prob=0.9)
    transcript.windows = {
        0: heard_window(*tokens("<|en|>", " a"), heard=silent),
        2: heard_window(*tokens("<|fr|>", " c")),
        1: heard_window(*tokens("<|de|>", " b")),
    }
    assert transcript.language == "de"
    for found in transcript.windows.values():
        found.forget()
    assert transcript.language == ""
    assert transcript.segments() == []


def test_windows_are_taken_in_order_each_once() -> None:
    transcript = Transcript()
    transcript.add(added(1, ("<|en|>", " b"), is_last=True))  # before its beginning is told
    transcript.add(WindowStarted(0, 0.0, 8.0, FIRST_TIME, MARK))
    transcript.add(WindowStarted(1, 8.0, 2.5, FIRST_TIME, MARK))
    assert list(transcript.take_whole()) == []
    transcript.add(added(0, ("<|en|>",), is_last=False))
    transcript.add(added(0, (" a",), is_last=True))
    assert [heard.start for heard in transcript.take_whole()] == [0.0, 8.0]
    assert list(transcript.take_whole()) == []
    assert transcript.duration == 10.5
    assert transcript.language == "en"
    assert transcript_shapes.text_of(transcript.segments()) == "a b"


def made(*segments: tuple[float, float, str]) -> list[Segment]:
    return [Segment(start, end, text, (), (), HEARD, 0.0) for start, end, text in segments]


def test_subtitles_round_to_milliseconds_and_carry() -> None:
    segments = made((0.0, 8.2, " a --> b"), (3599.9996, 3661.0014, " c"))
    assert transcript_shapes.cues(segments, "srt") == (
        "1\n00:00:00,000 --> 00:00:08,200\na -> b\n\n2\n01:00:00,000 --> 01:01:01,001\nc\n\n"
    )
    assert transcript_shapes.cues(segments[:1], "vtt") == (
        "00:00:00.000 --> 00:00:08.200\na -> b\n\n"
    )


def test_words_have_the_times_of_their_tokens() -> None:
    assert word_spans(
        timed("<|0.00|>", " Gr", "üß", " Gott", "!", "<|2.00|>", "<|2.00|>", " ja")
    ) == [
        (10.4, 11.2, " Grüß"),
        (11.2, 12.0, " Gott!"),
        (12.8, 13.2, " ja"),
    ]
    assert word_spans(window("<|0.00|>", " a", "<|2.00|>")) == []


def test_words_are_within_their_segment() -> None:
    """The first of a window would begin with it, whatever silence there is before."""
    assert word_spans(timed("<|0.60|>", " a", " b", "<|1.10|>")) == [
        (10.6, 10.8, " a"),
        (10.8, 11.1, " b"),
    ]


def test_words_are_separated_as_the_language_of_the_text_is_written() -> None:
    texts = ("<|0.00|>", "a", "b", "<|2.00|>")
    for heads, expected in (
        (("<|zh|>", "<|transcribe|>"), ["a", "b"]),
        (("<|zh|>", "<|translate|>"), ["ab"]),
        (("<|de|>", "<|transcribe|>"), ["ab"]),
        ((), ["ab"]),
    ):
        assert [text for *_, text in word_spans(timed(*texts, heads=heads))] == expected


def test_a_token_without_a_time_has_the_last_one() -> None:
    found = timed(" a", " b", " c")
    found.heard = replace(HEARD, token_times=(25.0,))
    assert word_spans(found) == [(10.0, 10.5, " a"), (10.5, 10.5, " b"), (10.5, 10.5, " c")]


def test_words_of_silence_are_not_told() -> None:
    assert list(timed(" Thank", " you.").words())
    found = timed(" Thank", " you.")
    assert found.heard is not None
    found.heard = replace(found.heard, avg_logprob=-1.5, no_speech_prob=0.9)
    assert list(found.words()) == []


@pytest.mark.parametrize("granularities", [("segment",), ("word",), ("word", "segment")])
def test_an_answer_has_what_it_is_asked_for(granularities: tuple[str, ...]) -> None:
    transcript = Transcript()
    transcript.windows = {
        1: timed("<|0.00|>", " c", " d", start=9.0, seconds=0.9),
        0: timed(" a", " b.", start=0.0, seconds=9.0),
    }
    body = transcript_shapes.whole(
        transcript,
        "verbose_json",
        task="transcribe",
        granularities=granularities,
    )
    told = json.loads(body)
    assert {f"{name}s" for name in granularities} == told.keys() & {"segments", "words"}
    assert told["text"] == "a b. c d"
    assert told.get("words", WORDS) == WORDS
    for segment in told.get("segments", ()):
        assert segment.items() >= FIGURES.items()


FIGURES = {
    "temperature": 0.2,
    "avg_logprob": -0.5,
    "compression_ratio": 1.25,
    "no_speech_prob": 0.1,
}
WORDS = [
    {"word": "a", "start": 0.0, "end": 0.4},
    {"word": "b.", "start": 0.4, "end": 0.8},
    {"word": "c", "start": 9.4, "end": 9.8},
    {"word": "d", "start": 9.8, "end": 9.9},  # no later than the sound
]
