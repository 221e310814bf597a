"""Models of sound: what they say to text, how a sound's windows are called and judged.

Each window is a request of its own to the rooms behind.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from shared.parts import Heard

HEARS_ONLY = "This model answers no text: send sound to /v1/audio/transcriptions."
FRAMES_PER_POSITION = 2  # Whisper's encoder takes every other frame in (Radford et al., 2022)
_MARK = "#"

# Of Whisper's reference (`whisper/transcribe.py`).
MAX_COMPRESSION_RATIO = 2.4  # above, a text repeats itself
MIN_AVG_LOGPROB = -1.0  # below, it is unlikely to have been said
MAX_NO_SPEECH = 0.6  # above, and where the text is unlikely as well, nobody speaks


def window_name(request_id: str, number: int) -> str:
    """The name of a sound's window."""
    return f"{request_id}{_MARK}{number}"


def sound_of(name: str) -> tuple[str, int]:
    """The request that a name stands for, and its window; 0 of one that is no window."""
    request_id, mark, number = name.rpartition(_MARK)
    return (request_id, int(number)) if mark and number.isdigit() else (name, 0)


class HeardPart(NamedTuple):
    """How much of a window counts, where the next window begins behind what was understood."""

    num_tokens: int  # of its words and marks
    mark: int | None  # where the next window begins; None: at this one's end


def heard_part(token_ids: Sequence[int], first_time_id: int) -> HeardPart:
    """The segments that are over; the rest is heard again (Whisper's reference).

    All of the window, where the last segment is over as well or none is.
    """
    is_mark = [token_id >= first_time_id for token_id in token_ids]
    borders = [n for n in range(1, len(is_mark)) if is_mark[n - 1] and is_mark[n]]
    ends_with_mark = is_mark[-2:] == [False, True]
    if borders and not ends_with_mark:
        return HeardPart(borders[-1], token_ids[borders[-1] - 1])
    return HeardPart(len(token_ids), None)


def compression_ratio(text: str) -> float:
    """How many times smaller the text can be made."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def is_silent(heard: Heard) -> bool:
    """True when nobody speaks in the window, whatever was put into words."""
    return heard.no_speech_prob > MAX_NO_SPEECH and heard.avg_logprob < MIN_AVG_LOGPROB
