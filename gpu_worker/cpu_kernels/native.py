"""The kernels as Python sees them: a shared library called through plain structures of addresses.

The structures mirror those of `paged_attention.cpp`, field by field.
"""

import ctypes
import logging
import platform
from pathlib import Path

import torch

from gpu_worker.cpu_kernels.build import CPU_FLAGS, BuildError, build, default_cache_directory

logger = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
# Numbers of `Type` in the C++ file.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_address, _integer, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Pool(ctypes.Structure):
    """One layer's keys [blocks, Hkv, Dk, 16] and values [blocks, Hkv, 16, Dv]."""

    _fields_ = (
        ("keys", _address),
        ("values", _address),
        ("type", _integer),
        ("num_kv_heads", _integer),
        ("key_size", _integer),
        ("value_size", _integer),
    )


class Spans(ctypes.Structure):
    """The sequences of a step: int64 arrays, and int32 block numbers."""

    _fields_ = (
        ("num_spans", _integer),
        ("starts", _address),
        ("lengths", _address),
        ("contexts", _address),
        ("tables", _address),
        ("blocks", _address),
        ("num_threads", _integer),
    )


class Call(ctypes.Structure):
    """One layer's share of a step; queries, keys and values as address, head and token stride."""

    _fields_ = (
        ("query", _address),
        ("query_head_stride", _integer),
        ("query_token_stride", _integer),
        ("key", _address),
        ("key_head_stride", _integer),
        ("key_token_stride", _integer),
        ("value", _address),
        ("value_head_stride", _integer),
        ("value_token_stride", _integer),
        ("output", _address),
        ("type", _integer),
        ("num_heads", _integer),
        ("scaling", _real),
        ("softcap", _real),
        ("window", _integer),
        ("chunk", _integer),
        ("sinks", _address),
    )


class Kernels:
    """The loaded library."""

    def __init__(self, library: Path) -> None:
        self._attend = ctypes.CDLL(str(library)).paged_attention
        self._attend.argtypes = [ctypes.POINTER(structure) for structure in (Pool, Spans, Call)]
        self._attend.restype = ctypes.c_int64

    def paged_attention(self, pool: Pool, spans: Spans, call: Call) -> int:
        """Writes the step's keys and values, attends; returns how many tokens were written."""
        num_written: int = self._attend(pool, spans, call)
        return num_written


def load_kernels(cache_directory: Path | None = None) -> Kernels | None:
    """The kernels, or None where they cannot be; either way one log line says so."""
    try:
        _refuse_machine(platform.machine(), CPU_INFO)
        library = build(cache_directory or default_cache_directory())
        kernels = Kernels(library)
    except BuildError as error:
        reason: object = error
    except OSError as error:  # the loader: no OpenMP runtime whose symbols it finds
        reason = f"the built kernels do not load: {error}"
    else:
        logger.info("CPU attention: native kernels, %s", library)
        return kernels
    logger.warning("CPU attention: plain torch, slower from batch 8 on, because %s", reason)
    return None


def _refuse_machine(machine: str, cpu_info: Path) -> None:
    """Raises BuildError unless this processor runs what the kernels are compiled for."""
    if machine.lower() not in ("x86_64", "amd64"):
        raise BuildError(f"the kernels are for x86-64 and this machine is {machine}")
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BuildError(f"the processor's abilities are unknown: {error}") from error
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    if missing := [flag for flag in CPU_FLAGS if flag not in flags]:
        raise BuildError(f"the processor has no {missing[0]}")
