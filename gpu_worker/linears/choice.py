"""Which linear layers a model is served with: quantised if asked for, others packed on a CPU."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from gpu_worker.cpu_kernels.build import BuildError, default_cache_directory
from gpu_worker.cpu_kernels.linear import NativeLinears, load_linears
from gpu_worker.linears.fused import fuse
from gpu_worker.linears.int4 import Int4
from gpu_worker.linears.int8 import Int8
from gpu_worker.linears.native import NativeLinear
from gpu_worker.linears.packed import pack_linears
from gpu_worker.linears.quantization import Quantization, quantize_linears
from gpu_worker.linears.weight_cache import WeightCache, cache_path
from shared.config import WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError

_ALWAYS_EDITED = frozenset({"whisper"})  # types of models some of whose logits are always masked


class Pack(Protocol):
    """Packs a model's dense layers for the CPU."""

    def __call__(self, model: PreTrainedModel, *, library: NativeLinears | None) -> object:
        """By the native library where that is better and there is one."""


def _say_nothing(_stage: str) -> None:
    """For those whom nobody watches."""


def settle_linears(
    model: PreTrainedModel,
    config: WorkerConfig,
    files: Iterable[Path] = (),
    *,
    pack: Pack = pack_linears,
    report: Callable[[str], None] = _say_nothing,
) -> str:
    """Replaces what the settings and the device say, and returns the weights' precision in words.

    `files` are the checkpoint's weights: with them, quantised weights are kept on disk. `pack` is
    for what stays dense. `report` is told what takes long.
    """
    precision = str(model.dtype).removeprefix("torch.")
    quantization = _quantization(model, config)
    if quantization is not None:
        report(f"making {quantization.name} weights")
        quantize_linears(model, quantization, _cache(config, files, quantization))
        precision = f"{quantization.name}, others {precision}"
    if model.device.type == "cpu" and config.cpu_kernels:
        pack(model, library=load_linears(cache_directory(config)))
    fuse(model)
    _settle_head(model)
    return precision


def _settle_head(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if isinstance(head, NativeLinear):
        head.become_head(is_screened=model.config.model_type not in _ALWAYS_EDITED)


def refuse_misplaced(config: WorkerConfig, device: torch.device) -> None:
    """FatalError for a quantization that the device does not have."""
    if config.quantization == "int8" and device.type != "cpu":
        raise FatalError(
            "--quantization int8 is for the CPU: give --hqq, or --accelerator-type cpu",
            EXIT_CONFIGURATION,
        )


def cache_directory(config: WorkerConfig) -> Path | None:
    """Where what is slow to make is kept; None: where the default is."""
    chosen = config.cpu_kernels_directory
    return Path(chosen).expanduser() if chosen else None


def _quantization(model: PreTrainedModel, config: WorkerConfig) -> Quantization | None:
    if config.hqq:
        return Int4(model, cache_directory(config), is_native=config.cpu_kernels)
    if config.quantization == "int8":
        return Int8(cache_directory(config), is_native=config.cpu_kernels)
    return None


def _cache(
    config: WorkerConfig, files: Iterable[Path], quantization: Quantization
) -> WeightCache | None:
    files = tuple(files)
    if not files:
        return None
    try:
        directory = cache_directory(config) or default_cache_directory()
    except BuildError:  # a user without a home directory; the kernels' log line says so
        return None
    return WeightCache(cache_path(directory, files, quantization.settings))
