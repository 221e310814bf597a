"""From an encoder-decoder and the settings to one that can serve: its lengths, then its slots."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from gpu_worker.families import t5, whisper
from gpu_worker.families.adapter import Adapter
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.intake import EncoderLimits
from gpu_worker.linears.choice import settle_linears
from gpu_worker.linears.packed import pack_linears
from gpu_worker.loaded import Cache, LoadedModel
from gpu_worker.memory import free_bytes
from gpu_worker.pooling import POOLS_MEAN
from gpu_worker.sizing import CPU_FRACTION, GPU_FRACTION
from gpu_worker.slot_cache import SlotCache, SlotGeometry
from gpu_worker.texts import text_of
from gpu_worker.transcription import Transcripts
from shared.config import WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)

_MIB = 2**20

MakeAdapter = Callable[[PreTrainedModel, SlotCache], Adapter]


def serve_slots(
    model: PreTrainedModel,
    config: WorkerConfig,
    files: tuple[Path, ...] = (),
    *,
    end_token_ids: frozenset[int],
    device_name: str,
    report: Callable[[str], None],
) -> LoadedModel:
    """Gives an encoder-decoder its slots, or raises FatalError."""
    report("sizing the KV cache")
    family = _whisper if model.config.model_type == "whisper" else _t5
    size, make_adapter, encoder = family(model, config)
    hears = encoder.num_feature_bytes > 0
    precision = settle_linears(
        model, config, files, pack=whisper.pack if hears else pack_linears, report=report
    )
    num_slots, reason = num_slots_of(size, config)
    logger.info(
        "%s, %s on %s; %s", model.config.model_type, model.dtype, device_name, reason
    )  # fmt: skip
    cache = SlotCache(size, num_slots)
    adapter = make_adapter(model, cache)
    transcripts = Transcripts(num_slots, adapter.vocab_size, model.device) if hears else None
    runner = EncoderDecoder(adapter, cache, num_slots, transcripts)
    if config.torch_compile:
        runner.compile(config.torch_compile_mode, report)
    return LoadedModel(
        runner=runner,
        cache=Cache(num_slots, size.max_decoder_len, num_slots, rows_are_slots=True),
        max_model_len=size.max_decoder_len,
        vocab_size=model.config.vocab_size,
        end_token_ids=end_token_ids,
        rope_class=_one_class,
        details={
            "model_type": str(model.config.model_type),
            "dtype": str(model.dtype).removeprefix("torch."),
            "weights": precision,
            "device": device_name,
            "attention": "torch's own, over slots",
            "kv_cache": reason,
            "num_rows": str(num_slots),
        },
        state_size=0 if hears else int(model.config.hidden_size),
        pooling=POOLS_MEAN,
        encoder=encoder,
        times=runner.times,
    )


def _t5(
    model: PreTrainedModel, config: WorkerConfig
) -> tuple[SlotGeometry, MakeAdapter, EncoderLimits]:
    max_encoder_len, max_decoder_len = lengths(model.config, config)
    size = t5.geometry(model, max_decoder_len=max_decoder_len, max_encoder_len=max_encoder_len)
    return size, t5.T5, EncoderLimits(max_encoder_len, _start_token_ids(model))


def _whisper(
    model: PreTrainedModel, config: WorkerConfig
) -> tuple[SlotGeometry, MakeAdapter, EncoderLimits]:
    """Its windows and answers have the lengths that it was made with, whatever flags say."""
    size = whisper.geometry(model)
    num_bytes = whisper.feature_bytes(model.config)
    texts = text_of(config.identity.run_directory)
    return size, whisper.Whisper, EncoderLimits(size.max_encoder_len, (), num_bytes, texts)


def lengths(model_config: PreTrainedConfig, config: WorkerConfig) -> tuple[int, int]:
    """Most tokens of an encoder's input and of an answer.

    T5 has no positions that could run out: what it was trained with is the default.
    """
    if config.static_cache:
        return config.static_cache_encoder_max_length, config.static_cache_decoder_max_length
    trained = t5.trained_length(model_config)
    return config.max_encoder_len or trained, config.model.max_model_len or trained


def num_slots_of(geometry: SlotGeometry, config: WorkerConfig) -> tuple[int, str]:
    """How many slots there are, and why, in a sentence for the log."""
    is_gpu = geometry.device.type == "cuda"
    fraction = config.kv_cache_memory_fraction or (GPU_FRACTION if is_gpu else CPU_FRACTION)
    free = free_bytes(geometry.device)
    wanted = config.continuous_batching_batch_size
    num_slots = min(wanted, int(free * fraction) // geometry.bytes_per_slot)
    mebibytes = geometry.bytes_per_slot / _MIB
    reason = (
        f"KV cache: {num_slots} slots of {geometry.max_encoder_len} + {geometry.max_decoder_len} "
        f"tokens, {mebibytes:.1f} MiB each"
    )
    if num_slots == wanted:
        return num_slots, reason
    explanation = f"{100 * fraction:.3g}% of {free / _MIB:.0f} MiB of free memory"
    if num_slots and not config.static_cache:
        return num_slots, f"{reason}, as many as {explanation} hold"
    raise FatalError(
        f"the KV cache needs {mebibytes:.1f} MiB for each of {wanted} sequences, and there is "
        f"{explanation}: lower --continuous-batching-batch-size, --max-encoder-len or "
        "--max-model-len (under --static-cache its lengths), or raise --kv-cache-memory-fraction",
        EXIT_CONFIGURATION,
    )


def _start_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """What every answer begins with, unseen."""
    generation_config: Any = model.generation_config
    start = getattr(generation_config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if not isinstance(start, int) or not 0 <= start < model.config.vocab_size:
        raise FatalError(
            f"--hf-model: the model's decoder_start_token_id is {start!r} and must be one of its "
            "tokens; correct its generation_config.json",
            EXIT_CONFIGURATION,
        )
    return (start,)


def _one_class(_: int) -> str:
    return ""
