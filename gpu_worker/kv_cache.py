"""The paged KV cache: the tensors behind the scheduler's block numbers, and how many fit.

Dimension names: L layers, S slots (one token's place; slot = block * BLOCK_SIZE + offset),
Hkv key/value heads, D head size.
"""

from dataclasses import dataclass

import psutil
import torch

# Tokens; as in PagedAttention (Kwon et al., 2023, https://arxiv.org/abs/2309.06180).
BLOCK_SIZE = 16


@dataclass(frozen=True)
class KVGeometry:
    """What one token's keys and values need."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        elements = 2 * self.num_layers * BLOCK_SIZE * self.num_kv_heads * self.head_size
        return elements * self.dtype.itemsize


class PagedKVCache:
    """Keys and values of every block; block 0 is scratch, so there is one more than asked for."""

    def __init__(self, geometry: KVGeometry, num_blocks: int) -> None:
        num_slots = (num_blocks + 1) * BLOCK_SIZE
        shape = (num_slots, geometry.num_kv_heads, geometry.head_size)
        self.layers = [  # L pairs of [S, Hkv, D]
            tuple(torch.zeros(shape, dtype=geometry.dtype, device=geometry.device) for _ in "kv")
            for _ in range(geometry.num_layers)
        ]


def blocks_that_fit(geometry: KVGeometry, memory_fraction: float, most_useful: int) -> int:
    """Number of blocks in this share of the free memory, and no more than can ever be used."""
    free_bytes = _free_bytes(geometry.device)
    return min(int(free_bytes * memory_fraction) // geometry.block_bytes, most_useful)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
