"""What of a window counts where the next one begins behind what was understood."""

import pytest

from shared.parts import Heard
from shared.windows import compression_ratio, heard_part, is_silent

FIRST = 100


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ((), (0, None)),
        ((5, 6), (2, None)),
        ((100, 5, 140), (3, None)),
        ((100, 5, 140, 140, 6, 190), (6, None)),
        ((100, 5, 140, 150, 6), (3, 140)),
        ((100, 5, 140, 150), (3, 140)),
        ((100, 5, 140, 150, 6, 170, 180), (6, 170)),
        ((100, 5), (2, None)),
        ((150,), (1, None)),
    ],
)
def test_segments_that_are_over_count(
    token_ids: tuple[int, ...], expected: tuple[int, int | None]
) -> None:
    assert heard_part(token_ids, FIRST) == expected


def test_a_text_that_repeats_itself_becomes_smaller() -> None:
    assert compression_ratio("") == 0.0
    assert compression_ratio("no " * 100) > 10
    assert compression_ratio("Nobody says this twice, or does anybody?") < 1


@pytest.mark.parametrize(
    ("avg_logprob", "no_speech_prob", "expected"),
    [(-1.1, 0.7, True), (-0.9, 0.7, False), (-1.1, 0.5, False)],
)
def test_silence_is_what_is_both_unlikely_and_likely_silence(
    avg_logprob: float, no_speech_prob: float, expected: bool
) -> None:
    assert is_silent(Heard(0.0, avg_logprob, 1.0, no_speech_prob, 0.0)) == expected
