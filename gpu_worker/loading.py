"""From settings to a model that can serve: checks first, then weights, then the cache's size.

Whatever cannot work is refused here, in one sentence that names the setting and the way out.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from gpu_worker.architectures import (
    is_tested,
    longest_context,
    refuse_contradiction,
    refuse_impossible_sizes,
    refuse_unsupported,
    text_config,
)
from gpu_worker.attention.choice import in_words, make_backend
from gpu_worker.checkpoint import (
    Weights,
    broken_pickle,
    check_memory,
    find_weights,
    refuse_misfits,
)
from gpu_worker.compiled import refuse_missing_tools
from gpu_worker.cuda_graphs import CudaGraphDevice
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.linears.choice import refuse_misplaced, settle_linears
from gpu_worker.loaded import Cache, LoadedModel
from gpu_worker.model_class import choose_class, is_stock
from gpu_worker.paged_attention import ATTENTION, unbind
from gpu_worker.probe import ModelUse, probe
from gpu_worker.rope import SequenceAngles
from gpu_worker.self_check import SelfCheck
from gpu_worker.sizing import (
    LENGTHS_ARE_FOR,
    CacheSize,
    activation_bytes,
    lengths_without_effect,
    num_blocks_of,
    probe_plan,
    scoring,
    size_cache,
    wanted_context,
)
from gpu_worker.slot_attention import SLOT_ATTENTION
from gpu_worker.slot_loading import serve_slots
from gpu_worker.threads import default_threads
from shared.checkpoint_errors import unloadable
from shared.config import ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)


def _say_nothing(_stage: str) -> None:
    """For those whom nobody watches."""


def load(config: WorkerConfig, report: Callable[[str], None] = _say_nothing) -> LoadedModel:
    """Loads the model and sizes its cache, or raises FatalError; `report` is told each stage."""
    device = choose_device(config.accelerator_type)
    if device.type == "cpu":
        torch.set_num_threads(config.cpu_threads or default_threads())
    if config.torch_compile:
        refuse_missing_tools(device)
    refuse_misplaced(config, device)
    model_config = _load_config(config.model)
    refuse_contradiction(model_config, config.architecture_type, config.serving_type)
    refuse_unsupported(model_config)
    model_class = choose_class(config.model_type, model_config)
    has_encoder = model_config.is_encoder_decoder
    hears = model_config.model_type == "whisper"
    for flag in lengths_without_effect(config, has_encoder=has_encoder, hears=hears):
        logger.warning("%s has no effect: %s", flag, LENGTHS_ARE_FOR)
    if has_encoder and config.overlap == "on":
        logger.warning("--overlap on has no effect: an encoder-decoder's steps wait for each other")
    if not has_encoder:
        wanted_context(config, longest_context(model_config, config.model.max_model_len))
    dtype = choose_dtype(config.torch_dtype, device)
    is_local = Path(config.model.path).is_dir()
    report("loading the weights" if is_local else "fetching and loading the weights")
    model, files = _load_weights(config, model_class, dtype, device, slots=has_encoder)
    if has_encoder:
        ends, name = _end_token_ids(model), _described(device)
        return serve_slots(
            model, config, files, end_token_ids=ends, device_name=name, report=report
        )
    return serve(model, config, report, files)


def serve(
    model: PreTrainedModel,
    config: WorkerConfig,
    report: Callable[[str], None] = _say_nothing,
    files: tuple[Path, ...] = (),
) -> LoadedModel:
    """Gives a model its cache, as large as the settings and the free memory allow.

    `files` are those of its weights, by which quantised ones are found again.
    """
    use, angles = _examined(model)
    precision = settle_linears(model, config, files, report=report)
    report("sizing the KV cache")

    def runner(num_blocks: int, max_model_len: int) -> CausalLM:
        backend = make_backend(use, config, num_blocks=num_blocks, max_model_len=max_model_len)
        return CausalLM(model, backend, config.continuous_batching_batch_size, angles)

    longest = longest_context(model.config, config.model.max_model_len)
    size = size_cache(
        use.geometry,
        config,
        longest,
        reserved_bytes=_forward_bytes(model, runner, config, wanted_context(config, longest)),
    )
    logger.info(
        "%s, %s on %s; %s",
        model.config.model_type, model.dtype, _described(model.device), size.reason,
    )  # fmt: skip
    causal_lm = runner(size.num_blocks, size.max_model_len)
    if config.torch_compile:
        causal_lm.compile(config.torch_compile_mode, report)
    if use.device.type == "cuda" and config.cuda_graphs:
        report("capturing CUDA graphs")
        causal_lm.capture(CudaGraphDevice())
    num_rows = config.continuous_batching_batch_size
    return LoadedModel(
        runner=causal_lm,
        cache=Cache(size.num_blocks, BLOCK_SIZE, num_rows),
        max_model_len=size.max_model_len,
        vocab_size=text_config(model.config).vocab_size,
        end_token_ids=_end_token_ids(model),
        rope_class=angles.prefix_class,
        details=_details(model, causal_lm, size, config, precision),
        state_size=use.state_size,
        times=causal_lm.times,
        overlaps=overlaps(config, use.device),
    )


def _details(
    model: PreTrainedModel,
    runner: CausalLM,
    size: CacheSize,
    config: WorkerConfig,
    precision: str,
) -> dict[str, str]:
    return {
        "model_type": str(model.config.model_type),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": precision,
        "device": _described(model.device),
        "attention": in_words(runner.backend),
        "kv_cache": size.reason,
        "num_blocks": str(size.num_blocks),
        "num_rows": str(config.continuous_batching_batch_size),
    }


def _examined(model: PreTrainedModel) -> tuple[ModelUse, SequenceAngles]:
    """What the model asks of attention, after all that makes its rows independent of each other."""
    use = probe(model)
    if is_tested(model.config) and is_stock(model):
        return use, SequenceAngles(model)
    check = SelfCheck(model, use)
    angles = SequenceAngles(model)
    error = check.run(angles)
    logger.info(
        "model type %r has no test of its own as %s; its logits over the paged cache equal its "
        "stock ones (relative error %.1g)", model.config.model_type, type(model).__name__, error,
    )  # fmt: skip
    return use, angles


def _forward_bytes(
    model: PreTrainedModel,
    runner: Callable[[int, int], CausalLM],
    config: WorkerConfig,
    context: int,
) -> int:
    """Memory that the largest step takes beside weights and cache; measured on a GPU, else 0."""
    if model.device.type != "cuda":
        return 0
    num_rows, num_tokens = config.continuous_batching_batch_size, config.max_num_batched_tokens
    plan = probe_plan(num_rows, num_tokens, context)
    small = runner(num_blocks_of(plan), num_tokens)
    num_bytes = activation_bytes(small.execute, (plan, scoring(plan)), model.device)
    unbind(model)  # the small cache is free memory as soon as nobody holds it
    return num_bytes


def _described(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu (threads: {torch.get_num_threads()})"
    return str(torch.cuda.get_device_name(device))


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


def overlaps(config: WorkerConfig, device: torch.device) -> bool:
    """Whether a decoder's steps are launched ahead: as asked, else where a device works apart."""
    return config.overlap == "on" or (config.overlap == "auto" and device.type == "cuda")


def choose_dtype(torch_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that was asked for; unset or `auto`, the fastest of the device."""
    if torch_dtype not in ("", "auto"):
        dtype: torch.dtype = getattr(torch, torch_dtype)
        return dtype
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _load_config(model: ModelConfig) -> PreTrainedConfig:
    try:
        stated, _ = PreTrainedConfig.get_config_dict(model.path)
        refuse_impossible_sizes(model.hf_model, stated)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            model.path, trust_remote_code=model.trust_remote_code
        )
    except FatalError:
        raise
    except Exception as error:  # what transformers raises over a foreign config is anything
        raise unloadable(model.hf_model, error) from error
    return config


def _load_weights(
    config: WorkerConfig,
    model_class: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    slots: bool,
) -> tuple[PreTrainedModel, tuple[Path, ...]]:
    """The model with all of its weights, and their files.

    A model that lacks some would answer from random numbers.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a bar is noise in a log file
    name = config.model.hf_model
    try:
        weights = find_weights(config.model, allow_pickle=config.allow_pickle_weights)
        check_memory(weights, name, dtype, device)
        attention = SLOT_ATTENTION if slots else ATTENTION
        loaded = _from_pretrained(config, model_class, weights, attention, dtype, device)
    except (FatalError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a foreign checkpoint makes transformers raise is anything
        raise unloadable(name, error) from error
    model: PreTrainedModel = loaded[0]
    refuse_misfits(name, loaded[1])
    model.eval()
    return model, weights.files


def _from_pretrained(
    config: WorkerConfig,
    model_class: Any,
    weights: Weights,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The model, and the report of what was missing; a pickle is read as data, never run."""
    try:
        return model_class.from_pretrained(
            config.model.path,
            trust_remote_code=config.model.trust_remote_code,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            use_safetensors=not weights.is_pickle,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
        )
    except Exception as error:
        if weights.is_pickle:  # what reading a foreign pickle raises is anything
            raise broken_pickle(config.model.hf_model, weights) from error
        raise


def _end_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The generation config's end tokens, which may be none, one or several.

    What is no token of the model can end nothing and is dropped; the log says so.
    """
    generation_config, text = model.generation_config, text_config(model.config)
    stated = None if generation_config is None else generation_config.eos_token_id
    if stated is None:
        stated = text.eos_token_id
    ids = stated if isinstance(stated, list | tuple) else [stated]
    ends = [i for i in ids if type(i) is int and 0 <= i < text.vocab_size]
    for dropped in (i for i in ids if i is not None and i not in ends):
        logger.warning("the model's end token %r is not used: it has no such token", dropped)
    return frozenset(ends)
