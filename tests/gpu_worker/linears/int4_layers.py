"""Random 4-bit layers, native and in torch, for tests of either."""

import ctypes
from typing import Any

import pytest
import torch
from torch.nn import functional

from gpu_worker.cpu_kernels.int4 import load_int4
from gpu_worker.linears.hqq_numbers import GROUP
from gpu_worker.linears.int4_cpu import NativeInt4Linear, TorchInt4Linear
from gpu_worker.linears.int4_weight import Int4Weight


def library() -> ctypes.CDLL:
    """The native one, built at the first call on a machine."""
    loaded = load_int4()
    if loaded is None:
        pytest.skip("needs a C++ compiler and AVX512-VNNI")
    return loaded


def random_weight(num_outputs: int, num_inputs: int) -> Int4Weight:
    """Any numbers, with scales of both sizes and zeros that are no whole numbers."""
    num_groups = -(-num_inputs // GROUP)
    numbers = torch.randint(0, 16, (num_outputs, num_groups * GROUP), dtype=torch.uint8)
    scales = torch.rand(num_outputs, num_groups).mul(0.02).add(0.001).half()
    zeros = torch.rand(num_outputs, num_groups).mul(30).sub(8).half()
    return Int4Weight.of(numbers, scales, zeros)


def random_bias(num_outputs: int, dtype: torch.dtype) -> torch.Tensor:
    """Large enough to be missed."""
    return torch.randn(num_outputs, dtype=dtype)


def native(
    weight: Int4Weight,
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    bias: torch.Tensor | None = None,
    **options: Any,
) -> NativeInt4Linear:
    """The native layer; skips where there is none."""
    return NativeInt4Linear(library(), weight, shape, dtype, bias, **options)


def in_torch(
    weight: Int4Weight,
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    bias: torch.Tensor | None = None,
    **options: Any,
) -> TorchInt4Linear:
    """By torch's own kernel."""
    return TorchInt4Linear(weight, shape, dtype, bias, **options)


def expected_output(
    weight: Int4Weight, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """What the native layer makes of rows [M, K], in plain torch and float64."""
    largest = x.float().abs().amax(1, keepdim=True)
    # Rounded once: torch divides a plain 127 by way of the reciprocal.
    factor = torch.where(largest == 0, 0, torch.full_like(largest, 127) / largest)
    integers = (x.float() * factor).round().double()
    num_groups = weight.scales.shape[1]
    missing = num_groups * GROUP - x.shape[1]
    grouped = functional.pad(integers, (0, missing)).view(len(x), num_groups, GROUP)
    numbers = weight.numbers().view(-1, num_groups, GROUP).double()
    products = torch.einsum("mgk,ngk->mng", grouped, numbers)
    off = grouped.sum(2)[:, None] * weight.zeros.double()
    output = ((products - off) * weight.scales.double()).sum(2) * largest.double() / 127
    return output if bias is None else output + bias.double()
