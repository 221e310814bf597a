"""What the T5 model can do: spell, reverse, sort, sum and translate, each by its prefix.

Each generator makes one pair from a `Random`; its answer is the only right one.
Pure: no torch, no tokens.
"""

from collections.abc import Callable, Iterator
from random import Random

from demo.task import Pair, draw
from demo.translation import sentence
from demo.words import any_word

_LONGEST_SPELLED, _LONGEST_REVERSED = 8, 6


def spell(rng: Random) -> Pair:
    """A word's letters: cat → c a t."""
    word = any_word(rng, _LONGEST_SPELLED)
    return Pair("spell", f"word:{word}", f"spell: {word}", " ".join(word))


def reverse(rng: Random) -> Pair:
    """A word backwards: dog → god."""
    word = any_word(rng, _LONGEST_REVERSED)
    return Pair("reverse", f"word:{word}", f"reverse: {word}", word[::-1])


def sort_numbers(rng: Random) -> Pair:
    """Two to five different numbers in order; the key is the answer, whatever the order."""
    largest = rng.choice((9, 99))
    numbers = rng.sample(range(largest + 1), rng.randint(2, 5))
    answer = _spaced(sorted(numbers))
    return Pair("sort", f"sort:{answer}", f"sort: {_spaced(numbers)}", answer)


def _spaced(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def sum_pair(rng: Random) -> Pair:
    """Two numbers below a hundred; a + b and b + a share their side of the split."""
    a, b = _operand(rng), _operand(rng)
    return Pair("sum", f"sum:{min(a, b)}+{max(a, b)}", f"sum: {a} + {b}", str(a + b))


def _operand(rng: Random) -> int:
    # By chance alone one sum in a hundred would have two small numbers; people ask for those.
    return rng.randrange(10) if rng.random() < 0.25 else rng.randrange(100)


def translate(rng: Random) -> Pair:
    """A sentence of the small grammar, from English to German."""
    english, german = sentence(rng)
    prompt = f"translate English to German: {english}"
    return Pair("translate", f"translate:{english}", prompt, german)


_GENERATORS: dict[str, Callable[[Random], Pair]] = {
    "spell": spell,
    "reverse": reverse,
    "sort": sort_numbers,
    "sum": sum_pair,
    "translate": translate,
}
T5_SKILLS = tuple(_GENERATORS)
# Weights follow difficulty: a skill that lags gets more pairs.
_WEIGHTS = (3, 5, 2, 4, 3)


def training_pairs(seed: int) -> Iterator[Pair]:
    """Pairs without end, none held out; the same seed gives the same ones."""
    rng = Random(seed)
    while True:
        (make,) = rng.choices(list(_GENERATORS.values()), _WEIGHTS)
        yield draw(make, rng, held_out=False)


def held_out_pairs(skill: str, num_pairs: int, seed: int) -> list[Pair]:
    """Pairs of one skill that training never draws; the same seed gives the same ones."""
    rng = Random(f"{skill}:{seed}")
    return [draw(_GENERATORS[skill], rng, held_out=True) for _ in range(num_pairs)]
