"""From settings to a model that can serve: checks first, then weights, then the cache's size.

Whatever cannot work is refused here, in one sentence that names the setting and the way out.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, PagedKVCache, blocks_that_fit
from gpu_worker.paged_attention import ATTENTION
from shared.config import WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError, unloadable

logger = logging.getLogger(__name__)

# Model types whose stock code, over the paged cache, is tested to equal `generate()`.
SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# RoPE whose angles do not depend on how long the other rows are.
_ROW_INDEPENDENT_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to execute plans, and what the scheduler must know of it."""

    runner: CausalLM
    num_blocks: int
    max_model_len: int
    vocab_size: int
    end_token_ids: frozenset[int]


def load(config: WorkerConfig) -> LoadedModel:
    """Loads the model and sizes its cache, or raises FatalError."""
    device = choose_device(config.accelerator_type)
    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    model_config = _load_config(config.model.hf_model, config.model.path)
    refuse_unsupported(model_config)
    _wanted_len(model_config, config.model.max_model_len)
    model = _load_weights(config, choose_dtype(config.torch_dtype, device), device)
    return serve(model, config)


def serve(model: PreTrainedModel, config: WorkerConfig) -> LoadedModel:
    """Gives a model its cache, as large as the settings and the free memory allow."""
    geometry = _geometry(model)
    wanted_len = _wanted_len(model.config, config.model.max_model_len)
    num_rows = config.continuous_batching_batch_size
    most_useful = num_rows * -(-wanted_len // BLOCK_SIZE)
    num_blocks = blocks_that_fit(geometry, config.kv_cache_memory_fraction, most_useful)
    max_model_len = min(wanted_len, num_blocks * BLOCK_SIZE)
    _check_len(max_model_len, config.model.max_model_len)
    logger.info(
        "%s, %s on %s; KV cache: %d blocks of %d tokens, %.1f MiB; context %d tokens, %d sequences",
        model.config.model_type, model.dtype, model.device, num_blocks, BLOCK_SIZE,
        num_blocks * geometry.block_bytes / 2**20, max_model_len, num_rows,
    )  # fmt: skip
    return LoadedModel(
        runner=CausalLM(model, PagedKVCache(geometry, num_blocks), num_rows),
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        vocab_size=model.config.vocab_size,
        end_token_ids=_end_token_ids(model),
    )


def choose_device(accelerator_type: str) -> torch.device:
    """The device that was asked for; unset, a GPU if there is one."""
    has_gpu = torch.cuda.is_available()
    if accelerator_type == "cuda" and not has_gpu:
        raise FatalError(
            "--accelerator-type cuda: torch finds no CUDA GPU; use --accelerator-type cpu",
            EXIT_CONFIGURATION,
        )
    if not accelerator_type and not has_gpu:
        logger.info("no CUDA GPU found: running on the CPU")
    return torch.device(accelerator_type or ("cuda" if has_gpu else "cpu"))


def choose_dtype(torch_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that was asked for; unset or `auto`, the fastest of the device."""
    if torch_dtype not in ("", "auto"):
        dtype: torch.dtype = getattr(torch, torch_dtype)
        return dtype
    if device.type == "cuda" or torch.cpu._is_amx_tile_supported():  # bf16 matrix units
        return torch.bfloat16
    return torch.float32


def refuse_unsupported(config: PreTrainedConfig) -> None:
    """Raises FatalError for a model whose answers could be wrong here."""
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        supported = ", ".join(SUPPORTED_MODEL_TYPES)
        raise FatalError(
            f"--hf-model: model type {config.model_type!r} is not supported; one of: {supported}",
            EXIT_CONFIGURATION,
        )
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type not in _ROW_INDEPENDENT_ROPE:
        reason = f"--hf-model: RoPE type {rope_type!r} is not supported"
        raise FatalError(reason, EXIT_CONFIGURATION)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise FatalError("--hf-model: sliding windows are not supported", EXIT_CONFIGURATION)


def _load_config(hf_model: str, path: str) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise unloadable(hf_model, error) from error
    return config


def _load_weights(
    config: WorkerConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The model with all of its weights; one that lacks some would answer from random numbers."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a bar is noise in a log file
    name = config.model.hf_model
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.model.path,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=ATTENTION,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unloadable(name, error) from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    if absent := [*report["missing_keys"], *report["mismatched_keys"]]:
        reason = f"--hf-model {name}: {len(absent)} weights are missing or misshapen: {absent[0]}"
        raise FatalError(reason, EXIT_CONFIGURATION)
    model.eval()
    return model


def _geometry(model: PreTrainedModel) -> KVGeometry:
    config = model.config
    default_head_size = config.hidden_size // config.num_attention_heads
    return KVGeometry(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or default_head_size,
        dtype=model.dtype,
        device=model.device,
    )


def _wanted_len(config: PreTrainedConfig, max_model_len: int) -> int:
    longest: int = config.max_position_embeddings
    if max_model_len > longest:
        raise FatalError(
            f"--max-model-len {max_model_len}: the model's longest context is {longest} tokens",
            EXIT_CONFIGURATION,
        )
    return max_model_len or longest


def _check_len(max_model_len: int, asked: int) -> None:
    if max_model_len < max(asked, 1):
        raise FatalError(
            f"the KV cache fits {max_model_len} tokens of context: free memory, lower "
            "--max-model-len or raise --kv-cache-memory-fraction",
            EXIT_CONFIGURATION,
        )


def _end_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The generation config's end tokens, which may be none, one or several."""
    generation_config = model.generation_config
    ids = None if generation_config is None else generation_config.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or ())
