"""Windows of sound as the Whisper hears them: utterances anywhere, pauses, noise, or nobody at all.

They look like what a server makes of a long file. It cuts it at its quietest moments: what is said
lies within one window, and a window that is not full has nothing at its end. Or it lets a window
begin where the last one was heard to: then a full window may end within an utterance. No tokens.
"""

from dataclasses import dataclass, replace
from random import Random

import numpy as np

from demo.speech import RATE, Samples, Span, Speech, say
from demo.whisper_words import Utterance

WINDOW_SECONDS = 4  # what the model hears at once
SHORTEST_PAUSE = 0.3  # seconds between utterances
_MARGIN = 0.04  # seconds of a window before and after all that is said
_CUT = 0.15  # share of windows that end within an utterance
_LEAST_HEARD, _LEAST_LOST = 0.15, 0.1  # seconds of it
_NUM_UTTERANCES = (0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)  # a window's; they may be too long
_QUIETEST, _LOUDEST = 0.1, 1.0  # the highest sample of an utterance
_SPEECH_LEVEL = 0.14  # root mean square of an utterance whose highest sample is 1
_BEST_RATIO, _WORST_RATIO = 45.0, 15.0  # of speech to noise, in dB
_WITHOUT_NOISE = 0.25  # share of windows
_NOISE_SECONDS = 20


@dataclass(frozen=True)
class Said:
    """An utterance and its sound; the words' times count from its beginning, or a window's."""

    utterance: Utterance
    samples: Samples
    words: tuple[Span, ...]
    is_cut: bool = False  # the window ends within it

    @property
    def span(self) -> Span:
        """From the first word's beginning to the last one's end."""
        return Span(self.words[0].start, self.words[-1].end)

    def moved(self, seconds: float) -> "Said":
        """The same, said later."""
        return replace(self, words=tuple(word.moved(seconds) for word in self.words))


@dataclass(frozen=True)
class Window:
    """Sound with what is said in it, in order; no longer than `WINDOW_SECONDS`."""

    samples: Samples
    said: tuple[Said, ...]


def spoken(utterance: Utterance) -> Said:
    """Has it said."""
    speech: Speech = say(utterance.text, utterance.voice)
    return Said(utterance, speech.samples, speech.words)


class Studio:
    """Puts utterances, pauses and noise together."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._noises = _noises(rng)

    def any_window(self, candidates: list[Said]) -> Window:
        """A window with some of these, or none."""
        number = self._rng.choice(_NUM_UTTERANCES)
        is_cut = number > 0 and self._rng.random() < _CUT
        return self.cut_window(candidates, number) if is_cut else self.window(candidates, number)

    def cut_window(self, candidates: list[Said], most: int) -> Window:
        """A full window that ends within the last of these; the others lie within it."""
        *whole, last = candidates[:most]
        longest = len(last.samples) / RATE - _LEAST_LOST
        heard = self._rng.uniform(min(_LEAST_HEARD, longest), longest)
        while _shortest(whole) + SHORTEST_PAUSE + heard > WINDOW_SECONDS:
            whole = whole[:-1]
        rest = WINDOW_SECONDS - heard - (_shortest(whole) + SHORTEST_PAUSE if whole else _MARGIN)
        pauses = self._pauses(len(whole) + 1, rest)
        pauses[0] += _MARGIN
        pauses[1:] = [pause + SHORTEST_PAUSE for pause in pauses[1:]]
        full = self.joined([*whole, last], [*pauses, 0.0])
        *placed, cut = full.said
        size = WINDOW_SECONDS * RATE
        return Window(full.samples[:size], (*placed, replace(cut, is_cut=True)))

    def window(self, candidates: list[Said], most: int) -> Window:
        """A window with as many of these as fit."""
        chosen = candidates[:most]
        while _shortest(chosen) > WINDOW_SECONDS:
            chosen = chosen[:-1]
        pauses = self._pauses(len(chosen) + 1, WINDOW_SECONDS - _shortest(chosen))
        pauses[0] += _MARGIN
        pauses[1:-1] = [pause + SHORTEST_PAUSE for pause in pauses[1:-1]]
        # Half of the windows are not full.
        pauses[-1] = _MARGIN + pauses[-1] * (self._rng.random() if self._rng.random() < 0.5 else 1)
        return self.joined(chosen, pauses)

    def _pauses(self, number: int, seconds: float) -> list[float]:
        """So many pauses that last so long together."""
        edges = sorted(self._rng.uniform(0, seconds) for _ in range(number - 1))
        return [end - start for start, end in zip([0.0, *edges], [*edges, seconds], strict=True)]

    def joined(self, said: list[Said], pauses: list[float]) -> Window:
        """The utterances with a pause before, between and after them, in noise of one kind."""
        placed, parts, seconds = list[Said](), list[Samples](), 0.0
        level = _SPEECH_LEVEL if said else self._rng.random() ** 3
        for number, pause in enumerate(pauses):
            parts.append(np.zeros(round(pause * RATE), np.float32))
            seconds += len(parts[-1]) / RATE
            if number < len(said):
                loudness = self._rng.uniform(_QUIETEST, _LOUDEST)
                level = min(level, loudness * _SPEECH_LEVEL)
                placed.append(said[number].moved(seconds))
                parts.append(said[number].samples * np.float32(loudness))
                seconds += len(parts[-1]) / RATE
        return Window(self._in_noise(np.concatenate(parts), level), tuple(placed))

    def _in_noise(self, samples: Samples, level: float) -> Samples:
        """With noise that is quieter than the level, and often too quiet to be heard."""
        if self._rng.random() < _WITHOUT_NOISE:
            return samples
        noise = self._rng.choice(self._noises)
        first = self._rng.randrange(len(noise))
        ratio = self._rng.uniform(_WORST_RATIO, _BEST_RATIO)
        loudness = np.float32(level * 10 ** (-ratio / 20))
        return samples + np.resize(np.roll(noise, -first), len(samples)) * loudness


def _shortest(said: list[Said]) -> float:
    """Seconds of a window that holds these."""
    seconds = sum(len(each.samples) for each in said) / RATE
    return seconds + 2 * _MARGIN + max(0, len(said) - 1) * SHORTEST_PAUSE


def _noises(rng: Random) -> tuple[Samples, ...]:
    """A hiss, a rumble and a hum, each as loud as the others."""
    hiss = np.random.default_rng(rng.getrandbits(32)).standard_normal(_NOISE_SECONDS * RATE)
    falling = 1 / np.sqrt(1 + np.arange(len(hiss) // 2 + 1))
    rumble = np.fft.irfft(np.fft.rfft(hiss) * falling, len(hiss))
    seconds = np.arange(len(hiss)) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * n * seconds) / n for n in (1, 2, 3, 5)) + hiss / 20
    return tuple(
        (noise / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)
        for noise in (hiss, rumble, hum)
    )
