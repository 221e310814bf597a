"""Tokens of windows become segments, text and a language, whatever order they come in."""

import math
import re

import pytest

from frontend import transcript_shapes
from frontend.events import TextAdded, WindowStarted
from frontend.transcript import HeardWindow, Segment, Transcript
from shared.parts import ScoredToken, TopToken

HEADS = ("<|de|>", "<|transcribe|>")


FIRST_TIME, MARK = 1000, 0.02


def id_of(text: str, number: int) -> int:
    """Marks of time have the ids of a vocabulary that may not name them."""
    mark = re.fullmatch(r"<\|(\d+\.\d\d)\|>", text)
    return FIRST_TIME + round(float(mark[1]) / MARK) if mark else number


def tokens(*texts: str, logprob: float = -0.5, no_speech: float = 0.1) -> tuple[ScoredToken, ...]:
    silence = TopToken("<|nospeech|>", tuple(b"<|nospeech|>"), math.log(no_speech))
    return tuple(
        ScoredToken(
            text, tuple(text.encode()), logprob, () if number else (silence,), id_of(text, number)
        )
        for number, text in enumerate(texts)
    )


def window(*texts: str, start: float = 10.0, seconds: float = 8.0, **told: float) -> HeardWindow:
    return HeardWindow(
        start, seconds, FIRST_TIME, MARK, list(tokens(*HEADS, *texts, **told)), 9, is_over=True
    )


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


def test_halves_of_a_character_are_one_text_and_marks_stay_marks() -> None:
    first, second = "é".encode()
    halves = [
        ScoredToken("", (first,), -0.5, ()),
        ScoredToken("é", (second,), -0.5, ()),
        ScoredToken("", (first,), -0.5, ()),
        ScoredToken("\N{REPLACEMENT CHARACTER}", (), -0.5, (), FIRST_TIME + 100),
    ]
    heard = HeardWindow(
        0.0, 8.0, FIRST_TIME, MARK, [*tokens(*HEADS, "<|0.00|>"), *halves], 9, is_over=True
    )
    assert spans(heard) == [(0.0, 2.0, "é\N{REPLACEMENT CHARACTER}")]


def test_silence_has_no_text() -> None:
    spoken = ("<|0.00|>", " Thank you.", "<|2.00|>")
    assert spans(window(*spoken, logprob=-1.5, no_speech=0.9)) == []
    assert spans(window(*spoken, logprob=-0.2, no_speech=0.9)) != []
    assert spans(window(*spoken, logprob=-1.5, no_speech=0.5)) != []


def test_the_language_is_the_first_head() -> None:
    assert window(" a").language == "de"
    english_only = HeardWindow(
        0.0, 8.0, FIRST_TIME, MARK, list(tokens("<|0.00|>", " a")), 2, is_over=True
    )
    assert english_only.language == ""
    assert HeardWindow(0.0, 8.0, FIRST_TIME, MARK).language == ""


def test_figures_of_a_segment_are_whispers_own() -> None:
    (segment,) = window("<|0.00|>", " la la la la la la", "<|2.00|>", no_speech=0.25).segments()
    assert segment.avg_logprob == pytest.approx(-0.5)
    assert segment.no_speech_prob == pytest.approx(0.25)
    assert segment.compression_ratio == pytest.approx(18 / 14, abs=0.2)


def added(number: int, texts: tuple[str, ...], *, is_last: bool) -> TextAdded:
    reason = "stop" if is_last else None
    return TextAdded(number, "".join(texts), len(texts), reason, tokens=tokens(*texts))


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
    return [Segment(start, end, text, (), (), 0.0, 0.0, 0.0) for start, end, text in segments]


def test_subtitles_round_to_milliseconds_and_carry() -> None:
    segments = made((0.0, 8.2, " a --> b"), (3599.9996, 3661.0014, " c"))
    assert transcript_shapes.cues(segments, "srt") == (
        "1\n00:00:00,000 --> 00:00:08,200\na -> b\n\n2\n01:00:00,000 --> 01:01:01,001\nc\n\n"
    )
    assert transcript_shapes.cues(segments[:1], "vtt") == (
        "00:00:00.000 --> 00:00:08.200\na -> b\n\n"
    )
