"""Which models are served: what is tested, what is refused and why, and how long a context may be.

Every refusal is one sentence that names the model type; `docs/models.md` lists them for users.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shared.checkpoint_errors import MEND
from shared.errors import EXIT_CONFIGURATION, FatalError

# Types whose answers over the paged cache are tested to equal `generate()`'s; any other type must
# pass the self-check at start.
TESTED_MODEL_TYPES = frozenset({
    "cohere", "deepseek_v3", "gemma", "gemma2", "gemma3", "gemma3_text", "glm4", "gpt2", "gpt_neox",
    "gpt_oss", "granite", "llama", "llama4", "llama4_text", "minimax_m2", "mistral", "mixtral",
    "nemotron", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm",
    "starcoder2",
})  # fmt: skip
# Encoder-decoders whose answers over slots are tested to equal `generate()`'s; no other is served.
ENCODER_DECODERS = frozenset({"mt5", "t5", "umt5", "whisper"})
_OWN_CODE = "its attention code does not go through transformers' attention interface"
_ALIBI = "its attention adds a bias by distance (ALiBi), outside transformers' attention interface"
_RECURRENT = "it has recurrent layers, whose state is no key and value of every token"
_SPARSE = "its attention selects keys with a cache of its own"
_REFUSED = {
    _ALIBI: {"bloom", "falcon", "mpt"},
    _OWN_CODE: {
        "big_bird", "codegen", "cpmant", "gpt_neo", "gpt_neox_japanese", "gptj", "megatron-bert",
        "openai-gpt", "rembert", "roformer", "trocr", "xglm", "xlm", "xlnet",
    },
    _RECURRENT: {
        "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "jamba", "kimi_linear", "mamba",
        "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
        "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm",
        "zamba", "zamba2", "zaya",
    },
    _SPARSE: {"axk2", "deepseek_v32", "deepseek_v4", "glm_moe_dsa", "hy_v4"},
    "its layers attend twice": {"diffllama"},
    "its attention builds a mask of its own": {"doge"},
    "it runs its layers several times for a token": {"hrm_text"},
}  # fmt: skip
# What stock code calls the layers that attend through the interface.
_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
# What every decoder has at least one of, in the names of all families.
_SIZES = frozenset({
    "head_dim", "hidden_size", "n_embd", "n_head", "n_layer", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "vocab_size",
})  # fmt: skip
# RoPE whose angles follow from the position, and RoPE that `rope.py` makes follow from it.
_ROPE_TYPES = {"default", "linear", "llama3", "yarn", "proportional", "dynamic", "longrope"}


def text_config(config: PreTrainedConfig) -> Any:
    """The decoder's part of a config; of a text model's, the whole."""
    return config.get_text_config(decoder=True)


def refusal(model_type: str, reason: str) -> FatalError:
    """The error with which a model is not served."""
    return FatalError(
        f"--hf-model: model type {model_type!r} cannot be served: {reason}", EXIT_CONFIGURATION
    )


def is_tested(config: PreTrainedConfig) -> bool:
    """True when a test compares this type's answers with `generate()`'s."""
    return text_config(config).model_type in TESTED_MODEL_TYPES


def refuse_contradiction(
    config: PreTrainedConfig, architecture_type: str, serving_type: str
) -> None:
    """Raises FatalError where a flag (empty: not given) says otherwise than the checkpoint."""
    is_whisper = config.model_type == "whisper"
    actual = {
        "--architecture-type": (
            architecture_type,
            "encoder-decoder" if config.is_encoder_decoder else "decoder",
        ),
        "--serving-type": (serving_type, "whisper" if is_whisper else "chat"),
    }
    for flag, (asked, found) in actual.items():
        if asked not in ("", found):
            raise FatalError(
                f"{flag} {asked}: the checkpoint's config, of model type {config.model_type!r}, "
                f"says {found}; leave the flag out or choose another --hf-model",
                EXIT_CONFIGURATION,
            )


def refuse_impossible_sizes(hf_model: str, stated: Mapping[str, Any]) -> None:
    """Raises FatalError for a config.json that has none of what a decoder is made of.

    `stated` is the file as it is: transformers divides by some of these before it looks at them.
    """
    nested = stated.get("text_config")
    for part in (stated, nested if isinstance(nested, dict) else {}):
        for name in _SIZES & part.keys():
            if isinstance(part[name], int) and part[name] < 1:
                reason = f"{name} is {part[name]} in its config.json, and must be at least 1"
                raise FatalError(f"--hf-model {hf_model}: {reason}; {MEND}", EXIT_CONFIGURATION)


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raises FatalError for a model whose config says that it cannot be served rightly."""
    reason = _reason_against(config)
    if reason is not None:
        raise refusal(config.model_type, reason)


def longest_context(config: PreTrainedConfig, asked: int) -> int:
    """Tokens that the model is made for; `asked` (0: nothing was) counts if it does not say."""
    text = text_config(config)
    longest = getattr(text, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        if not asked:
            reason = "its config names no longest context; give --max-model-len"
            raise refusal(text.model_type, reason)
        return asked
    factors = [
        rope.get("factor", 1.0)
        for rope in rope_parameters(text)
        if rope.get("rope_type") == "dynamic"
    ]
    return int(longest * max(factors, default=1.0))


def rope_parameters(text: Any) -> Iterator[dict[str, Any]]:
    """Every set of RoPE parameters of a decoder's config: one, one a layer type, or none."""
    parameters = getattr(text, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (nested for nested in parameters.values() if isinstance(nested, dict))


def _reason_against(config: PreTrainedConfig) -> str | None:
    text = text_config(config)
    if config.is_encoder_decoder:
        served = ", ".join(sorted(ENCODER_DECODERS))
        is_served = config.model_type in ENCODER_DECODERS
        return None if is_served else f"of encoder-decoders only {served} are served"
    for model_type in (config.model_type, text.model_type):
        for reason, model_types in _REFUSED.items():
            if model_type in model_types:
                return reason
    brings_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not brings_code and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "transformers has no text generator (AutoModelForCausalLM) for it"
    return _reason_against_layers(text) or _reason_against_rope(text)


def _reason_against_layers(text: Any) -> str | None:
    layer_types = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    for layer_type in layer_types or ():
        if layer_type not in _ATTENTION_LAYERS:
            return f"it has layers of type {layer_type!r}, and only attention layers are served"
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return "its attention looks ahead: it makes embeddings, not text"
    return None


def _reason_against_rope(text: Any) -> str | None:
    for parameters in rope_parameters(text):
        if (rope_type := parameters.get("rope_type", "default")) not in _ROPE_TYPES:
            return f"its RoPE type {rope_type!r} is not known to be independent of other rows"
    return None
