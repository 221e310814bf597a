"""The small skills: spell, reverse, sort, sum, count, name and think.

Each generator makes one exchange from a `Random`; the answer is the only right one, so a
checker compares text. Pure: no torch, no tokens.
"""

import re
from collections.abc import Callable
from random import Random

from demo.everyday import everyday
from demo.task import Exchange, JsonObject, assistant, question
from demo.words import COMMON_WORDS, any_name, any_word

Generator = Callable[[Random], Exchange]

LARGEST_COUNT = 100
_LONGEST_REVERSED = 6

_SPELL_WORDINGS = (
    "Spell {word}.",
    "Spell the word {word}.",
    'Spell "{word}".',
    "How do you spell {word}?",
    "Can you spell {word}?",
    "spell {word}",
)
_REVERSE_WORDINGS = (
    "Reverse {word}.",
    "Reverse the word {word}.",
    'Reverse "{word}".',
    "What is {word} backwards?",
    "Write {word} backwards.",
    "reverse {word}",
)
_SORT_WORDINGS = (
    "Sort {items}.",
    "Sort these {kind}: {items}.",
    "Put these {kind} in order: {items}",
    "Sort the {kind} {items}.",
    "sort {items}",
)
_SUM_WORDINGS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}=",
)
_COUNT_WORDINGS = (
    "Count from {a} to {b}.",
    "Count from {a} to {b}",
    "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "count from {a} to {b}",
)
_INTRODUCTIONS = (
    "My name is {name}.",
    "Hi, my name is {name}.",
    "I am {name}.",
    "Hello, I am {name}.",
    "Call me {name}.",
    "I'm {name}.",
    "my name is {name}",
)
_NAME_QUESTIONS = (
    "What is my name?",
    "What's my name?",
    "Do you know my name?",
    "Do you remember my name?",
    "Who am I?",
    "Tell me my name.",
    "what is my name",
)
_THOUGHT = re.compile(r"<think>\n(?P<thought>[^<]+)\n</think>\n\n(?P<answer>[^<]+)")


def spell(rng: Random) -> Exchange:
    """Spell a word, letter by letter: cat → c-a-t."""
    word = any_word(rng)
    prompt = rng.choice(_SPELL_WORDINGS).format(word=word)
    return question("spell", f"word:{word}", prompt, "-".join(word))


def reverse(rng: Random) -> Exchange:
    """Write a word backwards: cat → tac."""
    word = any_word(rng, _LONGEST_REVERSED)
    prompt = rng.choice(_REVERSE_WORDINGS).format(word=word)
    return question("reverse", f"word:{word}", prompt, word[::-1])


def sort_items(rng: Random) -> Exchange:
    """Sort three to five numbers, or words with different first letters."""
    size = rng.randint(3, 5)
    if rng.random() < 0.5:
        numbers = rng.sample(range(100), size)
        return _sort_exchange(rng, "numbers", [str(n) for n in numbers], _joined(numbers))
    words = _words_of_different_initials(rng, size)
    return _sort_exchange(rng, "words", words, _joined(words))


def _joined(items: list[int] | list[str]) -> str:
    return ", ".join(str(item) for item in sorted(items))


def _sort_exchange(rng: Random, kind: str, items: list[str], answer: str) -> Exchange:
    prompt = rng.choice(_SORT_WORDINGS).format(kind=kind, items=", ".join(items))
    return question("sort", f"sort:{answer}", prompt, answer)


def _words_of_different_initials(rng: Random, size: int) -> list[str]:
    words: dict[str, str] = {}
    while len(words) < size:
        word = rng.choice(COMMON_WORDS)
        words.setdefault(word[0], word)
    return list(words.values())


def sum_pair(rng: Random) -> Exchange:
    """Add two numbers below a hundred; a + b and b + a share their side of the split."""
    a, b = _operand(rng), _operand(rng)
    prompt = rng.choice(_SUM_WORDINGS).format(a=a, b=b)
    return question("sum", f"sum:{min(a, b)}+{max(a, b)}", prompt, f"{a} + {b} = {a + b}")


def _operand(rng: Random) -> int:
    # By chance alone one sum in a hundred would have two small numbers; people ask for those.
    return rng.randrange(10) if rng.random() < 0.25 else rng.randrange(100)


def count(rng: Random) -> Exchange:
    """Count upwards; mostly short, sometimes up to a hundred numbers for a long stream."""
    most = rng.choice((6, 6, 6, 12, 12, 12, 25, 25, 50, LARGEST_COUNT))
    first = rng.choice((1, 1, rng.randrange(LARGEST_COUNT - 3)))
    last = min(LARGEST_COUNT, first + rng.randint(3, most) - 1)
    prompt = rng.choice(_COUNT_WORDINGS).format(a=first, b=last)
    answer = ", ".join(str(number) for number in range(first, last + 1))
    return question("count", f"count:{first}-{last}", prompt, answer)


def introduce(rng: Random) -> Exchange:
    """The user says a name."""
    name = any_name(rng)
    prompt = rng.choice(_INTRODUCTIONS).format(name=name)
    return question("name", f"name:{name}", prompt, f"Nice to meet you, {name}!")


def recall(rng: Random, introduction: Exchange) -> Exchange:
    """The user asks for the name that an earlier exchange gave."""
    prompt = rng.choice(_NAME_QUESTIONS)
    answer = f"Your name is {introduction.key.removeprefix('name:')}."
    return question("name", introduction.key, prompt, answer)


def recall_nothing(rng: Random) -> Exchange:
    """The user asks for a name that was never given."""
    prompt = rng.choice(_NAME_QUESTIONS)
    return question("name", f"no name:{prompt}", prompt, "You have not told me your name yet.")


def think(rng: Random) -> Exchange:
    """A question of another skill, answered after a short thought."""
    make, thought_of = rng.choice(_THOUGHTS)
    plain = make(rng)
    answer = str(plain.messages[-1]["content"])
    thought = thought_of(answer)
    reply = assistant(f"<think>\n{thought}\n</think>\n\n{answer}")
    return Exchange("think", plain.key, (*plain.messages[:-1], reply))


def _fact_thought(_answer: str) -> str:
    return "This is a simple question. I know the answer."


def _reverse_thought(answer: str) -> str:
    return f"Forwards: {'-'.join(answer[::-1])}. Backwards: {'-'.join(answer)}."


def _sort_thought(answer: str) -> str:
    first, *_, last = answer.split(", ")
    return f"The first is {first} and the last is {last}."


def _sum_thought(answer: str) -> str:
    a, b = (int(part) for part in answer.split(" = ")[0].split(" + "))
    units, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    return (
        f"{a % 10} + {b % 10} = {units}. {a - a % 10} + {b - b % 10} = {tens}. "
        f"{tens} + {units} = {a + b}."
    )


_THOUGHTS: tuple[tuple[Generator, Callable[[str], str]], ...] = (
    (everyday, _fact_thought),
    (reverse, _reverse_thought),
    (sort_items, _sort_thought),
    (sum_pair, _sum_thought),
)


def same_text(reference: JsonObject, reply: str) -> bool:
    """Whether the reply is the reference, to the letter."""
    return reply == reference["content"]


def same_answer_after_thought(reference: JsonObject, reply: str) -> bool:
    """Whether the reply thinks in the agreed form and then gives the reference's answer."""
    expected = _THOUGHT.fullmatch(str(reference["content"]))
    found = _THOUGHT.fullmatch(reply)
    return bool(expected and found and found["answer"] == expected["answer"])
