"""An encoder-decoder's decode step under torch.compile, up to its states: two graphs.

One is of a single row, the other of any number of them. The head stays as it is: one product, which
may wait for whoever looks at the logits (`lazy_logits`). So do encoders, prompts of several tokens
and passes that align a sound's tokens: they are few, and mostly large products.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from gpu_worker.alignment import AttentionWatch, Span
from gpu_worker.compiled import Report, compiled, let_grow, make_graphs, options_of
from gpu_worker.families.adapter import Adapter
from scheduler.plan import Admission

# Prepares the cache for one token of each of so many rows of nobody; returns the tokens and their
# positions, [B, 1] int64 each.
Begin = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class CompiledAdapter:
    """An adapter that computes as another one does."""

    def __init__(self, adapter: Adapter, mode: str, device: torch.device) -> None:
        self._adapter = adapter
        self.vocab_size = adapter.vocab_size

        def decode(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return adapter.decode(token_ids, positions)

        self._decode = compiled(decode, options_of(mode, device))

    def warm_up(self, begin: Begin, num_rows: int, report: Report) -> bool:
        """Compiles for all that will come; False, with one warning, where the model resists."""
        calls = [("compiling the decode step of one row", partial(self._call, begin, 1))]
        if num_rows > 1:
            stage = "compiling the decode step of any number of rows"
            calls.append((stage, partial(self._call, begin, num_rows)))
        return make_graphs(calls, report)

    def encode(self, admissions: Sequence[Admission]) -> torch.Tensor:
        """See `Adapter`."""
        return self._adapter.encode(admissions)

    def project(self, states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `Adapter`."""
        return self._adapter.project(states)

    def decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, watch: AttentionWatch | None = None
    ) -> torch.Tensor:
        """See `Adapter`."""
        if watch is not None or token_ids.shape[1] > 1:
            return self._adapter.decode(token_ids, positions, watch)
        states: torch.Tensor = self._decode(token_ids, positions)
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See `Adapter`."""
        return self._adapter.logits(states)

    def watch(self, spans: Sequence[Span]) -> AttentionWatch:
        """See `Adapter`."""
        return self._adapter.watch(spans)

    def _call(self, begin: Begin, num_rows: int) -> None:
        token_ids, positions = begin(num_rows)
        let_grow(token_ids, 0)
        let_grow(positions, 0)
        self.decode(token_ids, positions)
