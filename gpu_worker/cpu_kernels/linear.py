"""Linear layers of float32, bfloat16 and 8-bit weights by native code (`linear.cpp`)."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from gpu_worker.cpu_kernels.attention import TYPES
from gpu_worker.cpu_kernels.build import LINEAR
from gpu_worker.cpu_kernels.loading import load_library
from gpu_worker.cpu_kernels.products import ADDRESS, INTEGER, Product

_COLUMNS = 32  # outputs of a strip
_WORD = 4  # bytes
_TILE_BYTES = 64  # of a row, which the matrix unit reads at once
_OFFSET = 128  # what stored bytes are larger by than the weights
_WITHOUT = "CPU linear layers: other ones, slower, because"


@dataclass(frozen=True)
class _Kind:
    """A kind of weights: its number in the C++ file, and how many bytes a row is rounded up to."""

    number: int
    padding: int


_KINDS = {
    torch.float32: _Kind(0, _WORD),
    torch.bfloat16: _Kind(1, _TILE_BYTES),
    torch.int8: _Kind(2, _TILE_BYTES),
}


class _Best(ctypes.Structure):
    _fields_ = (("values", ADDRESS), ("places", ADDRESS))


class NativeLinears:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.multiply, self.find_best = library.linear, library.best_of_linear
        self.multiply.argtypes = (INTEGER, ADDRESS, INTEGER, ADDRESS)
        self.find_best.argtypes = (INTEGER, ADDRESS, ADDRESS, ADDRESS)
        self.multiply.restype = self.find_best.restype = None
        library.has_bfloat16_products.restype = INTEGER
        self.has_bfloat16 = bool(library.has_bfloat16_products())

    def has(self, dtype: torch.dtype) -> bool:
        """Whether weights of this dtype can be multiplied here."""
        return dtype in _KINDS and (dtype != torch.bfloat16 or self.has_bfloat16)


class NativeWeight:
    """A weight in strips of 32 outputs, [out / 32, in / n, 32, n], n numbers in four bytes."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
    ) -> None:
        """[out, in] of a dtype that the library has, and [out] of any; int8 has scales."""
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self._strips = _strips(weight)
        self._scales = None if scales is None else _padded(scales)
        self._bias = None if bias is None else _padded(bias.detach())

    @property
    def num_bytes(self) -> int:
        """Memory of the weight and its scales."""
        return self._strips.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def plain(self) -> torch.Tensor:
        """The weight anew, [out, in]; of int8 the integers."""
        rows = self._strips.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
        own = rows[: self.out_features, : self.in_features]
        if self.dtype == torch.int8:
            return (own.short() - _OFFSET).to(torch.int8)
        return own.contiguous()

    def fill(self, layer: Any) -> None:
        """Tells the kernel's structure where all of this lies; for as long as this lives."""
        layer.weight = self._strips.data_ptr()
        layer.scales = None if self._scales is None else self._scales.data_ptr()
        layer.bias = None if self._bias is None else self._bias.data_ptr()
        layer.out_features = self.out_features


class NativeProduct(Product):
    """The same, and of one weight the best outputs alone."""

    def __init__(self, library: NativeLinears, weights: Sequence[NativeWeight]) -> None:
        """See `Product`."""
        dtype = weights[0].dtype
        kind = _KINDS[dtype].number
        dtypes = TYPES if dtype == torch.int8 else (dtype,)
        super().__init__(partial(library.multiply, kind), weights, dtypes)
        self._find_best = partial(library.find_best, kind)

    def best(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest output of each row [N, in] of the only weight, and its first place: [N] each.

        It is the largest of what a call would give; NaN for a row that holds one.
        """
        x = x.contiguous()
        values = torch.empty(len(x), dtype=torch.float32)
        places = torch.empty(len(x), dtype=torch.int64)
        best = _Best(values.data_ptr(), places.data_ptr())
        layers, given = self._given(x)
        self._find_best(layers, given, ctypes.addressof(best))
        return values, places


@cache
def load_linears(cache_directory: Path | None = None) -> NativeLinears | None:
    """The library, or None where it cannot be; either way one log line says so."""
    library = load_library(LINEAR, cache_directory, "CPU linear layers", _WITHOUT)
    return None if library is None else NativeLinears(library)


def _strips(weight: torch.Tensor) -> torch.Tensor:
    kind, size = _KINDS[weight.dtype], weight.dtype.itemsize
    out_features, in_features = weight.shape
    num_strips, numbers = -(-out_features // _COLUMNS), _WORD // size
    padded_in = -(-in_features * size // kind.padding) * kind.padding // size
    is_bytes = weight.dtype == torch.int8
    padded = torch.full(
        (num_strips * _COLUMNS, padded_in),
        _OFFSET if is_bytes else 0,
        dtype=torch.uint8 if is_bytes else weight.dtype,
    )
    padded[:out_features, :in_features] = weight.short() + _OFFSET if is_bytes else weight
    words = padded.view(num_strips, _COLUMNS, -1, numbers)
    return words.permute(0, 2, 1, 3).contiguous()


def _padded(numbers: torch.Tensor) -> torch.Tensor:
    padded = torch.zeros(-(-len(numbers) // _COLUMNS) * _COLUMNS)
    padded[: len(numbers)] = numbers
    return padded
