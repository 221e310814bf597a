"""The weights of a checkpoint before they are loaded: which files, whether whole, how large."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file, cached_files

from gpu_worker.memory import free_bytes
from shared.checkpoint_errors import MEND
from shared.config import ModelConfig
from shared.errors import EXIT_CONFIGURATION, FatalError

_MIB = 2**20
_FLOATS = {"F64", "F32", "F16", "BF16"}  # what loading converts; other types stay as they are
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32}
_BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}  # of any other type: 8 at most


@dataclass(frozen=True)
class Weights:
    """The weight files of a checkpoint, all of them on this machine."""

    files: tuple[Path, ...]
    is_pickle: bool

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Memory that they take once loaded; FatalError for a file that is not whole.

        Of pickles only the size on disk is known without reading them.
        """
        if self.is_pickle:
            return sum(file.stat().st_size for file in self.files)
        return sum(_safetensors_bytes(file, dtype) for file in self.files)


def find_weights(model: ModelConfig, *, allow_pickle: bool) -> Weights:
    """The safetensors of a checkpoint, else its pickles if allowed; FatalError if there are none.

    Downloads what is not on this machine. OSError as transformers raises it.
    """
    if files := _files(model.path, SAFE_WEIGHTS_NAME):
        return Weights(files, is_pickle=False)
    if allow_pickle and (files := _files(model.path, WEIGHTS_NAME)):
        return Weights(files, is_pickle=True)
    reason = f"--hf-model {model.hf_model}: it has no weights as safetensors"
    if allow_pickle:
        raise FatalError(f"{reason}, nor a {WEIGHTS_NAME}; choose another", EXIT_CONFIGURATION)
    remedy = f"--allow-pickle-weights loads a {WEIGHTS_NAME}, if you trust it"
    raise FatalError(f"{reason}; {remedy}", EXIT_CONFIGURATION)


def check_memory(weights: Weights, hf_model: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raises FatalError when the weights cannot fit beside what the device holds already."""
    needed, free = weights.num_bytes(dtype), free_bytes(device)
    if needed <= free:
        return
    remedy = "free memory or choose a smaller model"
    if dtype == torch.float32:
        remedy += ", or give --torch-dtype bfloat16"
    raise FatalError(
        f"--hf-model {hf_model}: its weights take {needed / _MIB:.0f} MiB in {dtype}, and "
        f"{device.type} has {free / _MIB:.0f} MiB free; {remedy}",
        EXIT_CONFIGURATION,
    )


def refuse_misfits(hf_model: str, report: Mapping[str, Any]) -> None:
    """Raises FatalError for weights that the files lack or have in another shape than the config.

    `report` is transformers' own of a load that let both pass: the model has random numbers there.
    """
    misfits = [
        f"{name} is {list(found)} in the files and {list(expected)} by config.json"
        for name, found, expected in sorted(report["mismatched_keys"])
    ]
    misfits += [f"{name} is missing" for name in sorted(report["missing_keys"])]
    if misfits:
        others = f" (and {len(misfits) - 1} more weights)" if len(misfits) > 1 else ""
        raise FatalError(
            f"--hf-model {hf_model}: its weights do not fit its config.json: "
            f"{misfits[0]}{others}; {MEND}",
            EXIT_CONFIGURATION,
        )


def broken_pickle(hf_model: str, weights: Weights) -> FatalError:
    """The error about pickles that torch refuses to read as weights."""
    names = ", ".join(file.name for file in weights.files)
    reason = f"{names} is broken or holds more than weights, and none of it was run"
    remedy = "choose a checkpoint with safetensors"
    return FatalError(f"--hf-model {hf_model}: {reason}; {remedy}", EXIT_CONFIGURATION)


def _files(path: str, name: str) -> tuple[Path, ...]:
    """The one file of that name, else the shards that its index lists, else none."""
    # The underscored argument is how transformers' own loaders ask without an error.
    optional: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    if whole := cached_file(path, name, **optional):
        return (Path(whole),)
    index = cached_file(path, f"{name}.index.json", **optional)
    if index is None:
        return ()
    shards = sorted(set(json.loads(Path(index).read_bytes())["weight_map"].values()))
    return tuple(map(Path, cached_files(path, shards) or ()))


def _safetensors_bytes(file: Path, dtype: torch.dtype) -> int:
    try:
        with safe_open(file, framework="pt") as tensors:
            stored = map(tensors.get_slice, tensors.keys())
            return sum(_loaded_bytes(tensor, dtype) for tensor in stored)
    except SafetensorError as error:
        reason = f"--hf-model: {file} is not whole ({error}); download it again"
        raise FatalError(reason, EXIT_CONFIGURATION) from error


def _loaded_bytes(stored: Any, dtype: torch.dtype) -> int:
    kind = stored.get_dtype()
    num_bits = dtype.itemsize * 8 if kind in _FLOATS else _BITS.get(kind, 8)
    num_values: int = math.prod(stored.get_shape())
    return num_values * num_bits // 8
