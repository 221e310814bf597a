"""The native kernels for tests that need them, which are skipped where there are none."""

from functools import cache

import pytest
import torch

from gpu_worker.attention.cpu_paged import CpuPagedAttention
from gpu_worker.cpu_kernels.attention import Kernels, load_kernels
from tests.gpu_worker.paged_steps import NUM_BLOCKS, Shape


@cache
def _kernels() -> Kernels | None:
    return load_kernels()


def kernels() -> Kernels:
    """The library, built at the first call on a machine."""
    loaded = _kernels()
    if loaded is None:
        pytest.skip("needs a C++ compiler and AVX-512")
    return loaded


def native_backend(
    shape: Shape, dtype: torch.dtype = torch.float32, num_blocks: int = NUM_BLOCKS
) -> CpuPagedAttention:
    """The backend of a model of one layer."""
    return CpuPagedAttention(kernels(), shape.geometry(dtype), num_blocks)
