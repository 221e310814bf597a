"""A chat model of random weights in a directory, to measure any server with the same one.

    python -m benchmarks.make_model /tmp/toy --shape toy --dtype float32

Its tokenizer is a real one: byte-level BPE, trained to the wanted size on Python's own library and
on words made from the seed, with a ChatML template. Everything follows from the seed, the shape and
the version of Python. Loadable by transformers, vLLM and this server.
"""

import argparse
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.bench_cpu_step import CONFIG

MAX_MODEL_LEN = 4096
# vLLM's attention on the CPU needs heads of 32 or more.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    "toy": {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
    },
    "135m": CONFIG,
    "360m": {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
}
DTYPES = ("float32", "bfloat16", "float16")

PADDING, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idlelib", "__pycache__"})
CHARACTERS_PER_ENTRY = 150  # of library text for each entry of the vocabulary
SYLLABLES = tuple(first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou")


def library_texts(num_characters: int) -> Iterator[str]:
    """Source files of Python's library in a fixed order, until there is enough."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            yield text
            num_characters -= len(text)
            if num_characters <= 0:
                return


def random_words(seed: int, count: int) -> str:
    """Words that no text has, so that any vocabulary can be filled."""
    random = Random(seed)
    words = ("".join(random.choices(SYLLABLES, k=random.randint(2, 4))) for _ in range(count))
    return " ".join(words)


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A vocabulary of exactly this size; raises ValueError when the texts do not fill it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True) for text in (PADDING, TURN_START, TURN_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*library_texts(CHARACTERS_PER_ENTRY * vocab_size), random_words(seed, vocab_size)]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"{tokenizer.get_vocab_size()} entries in place of {vocab_size}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PADDING,
        chat_template=CHATML,
        model_max_length=MAX_MODEL_LEN,
        clean_up_tokenization_spaces=False,
    )


def random_model(
    shape: dict[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int, dtype: torch.dtype
) -> PreTrainedModel:
    """A Llama; its weights are drawn in float32 and rounded, so they are alike in every dtype."""
    config = LlamaConfig(**{
        **shape,
        "max_position_embeddings": MAX_MODEL_LEN,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    })  # fmt: skip
    torch.manual_seed(seed)
    auto_model: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
    model: PreTrainedModel = auto_model.from_config(config, dtype=torch.float32).to(dtype)
    model.config.dtype = dtype
    return model


def make_model(directory: Path, shape: str, seed: int, dtype: str) -> PreTrainedModel:
    """Writes the weights (safetensors), the configuration and the tokenizer."""
    tokenizer = train_tokenizer(SHAPES[shape]["vocab_size"], seed)
    model = random_model(SHAPES[shape], tokenizer, seed, getattr(torch, dtype))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Writes one model and says what it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="is made if there is none")
    parser.add_argument("--shape", choices=list(SHAPES), default="toy", help="default: toy")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    asked = parser.parse_args(argv)
    model = make_model(asked.directory, asked.shape, asked.seed, asked.dtype)
    millions = model.num_parameters() / 1e6
    print(f"{asked.directory}: {asked.shape}, {millions:.1f} M parameters, {asked.dtype}")


if __name__ == "__main__":
    main()
