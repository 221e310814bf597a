"""What a family of encoder-decoders adds to stock code.

The names of dimensions are those of `slot_cache.py`; N sampled tokens, M numbers of a state, V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from gpu_worker.alignment import AttentionWatch, Span
from scheduler.plan import Admission


class Adapter(Protocol):
    """One model and its slots."""

    vocab_size: int

    def encode(self, admissions: Sequence[Admission]) -> torch.Tensor:
        """The states of these inputs, [n, E, M]; those of shorter inputs end in padding."""

    def project(self, states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each decoder layer's keys and values of the states, [n, H, E, D] each."""

    def decode(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        watch: AttentionWatch | None = None,
    ) -> torch.Tensor:
        """Tokens of each row, [B, T] int64, over the cache as it was prepared for them; [B, T, M].

        The positions, [B, T] int64, are those it was prepared for. The watch, if any, is one of
        `watch`'s.
        """

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, M] to [N, V]."""

    def watch(self, spans: Sequence[Span]) -> AttentionWatch:
        """For a pass whose tokens are aligned with a sound, a span a row."""
