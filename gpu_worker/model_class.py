"""Which transformers class loads the model: the one that `--model-type` names, if it can serve."""

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)

from shared.errors import EXIT_CONFIGURATION, FatalError


def choose_class(asked: str, config: PreTrainedConfig) -> Any:
    """The class of that name, else the Auto class; FatalError if it cannot serve the model.

    Of a dotted path, as the predecessor had them, the last part counts.
    """
    if not asked:
        if config.model_type == "whisper":
            return AutoModelForSpeechSeq2Seq
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    found = getattr(transformers, asked.rpartition(".")[2], None)
    if not hasattr(found, "from_pretrained"):
        reason = f"transformers {transformers.__version__} has no such model class"
        raise _refusal(asked, reason)
    concrete = _concrete(found, config)
    if concrete is None or getattr(concrete, "config_class", None) is not type(config):
        raise _refusal(asked, f"it is not made for this checkpoint, a {config.model_type!r}")
    if not concrete.can_generate():
        raise _refusal(asked, "it generates no text")
    return found


def is_stock(model: PreTrainedModel) -> bool:
    """True for a class of transformers itself: the tests of its model type speak for it."""
    return type(model).__module__.startswith(f"{transformers.__name__}.models.")


def _concrete(found: Any, config: PreTrainedConfig) -> Any:
    """The class itself; of an Auto class the one that it takes for this config, or None."""
    mapping = getattr(found, "_model_mapping", None)
    if mapping is None:
        return found
    concrete = mapping.get(type(config), None)
    return concrete[0] if isinstance(concrete, tuple) else concrete


def _refusal(asked: str, reason: str) -> FatalError:
    sentence = f"--model-type {asked}: {reason}; leave the flag out to follow the checkpoint"
    return FatalError(sentence, EXIT_CONFIGURATION)
