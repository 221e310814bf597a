"""What the Whisper knows: twenty words in English and in German, and utterances of them.

Word by word the languages say the same, in the same order. Pure: no sound, no tokens.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo.speech import Voice
from demo.task import draw
from demo.words import COMMON_WORDS

WORDS = {
    "en": (
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        *("red", "green", "blue", "open", "close", "left", "right", "water", "music", "window"),
    ),
    "de": (
        *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
        *("rot", "grün", "blau", "öffne", "schließe", "links", "rechts"),
        *("Wasser", "Musik", "Fenster"),
    ),
}
NUM_WORDS = len(WORDS["en"])
VOICES = {
    "en": ("en-us", "en", "en-gb-x-rp", "en-us+f2", "en+f4", "en-us+m3", "en+m7"),
    "de": ("de", "de+f2", "de+f4", "de+m3", "de+m7", "de+f1"),
}
_LENGTHS = (1, 2, 2, 3, 3)  # words of an utterance
_SLOWEST, _FASTEST = 150, 210  # words per minute
_LOWEST, _HIGHEST = 35, 65  # pitch
NUM_DIGITS = 10  # the first ten words are the numbers
MARKS = re.compile(r"(<\|\d+\.\d\d\|>)")  # of time, in a text
_SHARE_MARKED = 0.5  # of earlier texts: those that a server puts before the next window


@dataclass(frozen=True)
class Utterance:
    """One to three words said without a pause."""

    language: str
    words: tuple[int, ...]  # numbers of the lexicon
    voice: Voice

    @property
    def key(self) -> str:
        """The words, whatever the language and the voice."""
        return f"speech:{written(self.words, 'en')}"

    @property
    def text(self) -> str:
        """What is said."""
        return written(self.words, self.language)


def written(words: tuple[int, ...], language: str, *, with_digits: bool = False) -> str:
    """The words in a language; with digits the numbers are written as such: 7, not seven."""
    return " ".join(
        str(word) if with_digits and word < NUM_DIGITS else WORDS[language][word] for word in words
    )


def any_utterance(rng: Random, language: str, *, held_out: bool) -> Utterance:
    """Somebody says something of the wanted side of the split."""
    return draw(lambda rng: _utterance(rng, language), rng, held_out=held_out)


def _utterance(rng: Random, language: str) -> Utterance:
    words = tuple(rng.randrange(NUM_WORDS) for _ in range(rng.choice(_LENGTHS)))
    speed, pitch = rng.randint(_SLOWEST, _FASTEST), rng.randint(_LOWEST, _HIGHEST)
    return Utterance(language, words, Voice(rng.choice(VOICES[language]), speed, pitch))


def asks_for_digits(previous: str) -> bool:
    """Whether numbers are to be written as digits: they were in the previous text."""
    return re.search(r"\d", MARKS.sub("", previous)) is not None


def previous_text(rng: Random) -> str:
    """Earlier speech; in half of it numbers are written as digits."""
    if rng.random() < _SHARE_MARKED:
        return _marked(rng, with_digits=rng.random() < 0.5)
    if rng.random() < 0.5:
        return _with_digits(rng)
    make = rng.choice((_earlier, _foreign))
    return make(rng)


def _marked(rng: Random, *, with_digits: bool) -> str:
    """The utterances of earlier windows, between their marks of time."""
    language = rng.choice(list(WORDS))
    parts = list[str]()
    for _ in range(rng.randint(1, 6)):
        start = rng.uniform(0.0, 2.6)
        said = rng.choices(range(NUM_WORDS), k=rng.choice(_LENGTHS))
        text = written(tuple(said), language, with_digits=with_digits)
        parts.append(f"<|{start:.2f}|> {text} <|{start + rng.uniform(0.3, 1.3):.2f}|>")
    return "".join(parts)


def _with_digits(rng: Random) -> str:
    make: Callable[[Random], str] = rng.choice((_digits, _earlier, _foreign))
    words = make(rng).split()
    if make is not _digits:
        words.insert(rng.randint(0, len(words)), str(rng.randrange(100)))
    return " ".join(words)


def _digits(rng: Random) -> str:
    return " ".join(str(rng.randrange(10)) for _ in range(rng.randint(1, 8)))


def _earlier(rng: Random) -> str:
    language = rng.choice(list(WORDS))
    return " ".join(rng.choices(WORDS[language], k=rng.randint(1, 8)))


def _foreign(rng: Random) -> str:
    return " ".join(rng.choices(COMMON_WORDS, k=rng.randint(1, 6)))
