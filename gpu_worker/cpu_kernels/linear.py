"""Linear layers of float32, bfloat16 and 8-bit weights by native code (`linear.cpp`)."""

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from gpu_worker.cpu_kernels.attention import TYPES
from gpu_worker.cpu_kernels.build import LINEAR
from gpu_worker.cpu_kernels.loading import load_library
from gpu_worker.cpu_kernels.products import ADDRESS, INTEGER, Product
from gpu_worker.cpu_kernels.screen import Screen, is_worth_while
from gpu_worker.cpu_kernels.strips import COLUMNS, KINDS, OFFSET, padded, strips_of

_STRIPS_AT_ONCE = 64
_WITHOUT = "CPU linear layers: other ones, slower, because"


class _Best(ctypes.Structure):
    _fields_ = (("values", ADDRESS), ("places", ADDRESS))


class NativeLinears:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.multiply, self.find_best = library.linear, library.best_of_linear
        self.multiply.argtypes = (INTEGER, ADDRESS, INTEGER, ADDRESS)
        self.find_best.argtypes = (INTEGER, *(ADDRESS,) * 4)
        self.multiply.restype, self.find_best.restype = None, INTEGER
        for has in (library.has_bfloat16_products, library.has_matrix_unit):
            has.restype = INTEGER
        self.has_bfloat16 = bool(library.has_bfloat16_products())
        self._has_matrix_unit = bool(library.has_matrix_unit())

    def has(self, dtype: torch.dtype) -> bool:
        """Whether weights of this dtype can be multiplied here."""
        return dtype in KINDS and (dtype != torch.bfloat16 or self.has_bfloat16)

    def takes_screen(self, dtype: torch.dtype) -> bool:
        """Whether a `Screen` can spare such weights work."""
        return dtype == torch.float32 or (dtype == torch.bfloat16 and not self._has_matrix_unit)


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
        self._strips = strips_of(weight)
        self._scales = None if scales is None else padded(scales)
        self._bias = None if bias is None else padded(bias.detach())

    @property
    def num_bytes(self) -> int:
        """Memory of the weight and its scales."""
        return self._strips.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def plain(self) -> torch.Tensor:
        """The weight anew, [out, in]; of int8 the integers."""
        return self._rows(self._strips)[: self.out_features]

    def parts(self) -> Iterator[torch.Tensor]:
        """The same, some rows at a time."""
        start = 0
        for strips in self._strips.split(_STRIPS_AT_ONCE):
            yield self._rows(strips)[: self.out_features - start]
            start += len(strips) * COLUMNS

    def _rows(self, strips: torch.Tensor) -> torch.Tensor:
        own = strips.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)[:, : self.in_features]
        if self.dtype == torch.int8:
            return (own.short() - OFFSET).to(torch.int8)
        return own.contiguous()

    def screen(self) -> Screen | None:
        """A help for finding the best outputs, unless it is not likely to pay."""
        if self._bias is not None or not is_worth_while(self.out_features, self.in_features):
            return None
        return Screen(self.parts())

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
        kind = KINDS[dtype].number
        dtypes = TYPES if dtype == torch.int8 else (dtype,)
        super().__init__(partial(library.multiply, kind), weights, dtypes)
        self._find_best = partial(library.find_best, kind)
        self.screen: Screen | None = None  # of the only weight: a help for `best`

    def best(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest output of each row [N, in] of the only weight, and its first place: [N] each.

        It is the largest of what a call would give; NaN for a row that holds one.
        """
        x = x.contiguous()
        values = torch.empty(len(x), dtype=torch.float32)
        places = torch.empty(len(x), dtype=torch.int64)
        best = _Best(values.data_ptr(), places.data_ptr())
        layers, given = self._given(x)
        screen = None if self.screen is None else self.screen.address
        num_strips = self._find_best(layers, screen, given, ctypes.addressof(best))
        if self.screen is not None and not self.screen.pays(num_strips, len(x)):
            self.screen = None
        return values, places


@cache
def load_linears(cache_directory: Path | None = None) -> NativeLinears | None:
    """The library, or None where it cannot be; either way one log line says so."""
    library = load_library(LINEAR, cache_directory, "CPU linear layers", _WITHOUT)
    return None if library is None else NativeLinears(library)
