"""The Whisper's tokenizer: a byte-level BPE of its lexicon, and the control tokens' real names.

As in Whisper's own a space is part of the word that follows it, and the marks of time stand right
behind `<|notimestamps|>`, one for each 20 ms of a window.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import WhisperTokenizer

from demo.whisper_windows import WINDOW_SECONDS
from demo.whisper_words import NUM_DIGITS, WORDS

WHISPER_FOLDER = Path(__file__).parent / "whisper"
MARKS_PER_SECOND = 50
MAX_TOKENS = 128  # of the decoder: half of them for what was said before
NUM_MARKS = WINDOW_SECONDS * MARKS_PER_SECOND  # steps of time; the marks are one more
END, START, PREVIOUS = "<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>"
NO_SPEECH, NO_TIMES = "<|nospeech|>", "<|notimestamps|>"
LANGUAGES = tuple(f"<|{code}|>" for code in WORDS)
TASKS = {"translate": "<|translate|>", "transcribe": "<|transcribe|>"}
CONTROLS = (START, *LANGUAGES, *TASKS.values(), "<|startoflm|>", PREVIOUS, NO_SPEECH, NO_TIMES)
_NUM_MERGES = 125  # most words become one token, the longest two


def train_whisper_tokenizer() -> WhisperTokenizer:
    """The merges that the lexicon asks for; they are the same each time."""
    vocabulary, merges = _byte_pairs()
    tokenizer = WhisperTokenizer(
        vocab={**vocabulary, END: len(vocabulary)},
        merges=merges,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[AddedToken(name, special=True) for name in CONTROLS],
    )
    marks = [f"<|{number / MARKS_PER_SECOND:.2f}|>" for number in range(NUM_MARKS + 1)]
    tokenizer.add_tokens([AddedToken(name, special=False) for name in marks])
    return tokenizer


def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The tokens of text with their ids, and the pairs that are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + _NUM_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_words(), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def _words() -> Iterator[str]:
    """Every word as it stands in a text; digits twice, so that each is one token."""
    for words in WORDS.values():
        yield from (f" {word}" for word in words)
    yield from (f" {digit}" for digit in range(NUM_DIGITS) for _ in range(2))
