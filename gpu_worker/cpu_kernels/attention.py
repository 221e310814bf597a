"""Paged attention as Python sees it: a shared library called through plain structures of addresses.

The structures mirror those of `paged_attention.cpp`, field by field.
"""

import ctypes
from enum import IntEnum
from pathlib import Path

import torch

from gpu_worker.cpu_kernels.build import PAGED_ATTENTION
from gpu_worker.cpu_kernels.loading import load_library

# Numbers of `Type` in the C++ file.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_WITHOUT = "CPU attention: plain torch, slower from batch 8 on, because"
_address, _integer, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Unit(IntEnum):
    """What computes attention, as the C++ file numbers it; each but the first can do less."""

    VECTORS = 0
    PAIR_PRODUCTS = 1
    MATRIX = 2


class Pool(ctypes.Structure):
    """One layer's keys and values, in one of the two layouts that the C++ file describes."""

    _fields_ = (
        ("keys", _address),
        ("values", _address),
        ("type", _integer),
        ("num_kv_heads", _integer),
        ("key_size", _integer),
        ("value_size", _integer),
        ("unit", _integer),
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

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = library.paged_attention
        self._attend.argtypes = [ctypes.POINTER(structure) for structure in (Pool, Spans, Call)]
        self._attend.restype = _integer
        self._best_unit = library.best_unit
        self._best_unit.argtypes = [_integer] * 3
        self._best_unit.restype = _integer

    def best_unit(self, dtype: torch.dtype, key_size: int, value_size: int) -> Unit:
        """What computes heads of this precision and these sizes fastest on this machine."""
        return Unit(self._best_unit(TYPES[dtype], key_size, value_size))

    def paged_attention(self, pool: Pool, spans: Spans, call: Call) -> int:
        """Writes the step's keys and values, attends; returns how many tokens were written."""
        num_written: int = self._attend(pool, spans, call)
        return num_written


def load_kernels(cache_directory: Path | None = None) -> Kernels | None:
    """The kernels, or None where they cannot be; either way one log line says so."""
    library = load_library(PAGED_ATTENTION, cache_directory, "CPU attention", _WITHOUT)
    return None if library is None else Kernels(library)
