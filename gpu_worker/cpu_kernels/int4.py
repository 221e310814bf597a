"""Linear layers of 4-bit numbers as Python sees them; mirrors `int4_linear.cpp`, field by field."""

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

GROUP = 64  # inputs that share a scale and a zero
_OUTPUTS = 32  # of a block
_QUADS = GROUP // 4
_NUMBER_BYTES = _QUADS * 64  # of a block's group; scales and zeros come after
_WITHOUT = "int4 linear layers: torch's own, slower from batch 8 on, because"
_address, _integer = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    _fields_ = (
        ("blocks", _address),
        ("bias", _address),
        ("out_features", _integer),
        ("output", _address),
    )


class _Input(ctypes.Structure):
    _fields_ = (
        ("rows", _address),
        ("type", _integer),
        ("num_rows", _integer),
        ("in_features", _integer),
        ("num_threads", _integer),
    )


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
        layer.blocks = self.blocks.data_ptr()
        layer.bias = self._bias.data_ptr()
        layer.out_features = self.out_features


class Int4Product:
    """What weights make of the same input, in one call."""

    def __init__(self, library: ctypes.CDLL, weights: Sequence[Int4Blocks]) -> None:
        """The weights have inputs of one size."""
        self._multiply = library.int4_linear
        self._multiply.argtypes = (_address, _integer, _address)
        self._multiply.restype = None
        self._weights = tuple(weights)
        self._layers = (_Layer * len(weights))()
        for weight, layer in zip(weights, self._layers, strict=True):
            weight.fill(layer)
        self._input = _Input(in_features=weights[0].in_features)
        # Kept, because every call takes microseconds, and a step makes hundreds of them.
        self._sizes = tuple(weight.out_features for weight in weights)
        self._addresses = ctypes.addressof(self._layers), ctypes.addressof(self._input)

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[…, in], of a dtype of `TYPES`, to [..., out] of each weight."""
        x = x.contiguous()
        leading = x.shape[:-1]
        outputs = [x.new_empty((*leading, size)) for size in self._sizes]
        for number, output in enumerate(outputs):
            self._layers[number].output = output.data_ptr()
        call = self._input
        call.rows, call.type = x.data_ptr(), TYPES[x.dtype]
        call.num_rows = x.numel() // call.in_features
        call.num_threads = torch.get_num_threads()
        layers, given = self._addresses
        self._multiply(layers, len(outputs), given)
        return outputs


@cache
def load_int4(cache_directory: Path | None = None) -> ctypes.CDLL | None:
    """The library, or None where it cannot be; either way one log line says so."""
    return load_library(INT4_LINEAR, cache_directory, "int4 linear layers", _WITHOUT)


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
