"""A Whisper of random weights in the tiny one's geometry, its windows and what they may answer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from shared.sampling import TranscriptRules

NUM_BINS, NUM_FRAMES, NUM_POSITIONS = 80, 3000, 1500
WINDOW_SECONDS = 30
NUM_TEXT_TOKENS = 50257
VOCAB_SIZE = 51865
END, START, ENGLISH, TRANSCRIBE = 50257, 50258, 50259, 50359
NO_SPEECH, NO_TIMES, FIRST_TIME = 50362, 50363, 50364
BLANK = 220
MAX_FIRST_TIME = 50
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_mel_bins": NUM_BINS,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "max_source_positions": NUM_POSITIONS,
    "max_target_positions": 448,
    "pad_token_id": END,
    "bos_token_id": END,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
# The end is among them: every answer has its full length.
SUPPRESSED = (*range(1, 90), END, START, *range(ENGLISH, FIRST_TIME))
RULES = TranscriptRules(
    heads=((ENGLISH,), (TRANSCRIBE,)),
    end_token_id=END,
    suppressed=SUPPRESSED,
    suppressed_at_first=(BLANK, END),
    no_speech_id=NO_SPEECH,
    first_time_id=FIRST_TIME,
    max_first_time=MAX_FIRST_TIME,
)


def make_model() -> Any:
    """Always with the same weights, whose answers depend on the sound."""
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**TINY)).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name and "encoder.embed_positions" not in name:
            parameter.data.normal_(0, 0.05)
    return model


def make_features(num_windows: int) -> np.ndarray:
    """Windows of noise as log-mel spectrograms, [windows, bins, frames] float32."""
    noise = np.random.default_rng(0).normal(size=(num_windows, NUM_BINS, NUM_FRAMES))
    return noise.astype(np.float32)


def save_checkpoint(path: Path) -> None:
    """The model as transformers reads it, with a vocabulary that has the real control tokens."""
    model = make_model()
    model.generation_config = GenerationConfig(
        suppress_tokens=[], begin_suppress_tokens=[BLANK, END], lang_to_id={"<|en|>": ENGLISH}
    )
    model.save_pretrained(path)
    _tokenizer().save_pretrained(path)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {f"word{number}": number for number in range(NUM_TEXT_TOKENS)}
    del words[f"word{BLANK}"]
    words["Ġ"] = BLANK  # which the peer's rules look up by name
    backend = Tokenizer(models.WordLevel(words, unk_token="word0"))
    languages = [f"<|language{number}|>" for number in range(1, 99)]
    backend.add_special_tokens(
        [
            AddedToken(name, special=True)
            for name in (
                "<|endoftext|>", "<|startoftranscript|>", "<|en|>", *languages, "<|translate|>",
                "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
                "<|notimestamps|>",
            )
        ]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
    )
