"""Penalties for tokens that came before, from what the host counts and the device holds.

A repetition penalty divides the positive and multiplies the negative logits of the tokens of prompt
and answer (Keskar et al., 2019, "CTRL"). Frequency and presence penalties are OpenAI's: a token of
the answer loses count × frequency + presence.

The device holds the tokens to penalise as [R, V] bool and what is to be subtracted as [R, V]
float32: R × V × 5 bytes, each table allocated when a row first needs it. The host counts and writes
whole values, so that nothing is added up twice, nor rounded in another order after a preemption.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch

from gpu_worker.upload import upload
from scheduler.plan import Admission, StepPlan
from shared.sampling import SamplingParams


@dataclass
class _Answer:
    """The answer of a row with penalties, as far as the model was fed its tokens."""

    sampling: SamplingParams
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def num_tokens(self) -> int:
        return self.counts.total()

    @property
    def repeats(self) -> bool:
        """True with a repetition penalty."""
        return self.sampling.repetition_penalty != 1.0

    @property
    def subtracts(self) -> bool:
        """True with a frequency or presence penalty."""
        return bool(self.sampling.frequency_penalty or self.sampling.presence_penalty)

    def loss(self, token_id: int) -> float:
        """What frequency and presence take from the logit of a token of the answer."""
        frequency, presence = self.sampling.frequency_penalty, self.sampling.presence_penalty
        return self.counts[token_id] * frequency + presence


@dataclass(frozen=True)
class Penalized:
    """The rows of a step that have penalties."""

    repeating: torch.Tensor  # [P] int64, positions in the step
    factors: torch.Tensor  # [P, 1] float32
    subtracting: torch.Tensor  # [Q] int64, positions in the step


class Penalties:
    """Remembers the tokens of the rows whose settings ask for it, and of no others."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._shape = (num_rows, vocab_size)
        self._device = device
        self._answers: dict[int, _Answer] = {}  # by row
        self._is_seen: torch.Tensor | None = None  # [R, V] bool: in the prompt or the answer
        self._losses: torch.Tensor | None = None  # [R, V] float32

    def begin(self, admission: Admission) -> None:
        """Gives the row to another sequence, whose answer may have begun before a preemption."""
        row, answer = admission.row, _Answer(admission.sampling)
        self._answers.pop(row, None)
        if not answer.repeats and not answer.subtracts:
            return
        self._answers[row] = answer
        answer.counts.update(admission.token_ids[admission.num_prompt_tokens :])
        if answer.repeats:
            if self._is_seen is None:
                self._is_seen = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._is_seen[row] = False
            self._mark_seen([(row, token_id) for token_id in set(admission.token_ids)])
        if answer.subtracts:
            if self._losses is None:
                self._losses = torch.zeros(self._shape, device=self._device)
            self._losses[row] = 0.0
            self._write_losses([(row, token_id) for token_id in answer.counts])

    def observe(self, plan: StepPlan) -> None:
        """Counts the tokens that decode chunks feed; one that was counted before is passed over."""
        fed = []
        for chunk in plan.chunks[: plan.num_decodes]:
            answer = self._answers.get(chunk.row)
            if answer is not None and chunk.output_index == answer.num_tokens + 1:
                answer.counts[chunk.token_ids[0]] += 1
                fed.append((chunk.row, chunk.token_ids[0]))
        self._mark_seen([place for place in fed if self._answers[place[0]].repeats])
        self._write_losses([place for place in fed if self._answers[place[0]].subtracts])

    def arrange(self, host_rows: list[int]) -> Penalized | None:
        """Finds the rows with penalties in a step; None if there are none."""
        found = [(n, row) for n, row in enumerate(host_rows) if row in self._answers]
        if not found:
            return None
        repeating = [(n, row) for n, row in found if self._answers[row].repeats]
        subtracting = [(n, row) for n, row in found if self._answers[row].subtracts]
        factors = [self._answers[row].sampling.repetition_penalty for _, row in repeating]
        return Penalized(
            self._upload([n for n, _ in repeating]),
            upload(factors, torch.float32, self._device)[:, None],
            self._upload([n for n, _ in subtracting]),
        )

    def apply(self, logits: torch.Tensor, rows: torch.Tensor, penalized: Penalized) -> None:
        """Changes the logits [N, V] float32 of `rows` [N] in place, if they have penalties."""
        if len(penalized.repeating):
            assert self._is_seen is not None, "allocated with the row's admission"
            before = logits.index_select(0, penalized.repeating)
            factors = penalized.factors
            after = torch.where(before > 0, before / factors, before * factors)
            is_seen = self._is_seen.index_select(0, rows[penalized.repeating])
            logits.index_copy_(0, penalized.repeating, torch.where(is_seen, after, before))
        if len(penalized.subtracting):
            assert self._losses is not None, "allocated with the row's admission"
            losses = self._losses.index_select(0, rows[penalized.subtracting])
            logits.index_add_(0, penalized.subtracting, losses, alpha=-1)

    def _mark_seen(self, places: list[tuple[int, int]]) -> None:
        if places:
            assert self._is_seen is not None, "allocated with the row's admission"
            self._is_seen.view(-1).index_fill_(0, self._flat(places), True)

    def _write_losses(self, places: list[tuple[int, int]]) -> None:
        if places:
            assert self._losses is not None, "allocated with the row's admission"
            values = [self._answers[row].loss(token_id) for row, token_id in places]
            losses = upload(values, torch.float32, self._device)
            self._losses.view(-1).index_copy_(0, self._flat(places), losses)

    def _flat(self, places: list[tuple[int, int]]) -> torch.Tensor:
        """Indices of (row, token id) in a flattened table."""
        return self._upload([row * self._shape[1] + token_id for row, token_id in places])

    def _upload(self, values: list[int]) -> torch.Tensor:
        return upload(values, torch.long, self._device)
