"""Long sound in windows of a fixed length. Pure.

A word that is cut in two is lost to both windows. So each cut is put into the quietest moment of
the last seconds before a window is full; nothing is left out and nothing comes twice. Or, as in
Whisper's reference, each window begins where the model has heard the one before it to; it ends at
a quiet moment there, too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tokenizer_proc.samples import Samples

QUIET_SECONDS = 0.1  # over which loudness is measured
SEARCH_SECONDS = 5.0  # before the end of a full window


@dataclass(frozen=True)
class Window:
    """A part of the sound that the model hears by itself."""

    start: int  # number of its first sample in the file
    samples: Samples
    is_last: bool


class QuietWindows:
    """Windows that are cut where it is quiet: several may be under way."""

    at_once = 8

    def __init__(self, pieces: Iterable[Samples], rate: int, length: int) -> None:
        self.is_over = False  # no further window will come
        self._windows = windows(pieces, rate, length)

    def next(self) -> Window | None:
        """The next window; None after the last."""
        window = next(self._windows, None)
        self.is_over = window is None or window.is_last
        return window

    def hear(self, num_samples: int | None) -> None:
        """Each window is heard whole, whatever was understood."""


class SequentialWindows:
    """Windows, each of which begins where the last one was heard to."""

    at_once = 1

    def __init__(self, pieces: Iterable[Samples], rate: int, length: int) -> None:
        self.is_over = False  # see `QuietWindows`
        self._pieces = iter(pieces)
        self._rate = rate
        self._length = length
        self._held = np.empty(0, np.float32)
        self._start = 0
        self._num_given = 0  # samples of the last window

    def next(self) -> Window | None:
        """The next window; None after the last."""
        parts, num_held = [self._held], len(self._held)
        while num_held <= self._length and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            num_held += len(piece)
        self._held = np.concatenate(parts)
        is_cut = num_held > self._length
        full = self._held[: self._length]
        self._num_given = quietest(full, self._rate) if is_cut else num_held
        self.is_over = not num_held
        if self.is_over:
            return None
        return Window(self._start, full[: self._num_given], is_last=False)

    def hear(self, num_samples: int | None) -> None:
        """How much of the last window was heard; None: all of it."""
        num_heard = self._num_given if num_samples is None else min(num_samples, self._num_given)
        self._held = self._held[num_heard:]
        self._start += num_heard


def windows(pieces: Iterable[Samples], rate: int, length: int) -> Iterator[Window]:
    """Windows of up to `length` samples; a piece is asked for when it is needed."""
    held, num_held, start = list[Samples](), 0, 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        while num_held > length:  # at its very length it may be the last one
            joined = np.concatenate(held)
            cut = quietest(joined[:length], rate)
            yield Window(start, joined[:cut], is_last=False)
            start += cut
            held, num_held = [joined[cut:]], num_held - cut
    yield Window(start, np.concatenate(held) if held else np.empty(0, np.float32), is_last=True)


def quietest(samples: Samples, rate: int) -> int:
    """Where to cut a full window: the middle of its quietest moment, the latest of equals."""
    width = max(1, int(QUIET_SECONDS * rate))
    first = max(len(samples) - int(SEARCH_SECONDS * rate), len(samples) // 2)
    sums = np.cumsum(np.square(samples[first:], dtype=np.float64))
    sums = np.concatenate(([0.0], sums))
    if len(sums) <= width:
        return len(samples)
    energies = sums[width:] - sums[:-width]
    # Rounding leaves differences where there are none: all that is as good as silence is equal.
    is_quiet = energies <= energies.min() + 1e-9 * max(1.0, float(energies.max()))
    latest = int(np.flatnonzero(is_quiet)[-1])
    return first + latest + width // 2
