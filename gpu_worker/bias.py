"""Single logits that a request changes: its bias, and end tokens held back until `min_tokens`.

End tokens are held back by adding -inf, not by writing it: a row whose logits are not numbers is
still found out.
"""

from dataclasses import dataclass

import torch

from gpu_worker.upload import upload
from scheduler.plan import Admission


@dataclass(frozen=True)
class Biased:
    """The single logits to change in a step, as places in the flattened [N, V]."""

    places: torch.Tensor  # [B] int64
    values: torch.Tensor  # [B] float32
    end_places: torch.Tensor  # [E] int64
    end_positions: torch.Tensor  # [E] int64: the row in the step
    min_tokens: torch.Tensor  # [E] int64


class Biases:
    """Keeps the bias and the end tokens of the rows whose settings ask for it."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._biases: dict[int, tuple[tuple[int, float], ...]] = {}  # by row
        self._held_ends: dict[int, tuple[int, list[int]]] = {}  # by row: min_tokens, token ids

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence."""
        row, sampling = admission.row, admission.sampling
        self._biases.pop(row, None)
        self._held_ends.pop(row, None)
        if sampling.logit_bias:
            self._biases[row] = sampling.logit_bias
        # A model's configuration may name end tokens that its head cannot say.
        ends = sorted(t for t in admission.end_token_ids if 0 <= t < self._vocab_size)
        if sampling.min_tokens > 0 and ends:
            self._held_ends[row] = (sampling.min_tokens, ends)

    def arrange(self, host_rows: list[int]) -> Biased | None:
        """Finds what to change in a step of these rows; None if there is nothing."""
        entries = [
            (n * self._vocab_size + token_id, value)
            for n, row in enumerate(host_rows)
            for token_id, value in self._biases.get(row, ())
        ]
        ends = [
            (n * self._vocab_size + token_id, n, min_tokens)
            for n, row in enumerate(host_rows)
            for min_tokens, token_ids in (self._held_ends.get(row, (0, [])),)
            for token_id in token_ids
        ]
        if not entries and not ends:
            return None
        return Biased(
            self._upload([place for place, _ in entries]),
            upload([value for _, value in entries], torch.float32, self._device),
            self._upload([place for place, _, _ in ends]),
            self._upload([n for _, n, _ in ends]),
            self._upload([min_tokens for _, _, min_tokens in ends]),
        )

    def apply(self, logits: torch.Tensor, output_indices: torch.Tensor, biased: Biased) -> None:
        """Changes the logits [N, V] float32 in place."""
        flat = logits.view(-1)
        flat.index_add_(0, biased.places, biased.values)
        is_early = output_indices[biased.end_positions] < biased.min_tokens
        held = torch.zeros(len(is_early), device=self._device)
        flat.index_add_(0, biased.end_places, held.masked_fill_(is_early, float("-inf")))

    def _upload(self, values: list[int]) -> torch.Tensor:
        return upload(values, torch.long, self._device)
