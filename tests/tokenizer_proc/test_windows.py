"""Long sound is cut where it is quiet, and nothing of it is lost or heard twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer_proc.sounds import RATE, tone
from tokenizer_proc.samples import Samples
from tokenizer_proc.windows import SequentialWindows, windows

LENGTH = 10 * RATE


def pieces(samples: Samples, size: int) -> list[Samples]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def speech(*seconds: float) -> Samples:
    """Noise of these lengths with half a second of near silence after each."""
    noise = np.random.default_rng(3)
    parts = []
    for length in seconds:
        parts.append(noise.normal(0, 0.2, int(length * RATE)))
        parts.append(noise.normal(0, 0.0005, RATE // 2))
    return np.concatenate(parts).astype(np.float32)


@given(st.integers(1, 100_000), st.integers(1, 30_000), st.integers(20, 20_000))
def test_the_windows_are_the_sound(num_samples: int, size: int, length: int) -> None:
    samples = np.arange(num_samples, dtype=np.float32)
    found = list(windows(pieces(samples, size), 100, length))
    assert np.array_equal(np.concatenate([window.samples for window in found]), samples)
    assert all(0 < len(window.samples) <= length for window in found)
    assert [window.is_last for window in found] == [False] * (len(found) - 1) + [True]
    start = 0
    for window in found:
        assert window.start == start
        start += len(window.samples)


def test_a_cut_lies_in_a_pause() -> None:
    samples = speech(4, 3.2, 1.5, 4, 3)  # pauses end at 4.5, 8.2, 10.2, 14.7, 18.2
    found = list(windows(pieces(samples, RATE), RATE, LENGTH))
    cuts = [window.start / RATE for window in found[1:]]
    assert len(cuts) == 1
    assert any(4.5 < cut < 8.3 and cut > 7.7 for cut in cuts) or 9.7 < cuts[0] < 10
    assert np.abs(samples[found[1].start - 200 : found[1].start + 200]).max() < 0.01


@pytest.mark.parametrize("samples", [np.zeros(25 * RATE, np.float32), tone(25)])
def test_where_all_is_alike_the_cut_comes_late(samples: Samples) -> None:
    found = list(windows(pieces(samples, RATE), RATE, LENGTH))
    assert [len(window.samples) > 0.9 * LENGTH for window in found[:-1]] == [True, True]


def test_no_more_is_held_than_a_window_and_a_piece() -> None:
    asked = 0

    def source() -> object:
        nonlocal asked
        for piece in pieces(tone(60), RATE):
            asked += 1
            yield piece

    first = next(windows(source(), RATE, LENGTH))  # type: ignore[arg-type]
    assert first.start == 0
    assert asked == 11


def test_a_sound_of_exactly_one_window_is_one() -> None:
    (only,) = windows(pieces(tone(10), RATE), RATE, LENGTH)
    assert only.is_last
    assert len(only.samples) == LENGTH


def test_in_sequence_windows_end_where_it_is_quiet_and_begin_where_one_was_heard_to() -> None:
    loud, quiet = np.ones(RATE, np.float32), np.zeros(RATE // 2, np.float32)
    sound = np.concatenate([loud, loud, quiet, loud, loud, loud])
    made = SequentialWindows([sound[:3000], sound[3000:]], RATE, 3 * RATE)
    first = made.next()
    assert first is not None
    assert 2.0 * RATE < len(first.samples) < 2.5 * RATE
    made.hear(RATE)
    second = made.next()
    assert second is not None
    assert second.start == RATE
    made.hear(None)
    third = made.next()
    assert third is not None
    assert third.start == RATE + len(second.samples)
    made.hear(10 * RATE)  # a mark in what fills a window up
    rest = [third]
    while (window := made.next()) is not None:
        rest.append(window)
        made.hear(None)
    assert made.is_over
    assert rest[-1].start + len(rest[-1].samples) == len(sound)
