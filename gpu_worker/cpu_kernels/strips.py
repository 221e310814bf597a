"""How weights lie in memory for `linear.cpp`: in strips of 32 outputs."""

from dataclasses import dataclass

import torch

COLUMNS = 32  # outputs of a strip
OFFSET = 128  # what stored bytes are larger by than the weights
_WORD = 4  # bytes
_TILE_BYTES = 64  # of a row, which the matrix unit reads at once


@dataclass(frozen=True)
class _Kind:
    """A kind of weights: its number in the C++ file, and how many bytes a row is rounded up to."""

    number: int
    padding: int


KINDS = {
    torch.float32: _Kind(0, _WORD),
    torch.bfloat16: _Kind(1, _TILE_BYTES),
    torch.int8: _Kind(2, _TILE_BYTES),
}


def strips_of(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] as [out / 32, in / n, 32, n], rounded up, n numbers in four bytes."""
    kind, size = KINDS[weight.dtype], weight.dtype.itemsize
    out_features, in_features = weight.shape
    num_strips, numbers = -(-out_features // COLUMNS), _WORD // size
    padded_in = -(-in_features * size // kind.padding) * kind.padding // size
    is_bytes = weight.dtype == torch.int8
    padded = torch.full(
        (num_strips * COLUMNS, padded_in),
        OFFSET if is_bytes else 0,
        dtype=torch.uint8 if is_bytes else weight.dtype,
    )
    padded[:out_features, :in_features] = weight.short() + OFFSET if is_bytes else weight
    words = padded.view(num_strips, COLUMNS, -1, numbers)
    return words.permute(0, 2, 1, 3).contiguous()


def padded(numbers: torch.Tensor) -> torch.Tensor:
    """[out] as float32, with zeros up to the end of the last strip."""
    filled = torch.zeros(-(-len(numbers) // COLUMNS) * COLUMNS)
    filled[: len(numbers)] = numbers
    return filled
