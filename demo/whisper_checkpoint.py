"""The Whisper's folder: the weights, the tokenizer, the feature extractor and the rules."""

from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from demo.whisper_tokenizer import (
    CONTROLS,
    END,
    LANGUAGES,
    NO_TIMES,
    NUM_MARKS,
    PREVIOUS,
    START,
    TASKS,
)


def save_whisper(
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    extractor: WhisperFeatureExtractor,
    folder: Path,
) -> None:
    """Write all that a server and transformers read; the weights become bfloat16."""
    model.generation_config = GenerationConfig(**generation_rules(tokenizer))
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)


def generation_rules(tokenizer: WhisperTokenizer) -> dict[str, Any]:
    """How answers are written, by the names that Whisper's checkpoints have for it."""
    ids = tokenizer.get_vocab()
    return {
        "is_multilingual": True,
        "do_sample": False,
        "max_length": 128,
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
        "pad_token_id": ids[END],
        "decoder_start_token_id": ids[START],
        "prev_sot_token_id": ids[PREVIOUS],
        "no_timestamps_token_id": ids[NO_TIMES],
        "lang_to_id": {name: ids[name] for name in LANGUAGES},
        "task_to_id": {task: ids[name] for task, name in TASKS.items()},
        "suppress_tokens": [ids[name] for name in CONTROLS if name != NO_TIMES],
        # Not the end, as it is with Whisper's own: where nobody speaks the answer may be empty.
        "begin_suppress_tokens": [ids["Ġ"]],
        "max_initial_timestamp_index": NUM_MARKS,  # a cut may leave any pause before the speech
        "alignment_heads": [[0, 0]],  # until they are chosen
        "return_timestamps": False,
    }
