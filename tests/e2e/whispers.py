"""A Whisper of random weights with a vocabulary of its own: bytes, and the real control tokens."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SECONDS = 2  # of a window
NUM_POSITIONS = 50 * SECONDS
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>",
    "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
SUPPRESSED = [*(name for name in SPECIAL if name != "<|endoftext|>"), "Ġ"]  # no blank segments
TIMES = [f"<|{number * 0.02:.2f}|>" for number in range(NUM_POSITIONS + 1)]


def save_whisper(path: Path) -> Path:
    """A checkpoint of two languages, whose windows are two seconds long."""
    tokenizer = _tokenizer()
    vocabulary = tokenizer.get_vocab()
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=80,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=NUM_POSITIONS,
        max_target_positions=64,
        pad_token_id=vocabulary["<|endoftext|>"],
        bos_token_id=vocabulary["<|endoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(11)
    model = WhisperForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name and "embed_positions" not in name:
            parameter.data.normal_(0, 0.12)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS).save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps(_generation(vocabulary)))
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    backend.add_tokens([AddedToken(name, special=False) for name in TIMES])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def _generation(vocabulary: dict[str, int]) -> dict[str, object]:
    """As the real ones are."""
    return {
        "is_multilingual": True,
        "decoder_start_token_id": vocabulary["<|startoftranscript|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "no_timestamps_token_id": vocabulary["<|notimestamps|>"],
        "max_initial_timestamp_index": 50,
        "lang_to_id": {f"<|{code}|>": vocabulary[f"<|{code}|>"] for code in ("en", "de")},
        "task_to_id": {name: vocabulary[f"<|{name}|>"] for name in ("translate", "transcribe")},
        "suppress_tokens": [vocabulary[name] for name in SUPPRESSED],
        "begin_suppress_tokens": [vocabulary["Ġ"], vocabulary["<|endoftext|>"]],
    }
