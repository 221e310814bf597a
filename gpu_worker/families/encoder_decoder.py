"""Encoder-decoders: inputs are encoded once, then all rows decode in one call of stock code.

Each row is at a position of its own. What differs from family to family is behind `Adapter`. The
names of dimensions are those of `slot_cache.py`; N sampled tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch

from gpu_worker.logprobs import Computed, Scorer, read
from gpu_worker.pooling import mean, unit
from gpu_worker.sampler import Sampler
from gpu_worker.slot_cache import SlotCache
from gpu_worker.upload import upload
from scheduler.plan import Admission, Chunk, Move, StepPlan, StepResult

MAX_PADDING = 2.0  # of inputs that are encoded together: padded tokens for each real one


class Adapter(Protocol):
    """What a family adds to stock code."""

    vocab_size: int

    def encode(self, token_ids: torch.Tensor, is_input: torch.Tensor) -> torch.Tensor:
        """Inputs [n, E] int64, padded on the right, and where they are; their states [n, E, M]."""

    def project(self, states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each decoder layer's keys and values of the states, [n, H, E, D] each."""

    def decode(self, token_ids: torch.Tensor, encoder_lengths: torch.Tensor) -> torch.Tensor:
        """One token of each row, [B, 1] int64, over the cache as it was prepared; [B, M]."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, M] to [N, V]."""


class EncoderDecoder:
    """Runs plans on one model, its slots and the sampler's rows."""

    def __init__(self, adapter: Adapter, cache: SlotCache, num_rows: int) -> None:
        device = cache.geometry.device
        self.cache = cache
        self._adapter = adapter
        self._device = device
        self._encoder_lengths = [0] * num_rows
        self._vectors: dict[int, torch.Tensor] = {}  # [M], of the rows whose inputs are pooled
        self._sampler = Sampler(num_rows, adapter.vocab_size, device)
        self._scorer = Scorer(adapter.vocab_size, device)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Moves, encodes, decodes and samples what the plan asks for."""
        for move in plan.moves:
            self._move(move)
        for group in groups(plan.admissions):
            self._encode(group)
        for admission in (*(move.admission for move in plan.moves), *plan.admissions):
            self._sampler.begin(admission)
            self._scorer.begin(admission)
        self._sampler.observe(plan)
        answered = tuple(chunk for chunk in plan.chunks if not chunk.pools)
        vectors = self._pooled(chunk.row for chunk in plan.chunks if chunk.pools)
        return read([self._decode(answered, vectors)])  # the step's one synchronisation

    def _move(self, move: Move) -> None:
        target = move.admission.row
        length = self._encoder_lengths[move.source]
        self.cache.move(move.source, target, len(move.admission.token_ids), length)
        self._encoder_lengths[target] = length

    def _encode(self, group: Sequence[Admission]) -> None:
        """Encodes inputs of like length together and keeps what the decoder will look at."""
        lengths = [len(admission.encoder_token_ids) for admission in group]
        longest = max(lengths)
        padded = [
            token_id
            for admission, length in zip(group, lengths, strict=True)
            for token_id in (*admission.encoder_token_ids, *(0,) * (longest - length))
        ]
        token_ids = upload(padded, torch.long, self._device).view(len(group), longest)
        places = torch.arange(longest, device=self._device)
        is_input = places < upload(lengths, torch.long, self._device)[:, None]
        states = self._adapter.encode(token_ids, is_input)
        self._keep_vectors(group, states, is_input)
        if all(admission.is_pooled for admission in group):
            return
        for layer, (keys, values) in enumerate(self._adapter.project(states)):
            for number, (admission, length) in enumerate(zip(group, lengths, strict=True)):
                own = keys[number, :, :length], values[number, :, :length]
                self.cache.write_cross(layer, admission.row, *own)
        for admission, length in zip(group, lengths, strict=True):
            self._encoder_lengths[admission.row] = length

    def _keep_vectors(
        self, group: Sequence[Admission], states: torch.Tensor, is_input: torch.Tensor
    ) -> None:
        if not any(admission.is_pooled for admission in group):
            return
        vectors = unit(mean(states, is_input))
        for admission, vector in zip(group, vectors, strict=True):
            if admission.is_pooled:
                self._vectors[admission.row] = vector

    def _pooled(self, rows: Iterable[int]) -> torch.Tensor | None:
        """The vectors [P, M] of these rows; None of none."""
        vectors = [self._vectors[row] for row in rows]
        return torch.stack(vectors) if vectors else None

    def _decode(self, chunks: tuple[Chunk, ...], vectors: torch.Tensor | None) -> Computed:
        if not chunks:
            nothing = torch.empty(0, dtype=torch.long, device=self._device)
            return Computed(nothing, (), (), (), vectors)
        host_rows = [chunk.row for chunk in chunks]
        num_rows = max(host_rows) + 1
        token_ids, positions = [0] * num_rows, [self.cache.scratch] * num_rows
        for chunk in chunks:
            (token_ids[chunk.row],) = chunk.token_ids
            positions[chunk.row] = chunk.start
        lengths = [self._encoder_lengths[row] for row in range(num_rows)]
        outputs = [chunk.output_index for chunk in chunks]
        fields = (token_ids, positions, lengths, host_rows, outputs)
        packed = upload([number for field in fields for number in field], torch.long, self._device)
        fed, places, encoder_lengths, rows, output_indices = packed.split([len(f) for f in fields])
        num_keys = max(chunk.start for chunk in chunks) + 1
        self.cache.begin(places, num_keys, max(self._encoder_lengths[row] for row in host_rows))
        states = self._adapter.decode(fed[:, None], encoder_lengths)  # [B, M]
        if host_rows != list(range(num_rows)):
            states = states.index_select(0, rows)
        logits = self._adapter.logits(states)
        sampled = self._sampler.sample(logits, rows, output_indices, host_rows)
        asking, scores = self._scorer.score_sampled(logits, sampled, host_rows)
        return Computed(sampled, asking, scores, (), vectors)


def groups(admissions: Sequence[Admission]) -> Iterator[list[Admission]]:
    """Admissions whose inputs are encoded together, so that little of it is padding."""
    group: list[Admission] = []
    num_tokens = 0
    for admission in sorted(admissions, key=_input_length):
        padded = (len(group) + 1) * _input_length(admission)
        if group and padded > MAX_PADDING * (num_tokens + _input_length(admission)):
            yield group
            group, num_tokens = [], 0
        group.append(admission)
        num_tokens += _input_length(admission)
    if group:
        yield group


def _input_length(admission: Admission) -> int:
    return len(admission.encoder_token_ids)
