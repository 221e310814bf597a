"""A small copy of a head's weight, by which most outputs are known not to be a row's best.

How that is known is told in `screening.h`. It is worth while where outputs are many and inputs few,
so that bounds are narrow.
"""

import ctypes
import logging
from collections.abc import Iterable

import torch
from torch import nn

from gpu_worker.cpu_kernels.products import ADDRESS
from gpu_worker.cpu_kernels.strips import COLUMNS, strips_of

logger = logging.getLogger(__name__)

_FEWEST_OUTPUTS = 4096
_MOST_INPUTS = 1024
_LARGEST = 127  # integer
_SCALES = (1e-10, 1e18)  # beyond which float32 may not tell products from 0 or infinity
_ROUNDED_UP = 1 + 1e-6  # float64 becomes float32
_MIB = 2**20
_MEMORY = 2000  # rows that count
_MOST_SHARE = 0.1  # of strips: beyond that, little or nothing is saved


def is_worth_while(out_features: int, in_features: int) -> bool:
    """Whether a screen is likely to be faster than the weight itself."""
    return out_features >= _FEWEST_OUTPUTS and in_features <= _MOST_INPUTS


class _Screen(ctypes.Structure):
    _fields_ = (
        ("weight", ADDRESS),
        ("scales", ADDRESS),
        ("norms", ADDRESS),
        ("rests", ADDRESS),
    )


class Screen:
    """8-bit integers, with one scale for each 32 outputs, and norms that bound what they lack."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        """Rows of the weight, [n, in] float32 or bfloat16; all but the last fill their strips."""
        measured = zip(*map(_measured, weights), strict=True)
        self._strips, self._scales, self._norms, self._rests = map(torch.cat, measured)
        parts = (self._strips, self._scales, self._norms, self._rests)
        self._screen = _Screen(*(part.data_ptr() for part in parts))
        self.num_bytes = sum(part.nbytes for part in parts)
        self.address = ctypes.addressof(self._screen)
        self._usual_share = 0.0  # of strips
        logger.info(
            "output layer: %.1f MiB tell which tokens may be the best", self.num_bytes / _MIB
        )

    def pays(self, num_strips: int, num_rows: int) -> bool:
        """False once strips that had to be computed, of so many rows, have long been too many."""
        share = num_strips / max(1, num_rows * len(self._scales))
        self._usual_share += (share - self._usual_share) * min(1, num_rows / _MEMORY)
        if self._usual_share < _MOST_SHARE:
            return True
        logger.info("output layer: the copy rules out too few tokens and is dropped")
        return False


def _measured(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[n, in] as strips of integers, and of each the scale, norm, and norm of what it lacks.

    Where a strip must always be computed, its norm is NaN or infinite: it is not of numbers, or of
    very small or large ones, or filled up with zeros, which are no outputs.
    """
    padding = -len(weight) % COLUMNS
    strips = nn.functional.pad(weight.double(), (0, 0, 0, padding)).unflatten(0, (-1, COLUMNS))
    scales = (strips.abs().amax((1, 2)) / _LARGEST).float()
    steps = scales.double()[:, None, None]
    integers = (strips / steps).round().clamp(-_LARGEST, _LARGEST).nan_to_num()
    least, most = _SCALES
    norms = _largest_norm(strips).masked_fill((scales < least) | (scales > most), torch.inf)
    if padding:
        norms[-1] = torch.inf
    rests = _largest_norm(strips - integers * steps)
    return strips_of(integers.flatten(0, 1).to(torch.int8)), scales, norms, rests


def _largest_norm(strips: torch.Tensor) -> torch.Tensor:
    """Of [strips, 32, in] to [strips], float32 and not too small."""
    largest: torch.Tensor = strips.norm(dim=-1).amax(-1)
    return (largest * _ROUNDED_UP).float()
