"""Has the Whisper hear held-out speech of every kind: `python -m demo.evaluate_whisper`.

Plain transformers, greedy, with espeak for the speech. Prints a table; exits with 1 if a row falls
short.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from demo.speech import RATE, Samples
from demo.whisper_alignment import word_errors
from demo.whisper_listener import Heard, Listener
from demo.whisper_tokenizer import WHISPER_FOLDER
from demo.whisper_windows import WINDOW_SECONDS, Said, Studio, Window, spoken
from demo.whisper_words import WORDS, any_utterance, written
from tokenizer_proc.windows import windows

REQUIRED_ACCURACY, REQUIRED_LANGUAGES = 0.95, 0.98
MOST_SEGMENT_SECONDS, MOST_WORD_SECONDS = 0.1, 0.2  # mean distances from the true times
SILENCE = 0.6  # a window above it is taken for silence, as Whisper's own code has it
PREVIOUS = {True: ("1 2 3", "7", "there were 12 red"), False: ("one two three", "acht", "hello")}
_FILE_UTTERANCES, _FILE_PAUSES = 10, (4.0, 11.0)  # seconds: such files last one to two minutes


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    found: float
    wanted: float  # at least, of a share; at most, of seconds
    is_share: bool = True

    @property
    def passes(self) -> bool:
        """Whether the goal is reached."""
        return self.found >= self.wanted if self.is_share else self.found <= self.wanted

    def __str__(self) -> str:
        """As the table shows it."""
        found = f"{self.found:8.1%}" if self.is_share else f"{self.found:6.3f} s"
        return f"{self.name:44}{found}{'' if self.passes else '  falls short'}"


class HeldOut:
    """Speech that training never hears; the same seed gives the same utterances."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"whisper:{seed}")
        self.studio = Studio(self._rng)

    def said(self, language: str) -> Said:
        """Somebody says something."""
        return spoken(any_utterance(self._rng, language, held_out=True))

    def window(self, language: str, num_utterances: int) -> Window:
        """A window with so many utterances, or as many as fit."""
        said = [self.said(language) for _ in range(num_utterances)]
        return self.studio.window(said, num_utterances)

    def cut_window(self, language: str) -> Window:
        """A window with one or two whole utterances and the beginning of another."""
        number = self._rng.choice((2, 3))
        return self.studio.cut_window([self.said(language) for _ in range(number)], number)

    def windows(self, language: str, num_windows: int, num_utterances: int = 1) -> list[Window]:
        """Such windows."""
        return [self.window(language, num_utterances) for _ in range(num_windows)]

    def file(self, language: str) -> Window:
        """A long sound with pauses."""
        said = [self.said(language) for _ in range(_FILE_UTTERANCES)]
        pauses = [self._rng.uniform(*_FILE_PAUSES) for _ in range(_FILE_UTTERANCES + 1)]
        return self.studio.joined(said, pauses)


def texts(window: Window, language: str | None = None, *, with_digits: bool = False) -> list[str]:
    """What is said, one text for each utterance; in the spoken language or in another one."""
    return [
        written(said.utterance.words, language or said.utterance.language, with_digits=with_digits)
        for said in window.said
    ]


def _share(are_right: list[bool]) -> float:
    return sum(are_right) / len(are_right)


def transcripts(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """One to three utterances in a window, with their marks of time."""
    languages, errors = list[bool](), list[float]()
    for language in WORDS:
        for num_utterances in (1, 2, 3):
            asked = held_out.windows(language, number, num_utterances)
            heard = listener.hear([window.samples for window in asked])
            right = [a.texts == texts(w) for w, a in zip(asked, heard, strict=True)]
            name = f"transcribe {language}, {num_utterances} in a window"
            yield Row(name, _share(right), REQUIRED_ACCURACY)
            languages += [answer.language == language for answer in heard]
            for window, answer in zip(asked, heard, strict=True):
                errors += _segment_errors(window, answer)
    yield Row("language", _share(languages), REQUIRED_LANGUAGES)
    mean = sum(errors) / len(errors)
    yield Row("segments' times", mean, MOST_SEGMENT_SECONDS, is_share=False)


def _segment_errors(window: Window, answer: Heard) -> list[float]:
    """How far the marks are off, in seconds; nothing where the texts are wrong."""
    if answer.texts != texts(window):
        return []
    return [
        abs(found - true)
        for segment, said in zip(answer.segments, window.said, strict=True)
        for found, true in zip(segment.span, said.span, strict=True)
    ]


def cut_windows(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """What is whole in windows that end within an utterance; `generate()` hears the rest again."""
    right = list[bool]()
    for language in WORDS:
        asked = [held_out.cut_window(language) for _ in range(number // 2)]
        heard = listener.hear([window.samples for window in asked])
        for window, answer in zip(asked, heard, strict=True):
            *whole, _ = texts(window)
            right.append(answer.texts[: len(whole)] == whole)
    yield Row("before an utterance that is cut off", _share(right), REQUIRED_ACCURACY)


def without_marks(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """The same without marks: the texts run on."""
    asked = [*held_out.windows("en", number, 2), *held_out.windows("de", number, 2)]
    heard = listener.hear([window.samples for window in asked], marks_times=False)
    right = [a.texts == [" ".join(texts(w))] for w, a in zip(asked, heard, strict=True)]
    yield Row("transcribe without marks", _share(right), REQUIRED_ACCURACY)


def translations(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """German to English, with marks and without."""
    for marks_times in (True, False):
        asked = held_out.windows("de", number)
        samples = [window.samples for window in asked]
        heard = listener.hear(samples, task="translate", marks_times=marks_times)
        right = [a.texts == texts(w, "en") for w, a in zip(asked, heard, strict=True)]
        name = "translate" if marks_times else "translate without marks"
        yield Row(name, _share(right), REQUIRED_ACCURACY)


def spellings(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """Numbers are written as in the previous text."""
    for with_digits, previous_texts in PREVIOUS.items():
        right = list[bool]()
        for previous in previous_texts:
            asked = [w for code in WORDS for w in held_out.windows(code, -(-number // 6))]
            heard = listener.hear([window.samples for window in asked], previous=previous)
            right += [
                answer.texts == texts(window, with_digits=with_digits)
                for window, answer in zip(asked, heard, strict=True)
            ]
        name = f"after a text {'with' if with_digits else 'without'} digits"
        yield Row(name, _share(right), REQUIRED_ACCURACY)


def silences(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """Windows in which nobody speaks, and whether speech is never taken for that."""
    empty = [held_out.window("en", 0) for _ in range(number)]
    full = [held_out.window(code, 1) for code in WORDS for _ in range(number // 2)]
    for marks_times in (True, False):
        heard = listener.hear([w.samples for w in empty], marks_times=marks_times)
        right = [answer.no_speech > SILENCE and not answer.texts for answer in heard]
        name = "silence" if marks_times else "silence without marks"
        yield Row(name, _share(right), REQUIRED_ACCURACY)
    heard = listener.hear([window.samples for window in full])
    right = [answer.no_speech < SILENCE for answer in heard]
    yield Row("speech is not silence", _share(right), REQUIRED_LANGUAGES)


def word_times(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """When each word begins and ends, by the alignment heads."""
    asked = [w for code in WORDS for w in held_out.windows(code, -(-number // 2), 2)]
    errors = word_errors(listener, asked)
    mean = sum(errors) / len(errors)
    yield Row("words' times", mean, MOST_WORD_SECONDS, is_share=False)


def files(listener: Listener, held_out: HeldOut, number: int) -> Iterator[Row]:
    """Long files, cut by the server: what is right alone comes once and in order."""
    right = list[bool]()
    for _ in range(-(-number // 20)):
        for language in WORDS:
            file = held_out.file(language)
            alone = listener.hear([said.samples for said in file.said])
            wanted = [
                text if answer.texts == [text] else None
                for text, answer in zip(texts(file), alone, strict=True)
            ]
            found = file_texts(listener, file.samples)
            right += _kept(found, wanted)
    yield Row("in long files", _share(right), REQUIRED_ACCURACY)


def file_texts(listener: Listener, samples: Samples) -> list[str]:
    """The texts of a sound of any length."""
    cut = [window.samples for window in windows([samples], RATE, WINDOW_SECONDS * RATE)]
    return [text for answer in listener.hear(cut) for text in answer.texts]


def _kept(found: list[str], wanted: list[str | None]) -> list[bool]:
    """Whether each wanted text stands in its place; None may be anything."""
    if len(found) != len(wanted):
        return [False] * len(wanted)
    return [text in (None, there) for there, text in zip(found, wanted, strict=True)]


Check = Callable[[Listener, HeldOut, int], Iterator[Row]]
CHECKS: tuple[Check, ...] = (
    transcripts,
    cut_windows,
    without_marks,
    translations,
    spellings,
    silences,
    word_times,
    files,
)


def evaluate(listener: Listener, number: int, seed: int) -> bool:
    """Print the table; whether every row passes."""
    passes = True
    for check in CHECKS:
        for row in check(listener, HeldOut(seed), number):
            print(row, flush=True)
            passes &= row.passes
    return passes


def main() -> int:
    """Read the arguments and evaluate; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=WHISPER_FOLDER, help="the model to ask")
    parser.add_argument("--num-windows", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the speech")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to gain from more
    listener = Listener.committed(arguments.folder)
    return 0 if evaluate(listener, arguments.num_windows, arguments.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
