"""What every attention backend does: own the paged keys and values of each layer, and attend.

Dimension names: T tokens of a step, H query heads, Hkv key/value heads, Dk and Dv sizes of a key
and a value head, S slots (one token's place; slot = block * BLOCK_SIZE + offset).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_worker.batch import Batch


@dataclass(frozen=True)
class AttentionRules:
    """How one layer attends; None switches a rule off."""

    scaling: float
    window: int | None = None  # keys that a query sees, its own included (sliding window)
    chunk: int | None = None  # a query sees only keys of its own chunk of positions (Llama 4)
    softcap: float | None = None  # scores become softcap * tanh(score / softcap) (Gemma 2)
    sinks: torch.Tensor | None = None  # [H], one more logit per head without a value (gpt-oss)


class AttentionBackend(Protocol):
    """Keys and values of every block and layer, and attention over them.

    `begin` is called once a step, before the forward pass; then `attend` once for every layer.
    """

    def begin(self, batch: Batch) -> None:
        """Prepares what all layers of this step have in common."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [1, H, T, Dk]
        key: torch.Tensor,  # [1, Hkv, T, Dk]
        value: torch.Tensor,  # [1, Hkv, T, Dv]
        rules: AttentionRules,
    ) -> torch.Tensor:
        """Writes the step's keys and values, then attends within each sequence; [1, T, H, Dv]."""
