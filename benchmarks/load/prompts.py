"""Prompts without an end, repeatable by a seed: words drawn at random, or the lines of a file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

# Common words: most tokenizers with a large vocabulary have one token for each of them.
_TEXT = """
the of and to in is that it was for on are with as his they at be this from have or by one had not
but what all were when we there can an your which their said if do will each about how up out them
then she many some so these would other into has more her two like him see time could no make than
first been its who now people my made over did down only way find use may water long little very
after words called just where most know get through back much before go good new write our used me
man too any day same right look think also around another came come work three word must because
does part even place well such here take why things help put years different away again off went
old number great tell men say small every found still between name should home big give air line
set own under read last never us left end along while might next sound below saw something thought
both few those always looked show large often together asked house world going want school
important until form food keep children feet land side without boy once animals life enough took
four head above kind began almost live page got earth need far hand high year mother light parts
country father let night following picture being study second eyes soon times story boys since
white days ever paper hard near sentence better best across during today others however sure means
knew try told young miles sun ways thing whole hear example heard several change answer room sea
against top turned learn point city play toward five using himself usually
"""
WORDS = tuple(_TEXT.split())
SHAREGPT_MIN_CHARACTERS = 4
DEFAULT_CUSTOM_OUTPUT_LEN = 256


@dataclass(frozen=True)
class Prompt:
    """A text to send, and how long its answer may be."""

    text: str
    max_tokens: int


class DatasetError(Exception):
    """A file holds no prompts; the message names it and the line."""


@dataclass(frozen=True)
class WordLength:
    """How many tokens words become on a server: a constant for its template, and a factor."""

    overhead: float = 0.0
    tokens_per_word: float = 1.0

    @classmethod
    def of(cls, short: tuple[int, int], long: tuple[int, int]) -> "WordLength":
        """From two measured pairs of words and tokens; without sense in them, one token a word."""
        slope = (long[1] - short[1]) / (long[0] - short[0])
        return cls(max(short[1] - slope * short[0], 0.0), slope) if slope > 0 else cls()

    def words_for(self, num_tokens: float) -> int:
        """How many words make a whole prompt of that many tokens."""
        return max(round((num_tokens - self.overhead) / self.tokens_per_word), 1)

    def added_words_for(self, num_tokens: float) -> int:
        """How many words add that many tokens to a prompt."""
        return round(num_tokens / self.tokens_per_word)


def draw_words(random: Random, count: int) -> str:
    """So many words."""
    return " ".join(random.choices(WORDS, k=count))


def random_prompts(
    seed: int,
    length: WordLength,
    *,
    input_len: int,
    output_len: int,
    prefix_len: int,
    range_ratio: float,
) -> Iterator[Prompt]:
    """Prompts of a prefix that all share and a part of their own, as vLLM's `random` dataset.

    `input_len` counts the own part. It and `output_len` are drawn anew for every prompt, evenly
    from (1 - `range_ratio`) to (1 + `range_ratio`) times of them.
    """
    random = Random(seed)
    prefix = draw_words(random, length.added_words_for(prefix_len))
    low, high = 1 - range_ratio, 1 + range_ratio
    while True:
        own = draw_words(random, length.words_for(input_len * random.uniform(low, high)))
        max_tokens = max(round(output_len * random.uniform(low, high)), 1)
        yield Prompt(f"{prefix} {own}" if prefix else own, max_tokens)


def repeated_prefixes(
    seed: int,
    length: WordLength,
    *,
    prefix_len: int,
    suffix_len: int,
    num_prefixes: int,
    output_len: int,
) -> Iterator[Prompt]:
    """Each prompt begins with one of a few prefixes, drawn at random, and ends on its own."""
    random = Random(seed)
    num_words = length.added_words_for(prefix_len)
    prefixes = [draw_words(random, num_words) for _ in range(num_prefixes)]
    while True:
        suffix = draw_words(random, length.words_for(suffix_len))
        yield Prompt(f"{random.choice(prefixes)} {suffix}", output_len)


def custom_prompts(path: Path, output_len: int | None) -> Iterator[Prompt]:
    """The "prompt" of every line of a JSONL file, in their order, round and round.

    The length of an answer is `output_len`, else the line's "output_tokens", else 256.
    """
    prompts = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            row = _parse(f"{path}, line {number}", line)
            text = row.get("prompt") if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise DatasetError(f'{path}, line {number}: no "prompt" that is a string')
            tokens = output_len or row.get("output_tokens") or DEFAULT_CUSTOM_OUTPUT_LEN
            prompts.append(Prompt(text, int(tokens)))
    return _around(path, prompts)


def sharegpt_prompts(seed: int, path: Path, output_len: int | None) -> Iterator[Prompt]:
    """The first turn of every conversation of a ShareGPT file, shuffled, round and round.

    The length of an answer is `output_len`, else that of the file's own, at 4 characters a token.
    """
    prompts = []
    conversations = _parse(str(path), _read(path))
    if not isinstance(conversations, list):
        raise DatasetError(f"{path}: not a JSON list of conversations")
    for conversation in conversations:
        turns = conversation.get("conversations", ()) if isinstance(conversation, dict) else ()
        texts = [str(turn["value"]) for turn in turns[:2] if "value" in turn]
        if len(texts) == 2 and min(map(len, texts)) >= SHAREGPT_MIN_CHARACTERS:
            prompts.append(Prompt(texts[0], output_len or len(texts[1]) // 4))
    Random(seed).shuffle(prompts)
    return _around(path, prompts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"--dataset-path {path}: {error}") from error


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: {error}") from error


def _around(path: Path, prompts: list[Prompt]) -> Iterator[Prompt]:
    if not prompts:
        raise DatasetError(f"{path} holds no prompts")
    return cycle(prompts)
