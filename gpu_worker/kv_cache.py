"""How large one block of the paged KV cache is. The tensors are the backends'."""

from dataclasses import dataclass

import torch

# Tokens; as in PagedAttention (Kwon et al., 2023, https://arxiv.org/abs/2309.06180).
BLOCK_SIZE = 16


@dataclass(frozen=True)
class LayerGeometry:
    """What one layer keeps of every token."""

    num_kv_heads: int
    key_size: int  # elements of a key head
    value_size: int  # elements of a value head; another size than the key's in DeepSeek's models


@dataclass(frozen=True)
class KVGeometry:
    """What every layer keeps of every token, where, and in which precision."""

    layers: tuple[LayerGeometry, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        heads = sum(
            layer.num_kv_heads * (layer.key_size + layer.value_size) for layer in self.layers
        )
        return BLOCK_SIZE * heads * self.dtype.itemsize


def num_slots(num_blocks: int) -> int:
    """Tokens in a pool of as many blocks and block 0, the scratch block."""
    return (num_blocks + 1) * BLOCK_SIZE
