"""Logits that are computed when somebody looks: often only the best token is wanted.

Whoever computes with them gets all of them, computed once. Whoever asks for the best alone spares
the memory of all: [N, V] numbers are more than caches hold.
"""

from typing import Any, Protocol

import torch

from gpu_worker.linears.deferred import Deferred


class Head(Protocol):
    """What computes logits of states, all or the best of each row."""

    out_features: int

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] -> […, out]."""

    def best(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest of each row, [N, in] to [N], and its first place; NaN if there is one."""


class LazyLogits(Deferred):
    """Logits that take no memory until somebody computes with them."""

    _head: Head
    _states: torch.Tensor
    _plain: torch.Tensor | None

    @staticmethod
    def __new__(cls, head: Head, states: torch.Tensor) -> "LazyLogits":
        """Of states […, in]."""
        make: Any = torch.Tensor._make_wrapper_subclass
        shape = (*states.shape[:-1], head.out_features)
        logits: LazyLogits = make(cls, shape, dtype=states.dtype, device=states.device)
        logits._head, logits._states, logits._plain = head, states, None
        return logits

    def plain(self) -> torch.Tensor:
        """All of them, computed once."""
        if self._plain is None:
            self._plain = self._head.compute(self._states)
        return self._plain

    @property
    def is_untouched(self) -> bool:
        """True as long as nobody has computed with them, nor changed them in place."""
        return self._plain is None

    def first(self) -> torch.Tensor:
        """[0] of a batch of rows, [1, N, V] to [N, V]; lazy if these are untouched."""
        return LazyLogits(self._head, self._states[0]) if self.is_untouched else self.plain()[0]

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest of each row of [N, V], float32, and its first place; NaN if there is one.

        Of logits that are untouched.
        """
        return self._head.best(self._states)
