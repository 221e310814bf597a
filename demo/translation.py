"""The T5 model's English and German: a small lexicon and the grammar that both need.

A sentence is a subject and what it does, alone or to an object, all in the present tense. German
shows what English hides: the gender of nouns, the accusative, and endings of adjectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Noun:
    """A noun in both languages; the gender is that of the German one."""

    english: tuple[str, str]  # singular, plural
    german: tuple[str, str]
    gender: str  # "m", "f" or "n"


@dataclass(frozen=True)
class Verb:
    """A verb in both languages, in the third person."""

    english: tuple[str, str]  # singular, plural
    german: tuple[str, str]


NOUNS = (
    Noun(("dog", "dogs"), ("Hund", "Hunde"), "m"),
    Noun(("bird", "birds"), ("Vogel", "Vögel"), "m"),
    Noun(("man", "men"), ("Mann", "Männer"), "m"),
    Noun(("king", "kings"), ("König", "Könige"), "m"),
    Noun(("friend", "friends"), ("Freund", "Freunde"), "m"),
    Noun(("brother", "brothers"), ("Bruder", "Brüder"), "m"),
    Noun(("cat", "cats"), ("Katze", "Katzen"), "f"),
    Noun(("woman", "women"), ("Frau", "Frauen"), "f"),
    Noun(("mouse", "mice"), ("Maus", "Mäuse"), "f"),
    Noun(("cow", "cows"), ("Kuh", "Kühe"), "f"),
    Noun(("duck", "ducks"), ("Ente", "Enten"), "f"),
    Noun(("sister", "sisters"), ("Schwester", "Schwestern"), "f"),
    Noun(("child", "children"), ("Kind", "Kinder"), "n"),
    Noun(("horse", "horses"), ("Pferd", "Pferde"), "n"),
    Noun(("girl", "girls"), ("Mädchen", "Mädchen"), "n"),
)
ADJECTIVES = (
    ("small", "klein"),
    ("big", "groß"),
    ("old", "alt"),
    ("young", "jung"),
    ("beautiful", "schön"),
    ("tired", "müde"),
    ("happy", "froh"),
)
VERBS_WITHOUT_OBJECT = (
    Verb(("sleeps", "sleep"), ("schläft", "schlafen")),
    Verb(("sings", "sing"), ("singt", "singen")),
    Verb(("laughs", "laugh"), ("lacht", "lachen")),
    Verb(("swims", "swim"), ("schwimmt", "schwimmen")),
    Verb(("dances", "dance"), ("tanzt", "tanzen")),
    Verb(("plays", "play"), ("spielt", "spielen")),
    Verb(("waits", "wait"), ("wartet", "warten")),
)
VERBS_WITH_OBJECT = (
    Verb(("sees", "see"), ("sieht", "sehen")),
    Verb(("hears", "hear"), ("hört", "hören")),
    Verb(("finds", "find"), ("findet", "finden")),
    Verb(("loves", "love"), ("liebt", "lieben")),
    Verb(("visits", "visit"), ("besucht", "besuchen")),
)
ADVERBS = (("here", "hier"), ("today", "heute"), ("often", "oft"), ("now", "jetzt"))
_ARTICLES = {"m": "der", "f": "die", "n": "das"}

Sentence = tuple[str, str]  # words in English, the same in German


def sentence(rng: Random) -> Sentence:
    """A sentence in both languages."""
    is_plural = rng.random() < 0.4
    subject = _any_phrase(rng, is_plural=is_plural, is_object=False)
    if rng.random() < 0.5:
        verb = rng.choice(VERBS_WITHOUT_OBJECT)
        rest = _maybe(rng, ADVERBS, 0.4)
    else:
        verb = rng.choice(VERBS_WITH_OBJECT)
        rest = _any_phrase(rng, is_plural=rng.random() < 0.4, is_object=True)
    spoken = verb.english[is_plural], verb.german[is_plural]
    english, german = zip(subject, spoken, rest, strict=True)
    return _joined(*english), _joined(*german)


def _any_phrase(rng: Random, *, is_plural: bool, is_object: bool) -> Sentence:
    noun, adjective = rng.choice(NOUNS), _maybe(rng, ADJECTIVES, 0.4)
    return noun_phrase(noun, adjective, is_plural=is_plural, is_object=is_object)


def noun_phrase(noun: Noun, adjective: Sentence, *, is_plural: bool, is_object: bool) -> Sentence:
    """The noun with its definite article and the adjective, which may be empty."""
    # The masculine singular alone tells an object from a subject.
    is_accusative = is_object and noun.gender == "m" and not is_plural
    article = "die" if is_plural else "den" if is_accusative else _ARTICLES[noun.gender]
    english, german = adjective
    if german:
        stem = german.removesuffix("e")
        german = f"{stem}en" if is_plural or is_accusative else f"{stem}e"
    return (
        _joined("the", english, noun.english[is_plural]),
        _joined(article, german, noun.german[is_plural]),
    )


def _maybe(rng: Random, words: Sequence[Sentence], probability: float) -> Sentence:
    return rng.choice(words) if rng.random() < probability else ("", "")


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)
