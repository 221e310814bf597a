"""The sample sounds of demo/README.md: `python -m demo.whisper_sounds` writes them anew."""

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.speech import RATE, Samples, Voice
from demo.whisper_windows import spoken
from demo.whisper_words import WORDS, Utterance

SOUNDS_FOLDER = Path(__file__).parent / "sounds"
_LARGEST = 32_767  # of 16 bits


@dataclass(frozen=True)
class Sample:
    """Utterances with a pause before, between and after them."""

    language: str
    voice: str
    pause_seconds: float
    texts: tuple[str, ...]  # in English, whatever is spoken

    @property
    def utterances(self) -> list[Utterance]:
        """Who says what."""
        voice, numbers = Voice(self.voice), WORDS["en"].index
        return [
            Utterance(self.language, tuple(map(numbers, text.split())), voice)
            for text in self.texts
        ]


# None of these utterances is trained.
SAMPLES = {
    "english": Sample("en", "en-us", 0.4, ("open window three",)),
    "german": Sample("de", "de", 0.4, ("close window four",)),
    "long": Sample(
        "en",
        "en-gb-x-rp",
        1.4,
        (
            *("one two nine", "open window three", "green red blue", "close music eight"),
            *("four five zero", "open water five", "right left left", "close water seven"),
            "two seven zero",
        ),
    ),
}


def recorded(sample: Sample) -> Samples:
    """The sound, without noise."""
    pause = np.zeros(round(sample.pause_seconds * RATE), np.float32)
    parts = [pause]
    for utterance in sample.utterances:
        parts += [spoken(utterance).samples * np.float32(0.5), pause]
    return np.concatenate(parts)


def read(name: str) -> Samples:
    """The committed sound of this name."""
    with wave.open(str(SOUNDS_FOLDER / f"{name}.wav"), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / np.float32(_LARGEST)


def _write(name: str, samples: Samples) -> None:
    SOUNDS_FOLDER.mkdir(exist_ok=True)
    with wave.open(str(SOUNDS_FOLDER / f"{name}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * _LARGEST).astype("<i2").tobytes())


def main() -> None:
    """Write them all."""
    for name, sample in SAMPLES.items():
        _write(name, recorded(sample))


if __name__ == "__main__":
    main()
