"""What linear layers of the native libraries have in common: their structures, and their calls.

The structures are those of `linear.cpp` and `int4_linear.cpp`, field by field.
"""

import ctypes
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch

from gpu_worker.cpu_kernels.attention import TYPES

ADDRESS, INTEGER = ctypes.c_void_p, ctypes.c_int64

# Addresses of layers, their number, and the address of their input.
Multiply = Callable[[int, int, int], object]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ADDRESS),
        ("scales", ADDRESS),
        ("bias", ADDRESS),
        ("out_features", INTEGER),
        ("output", ADDRESS),
    )


class _Input(ctypes.Structure):
    _fields_ = (
        ("rows", ADDRESS),
        ("type", INTEGER),
        ("num_rows", INTEGER),
        ("in_features", INTEGER),
        ("num_threads", INTEGER),
    )


class Weight(Protocol):
    """A weight in a library's layout."""

    out_features: int
    in_features: int

    def fill(self, layer: Any) -> None:
        """Tells the library's structure where all of this lies; for as long as this lives."""


class Product:
    """What weights make of the same input, in one call."""

    def __init__(
        self, multiply: Multiply, weights: Sequence[Weight], dtypes: Collection[torch.dtype]
    ) -> None:
        """The weights are of one kind, which takes these dtypes, and have inputs of one size."""
        self._multiply = multiply
        self._dtypes = frozenset(dtypes)
        self._weights = tuple(weights)
        self._layers = (_Layer * len(weights))()
        for weight, layer in zip(weights, self._layers, strict=True):
            weight.fill(layer)
        self._input = _Input(in_features=weights[0].in_features)
        # Kept, because every call takes microseconds, and a step makes hundreds of them.
        sizes = (weight.out_features for weight in weights)
        self._sized = tuple(zip(self._layers, sizes, strict=True))
        self._addresses = ctypes.addressof(self._layers), ctypes.addressof(self._input)

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[…, in] to [..., out] of each weight; ValueError for what they cannot take."""
        x = x.contiguous()  # it must live until the call is over
        leading = x.shape[:-1]
        outputs = []
        for layer, size in self._sized:
            output = x.new_empty((*leading, size))
            layer.output = output.data_ptr()
            outputs.append(output)
        layers, given = self._given(x)
        self._multiply(layers, len(outputs), given)
        return outputs

    def _given(self, x: torch.Tensor) -> tuple[int, int]:
        """The addresses of the layers and of this input, which is contiguous.

        It is checked, because addresses say nothing of what lies there.
        """
        call = self._input
        if x.shape[-1] != call.in_features or x.dtype not in self._dtypes:
            raise ValueError(f"{tuple(x.shape)} {x.dtype} is no input of {call.in_features}")
        call.rows, call.type = x.data_ptr(), TYPES[x.dtype]
        call.num_rows = x.numel() // call.in_features
        call.num_threads = torch.get_num_threads()
        return self._addresses
