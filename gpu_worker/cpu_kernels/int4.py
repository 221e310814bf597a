"""Linear layers of 4-bit numbers by native code (`int4_linear.cpp`)."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from gpu_worker.cpu_kernels.attention import TYPES
from gpu_worker.cpu_kernels.build import INT4_LINEAR
from gpu_worker.cpu_kernels.loading import load_library
from gpu_worker.cpu_kernels.products import ADDRESS, INTEGER, Product

GROUP = 64  # inputs that share a scale and a zero
_OUTPUTS = 32  # of a block
_QUADS = GROUP // 4
_NUMBER_BYTES = _QUADS * 64  # of a block's group; scales and zeros come after
_WITHOUT = "int4 linear layers: torch's own, slower from batch 8 on, because"


class Int4Blocks:
    """A weight in the kernel's layout, with its bias."""

    def __init__(
        self, blocks: torch.Tensor, shape: tuple[int, int], bias: torch.Tensor | None
    ) -> None:
        """`blocks` are those of `pack_blocks`; `shape` is (out, in)."""
        self.out_features, self.in_features = shape
        self.blocks = blocks
        self._bias = torch.zeros(blocks.shape[0] * _OUTPUTS)
        if bias is not None:
            self._bias[: self.out_features] = bias.detach()

    def fill(self, layer: Any) -> None:
        """Tells the kernel's structure where all of this lies; for as long as this lives."""
        layer.weight = self.blocks.data_ptr()
        layer.bias = self._bias.data_ptr()
        layer.out_features = self.out_features


class Int4Product(Product):
    """See `Product`."""

    def __init__(self, library: ctypes.CDLL, weights: Sequence[Int4Blocks]) -> None:
        """See `Product`; the library is `load_int4`'s."""
        super().__init__(library.int4_linear, weights, TYPES)


@cache
def load_int4(cache_directory: Path | None = None) -> ctypes.CDLL | None:
    """The library, or None where it cannot be; either way one log line says so."""
    library = load_library(INT4_LINEAR, cache_directory, "int4 linear layers", _WITHOUT)
    if library is not None:
        library.int4_linear.argtypes = (ADDRESS, INTEGER, ADDRESS)
        library.int4_linear.restype = None
    return library


def pack_blocks(
    numbers: torch.Tensor,  # [N, G * 64] uint8, from 0 to 15
    scales: torch.Tensor,  # [N, G] float16
    zeros: torch.Tensor,  # [N, G] float16
) -> torch.Tensor:
    """[blocks, groups, bytes] uint8, as the kernel reads them."""
    missing = -numbers.shape[0] % _OUTPUTS
    numbers, scales, zeros = (
        functional.pad(x, (0, 0, 0, missing)) for x in (numbers, scales, zeros)
    )
    num_blocks, num_groups = numbers.shape[0] // _OUTPUTS, scales.shape[1]
    halves = numbers.view(num_blocks, 2, 16, num_groups, _QUADS, 4).permute(1, 0, 3, 4, 2, 5)
    packed = (halves[0] | halves[1] << 4).reshape(num_blocks, num_groups, _NUMBER_BYTES)
    return torch.cat([packed, _as_bytes(scales), _as_bytes(zeros)], 2).contiguous()


def unpack_blocks(
    blocks: torch.Tensor, num_outputs: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers, scales and zeros, as `pack_blocks` took them."""
    num_blocks, num_groups, _ = blocks.shape
    packed, metas = blocks[:, :, :_NUMBER_BYTES], blocks[:, :, _NUMBER_BYTES:]
    halves = torch.stack([packed & 15, packed >> 4])
    halves = halves.view(2, num_blocks, num_groups, _QUADS, 16, 4).permute(1, 0, 4, 2, 3, 5)
    numbers = halves.reshape(num_blocks * _OUTPUTS, num_groups * GROUP)
    scales, zeros = metas.contiguous().view(torch.float16).chunk(2, 2)  # [blocks, groups, 32]
    flat = [x.transpose(1, 2).reshape(-1, num_groups) for x in (scales, zeros)]
    return numbers[:num_outputs], flat[0][:num_outputs], flat[1][:num_outputs]


def _as_bytes(metas: torch.Tensor) -> torch.Tensor:
    """[N, groups] float16 to [blocks, groups, 64] uint8."""
    num_groups = metas.shape[1]
    by_block = metas.view(-1, _OUTPUTS, num_groups).transpose(1, 2).contiguous()
    return by_block.view(torch.uint8)
