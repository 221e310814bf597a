"""Speech out of espeak: samples at Whisper's rate, and when each word begins and ends.

espeak-ng speaks inside this process and keeps its state there: one thread at a time may use it.
It is a tool of the training and of the tests; the server never needs it.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soxr

RATE = 16_000  # samples per second, as Whisper hears
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when all is spoken
_UTF8 = 1  # espeakCHARS_UTF8
_SPEED, _PITCH = 1, 3  # espeakRATE, espeakPITCH
_END_OF_LIST, _WORD = 0, 1  # kinds of events
_AUDIBLE = 0.02  # of the loudest sample

Samples: TypeAlias = npt.NDArray[np.float32]


class Span(NamedTuple):
    """From when to when, in seconds."""

    start: float
    end: float

    def moved(self, seconds: float) -> "Span":
        """The same span, later."""
        return Span(self.start + seconds, self.end + seconds)


@dataclass(frozen=True)
class Voice:
    """Who speaks: a voice of espeak's with a variant, how fast and how high."""

    name: str
    words_per_minute: int = 175
    pitch: int = 50  # of 100


@dataclass(frozen=True)
class Speech:
    """What was said, without silence at its ends; the loudest sample is 1."""

    samples: Samples
    words: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / RATE


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Espeak:
    """The library, and what it has said since it was last asked."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self._rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        self._callback = _Callback(self._heard)  # kept: the library calls it as long as it lives
        self._library.espeak_SetSynthCallback(self._callback)
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._starts: list[int] = []  # of words, in samples

    def _heard(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        index = 0
        while events[index].kind != _END_OF_LIST:
            if events[index].kind == _WORD:
                self._starts.append(events[index].sample)
            index += 1
        return 0

    def say(self, text: str, voice: Voice) -> tuple[Samples, list[float]]:
        """The samples, at `RATE`, and the second at which each word begins."""
        self._pieces, self._starts = [], []
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak has no voice '{voice.name}'")
        self._library.espeak_SetParameter(_SPEED, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        spoken = text.encode()
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _UTF8, None, None)
        samples = np.concatenate(self._pieces).astype(np.float32)
        resampled = soxr.resample(samples, self._rate, RATE)
        return resampled, [start / self._rate for start in self._starts]


@cache
def _espeak() -> _Espeak:
    return _Espeak()


def say(text: str, voice: Voice) -> Speech:
    """The words of a text in a row, as this voice says them."""
    samples, starts = _espeak().say(text, voice)
    if len(starts) != len(text.split()):
        raise ValueError(f"espeak hears other words in '{text}'")
    loudness = np.abs(samples)
    (audible,) = np.nonzero(loudness > _AUDIBLE * loudness.max())
    first, last = int(audible[0]), int(audible[-1]) + 1
    # A word ends where the next one begins: within an utterance nobody pauses.
    seconds = (last - first) / RATE
    edges = [0.0, *(start - first / RATE for start in starts[1:]), seconds]
    words = tuple(map(Span, edges, edges[1:]))
    return Speech(samples[first:last] / loudness.max(), words)
