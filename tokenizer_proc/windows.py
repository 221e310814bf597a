"""Long sound in windows of a fixed length, cut where it is quietest. Pure.

A word that is cut in two is lost to both windows. So each cut is put into the quietest moment of
the last seconds before a window is full; nothing is left out and nothing comes twice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tokenizer_proc.sound import Samples

QUIET_SECONDS = 0.1  # over which loudness is measured
SEARCH_SECONDS = 5.0  # before the end of a full window


@dataclass(frozen=True)
class Window:
    """A part of the sound that the model hears by itself."""

    start: int  # number of its first sample in the file
    samples: Samples
    is_last: bool


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
