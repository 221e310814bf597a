"""The T5 model's tokenizer: a Unigram whose pieces are counted in the training pairs.

As in T5's own a space is part of the piece that follows it, blanks of every kind are one space,
and each text ends with `</s>`.
"""

import math
import string
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from demo.t5_skills import training_pairs
from demo.task import Pair

T5_FOLDER = Path(__file__).parent / "t5"
VOCABULARY_SIZE = 320
PADDING, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_SPECIAL_TOKENS = (PADDING, END, UNKNOWN)
# Of words to spell or to reverse: a longer piece would be one that training spells too seldom.
_LONGEST_PIECE = 3  # letters
_NUM_SAMPLE_PAIRS = 8000
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how a piece says that a space stands before it


def train_t5_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Choose the vocabulary by the training pairs; the same seed gives the same one."""
    tokenizer = Tokenizer(models.Unigram(_vocabulary(seed), _SPECIAL_TOKENS.index(UNKNOWN)))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL_TOKENS])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # Digits alone: a number has the same tokens wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(_SPACE), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Metaspace(_SPACE)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, _SPECIAL_TOKENS.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _vocabulary(seed: int) -> list[tuple[str, float]]:
    """The pieces with the logarithms of their frequencies: all characters, then what saves most.

    The library's trainer would choose them better; it chooses others each time.
    """
    counts = Counter(string.ascii_letters + string.digits + string.punctuation + _SPACE)
    for pair in islice(training_pairs(seed), _NUM_SAMPLE_PAIRS):
        counts.update(_pieces(pair))
    by_saving = sorted(counts, key=lambda piece: (len(piece) > 1, -_saving(piece, counts), piece))
    kept = by_saving[: VOCABULARY_SIZE - len(_SPECIAL_TOKENS)]
    total = sum(counts[piece] for piece in kept)
    scored = [(piece, math.log(counts[piece] / total)) for piece in kept]
    return [*((name, 0.0) for name in _SPECIAL_TOKENS), *scored]


def _saving(piece: str, counts: Counter[str]) -> int:
    """How many tokens fewer than its characters the piece would make of the texts, at most."""
    return counts[piece] * (len(piece) - 1)


def _pieces(pair: Pair) -> Iterator[str]:
    """Every piece of the pair; those of prefixes and of German can be whole words."""
    prefix, asked = pair.prompt.split(":")
    whole, others = f"{prefix}:".split(), asked.split()
    (whole if pair.skill == "translate" else others).extend(pair.answer.split())
    for word in whole:
        yield _SPACE + word
    for word in (*whole, *others):
        yield from _short_pieces(word)


def _short_pieces(word: str) -> Iterator[str]:
    for start in range(len(word)):
        for end in range(start + 1, min(start + _LONGEST_PIECE, len(word)) + 1):
            piece = word[start:end]
            if len(piece) == 1 or not any(map(str.isdigit, piece)):
                yield piece
                if start == 0:
                    yield _SPACE + piece
