"""Encoder-decoders: inputs are encoded once, then all rows decode in one call of stock code.

Each row is at a position of its own. What differs from family to family is behind `Adapter`. The
names of dimensions are those of `slot_cache.py`; N sampled tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch

from gpu_worker.alignment import AttentionWatch, Span
from gpu_worker.compiled import Report
from gpu_worker.families.adapter import Adapter
from gpu_worker.families.compiled_adapter import CompiledAdapter
from gpu_worker.logprobs import Computed, Scorer, read
from gpu_worker.pooling import mean, unit
from gpu_worker.sampler import Sampler
from gpu_worker.slot_cache import SlotCache
from gpu_worker.step_times import FORWARD, PREPARE, SAMPLE, StepTimes
from gpu_worker.transcription import Transcripts
from gpu_worker.upload import upload, within
from scheduler.plan import Admission, Chunk, Move, StepPlan, StepResult

MAX_PADDING = 2.0  # of inputs that are encoded together: padded positions for each real one


class EncoderDecoder:
    """Runs plans on one model, its slots and the sampler's rows."""

    def __init__(
        self,
        adapter: Adapter,
        cache: SlotCache,
        num_rows: int,
        transcripts: Transcripts | None = None,
    ) -> None:
        """With `transcripts` their rules hold, and every token is told with how likely it was."""
        device = cache.geometry.device
        self.cache = cache
        self.times = StepTimes()  # the step loop's, too
        self._adapter = adapter
        self._device = device
        self._encoder_lengths = [0] * num_rows
        self._vectors: dict[int, torch.Tensor] = {}  # [M], of the rows whose inputs are pooled
        self._transcripts = transcripts
        self._sampler = Sampler(num_rows, adapter.vocab_size, device)
        self._scorer = Scorer(adapter.vocab_size, device)

    @torch.inference_mode()
    def compile(self, mode: str, report: Report) -> None:
        """From now on decodes by compiled graphs, if the model can be compiled.

        The mode is one of torch.compile's; `report` is told of each graph.
        """
        compiled = CompiledAdapter(self._adapter, mode, self._device)
        if compiled.warm_up(self._begin_idle, len(self._encoder_lengths), report):
            self._adapter = compiled

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Moves, encodes, decodes and samples what the plan asks for."""
        for move in plan.moves:
            self._move(move)
        self.times.mark(PREPARE)
        unread = [admission for admission in plan.admissions if _length(admission)]
        for group in groups(unread):
            self._encode(group)
        self.times.mark(FORWARD)
        for admission in (*(move.admission for move in plan.moves), *plan.admissions):
            self._sampler.begin(admission)
            self._scorer.begin(admission)
            if self._transcripts is not None:
                self._transcripts.begin(admission)
        self._sampler.observe(plan)
        if self._transcripts is not None:
            self._transcripts.observe(plan.chunks)
        self.times.mark(PREPARE)
        return read([self._compute(plan.chunks)])  # the step's one synchronisation

    def _move(self, move: Move) -> None:
        target = move.admission.row
        length = self._encoder_lengths[move.source]
        self.cache.move(move.source, target, len(move.admission.token_ids), length)
        self._encoder_lengths[target] = length

    def _encode(self, group: Sequence[Admission]) -> None:
        """Encodes inputs of like length together and keeps what the decoder will look at."""
        lengths = [_length(admission) for admission in group]
        states = self._adapter.encode(group)
        self._keep_vectors(group, states, lengths)
        if all(admission.is_pooled for admission in group):
            return
        for layer, (keys, values) in enumerate(self._adapter.project(states)):
            for number, (admission, length) in enumerate(zip(group, lengths, strict=True)):
                own = keys[number, :, :length], values[number, :, :length]
                self.cache.write_cross(layer, admission.row, *own)
        for admission, length in zip(group, lengths, strict=True):
            self._encoder_lengths[admission.row] = length

    def _keep_vectors(
        self, group: Sequence[Admission], states: torch.Tensor, lengths: list[int]
    ) -> None:
        if not any(admission.is_pooled for admission in group):
            return
        vectors = unit(mean(states, within(lengths, states.shape[1], self._device)))
        for admission, vector in zip(group, vectors, strict=True):
            if admission.is_pooled:
                self._vectors[admission.row] = vector

    def _compute(self, chunks: tuple[Chunk, ...]) -> Computed:
        pooled = [self._vectors[chunk.row] for chunk in chunks if chunk.pools]
        vectors = torch.stack(pooled) if pooled else None
        alignments = self._align([chunk for chunk in chunks if chunk.num_aligned])
        answered = [chunk for chunk in chunks if not chunk.pools and not chunk.num_aligned]
        sampling = [chunk for chunk in answered if chunk.samples]
        states = self._states(answered)
        if not sampling:
            self.times.mark(FORWARD)
            nothing = torch.empty(0, dtype=torch.long, device=self._device)
            return Computed(nothing, (), (), (), vectors, alignments)
        host_rows = [chunk.row for chunk in sampling]
        outputs = [chunk.output_index for chunk in sampling]
        packed = upload([*host_rows, *outputs], torch.long, self._device)
        rows, output_indices = packed.split(len(sampling))
        raw = logits = self._adapter.logits(states)
        self.times.mark(FORWARD)
        if self._transcripts is not None:
            logits = self._transcripts.filtered(raw, host_rows)
        sampled = self._sampler.sample(logits, rows, output_indices, host_rows)
        asking, scores = self._scorer.score_sampled(logits, sampled, host_rows)
        if self._transcripts is not None:
            asking = tuple(range(len(sampling)))
            scores = (self._transcripts.scores(raw, logits, sampled, host_rows),)
        self.times.mark(SAMPLE)
        return Computed(sampled, asking, scores, (), vectors, alignments)

    def _align(self, chunks: list[Chunk]) -> tuple[torch.Tensor, ...]:
        """Where each chunk's tokens were heard, [T, E] of those that it asks for."""
        if not chunks:
            return ()
        spans = [Span(c.first_aligned, len(c.token_ids), c.num_aligned) for c in chunks]
        watch = self._adapter.watch(spans)
        self._prefill(chunks, watch)
        return watch.matrices()

    def _states(self, chunks: list[Chunk]) -> torch.Tensor:
        """The states [N, M] of the last tokens of the chunks that sample, in their order."""
        tokens = [chunk for chunk in chunks if len(chunk.token_ids) == 1]
        prompts = [chunk for chunk in chunks if len(chunk.token_ids) > 1]
        parts = [self._decode(tokens)] if tokens else []
        parts += [self._prefill(prompts)] if prompts else []
        places = {chunk.row: place for place, chunk in enumerate((*tokens, *prompts))}
        wanted = [places[chunk.row] for chunk in chunks if chunk.samples]
        states = torch.cat(parts) if parts else torch.empty(0, device=self._device)
        if wanted == list(range(len(states))):
            return states
        return states.index_select(0, upload(wanted, torch.long, self._device))

    def _decode(self, chunks: list[Chunk]) -> torch.Tensor:
        """The states [B, M] of one token of each row; the rows between them compute for nobody."""
        host_rows = [chunk.row for chunk in chunks]
        num_rows = max(host_rows) + 1
        token_ids, positions = [0] * num_rows, [self.cache.scratch] * num_rows
        for chunk in chunks:
            (token_ids[chunk.row],) = chunk.token_ids
            positions[chunk.row] = chunk.start
        lengths = [self._encoder_lengths[row] for row in range(num_rows)]
        fields = (token_ids, positions, lengths, host_rows)
        packed = upload([number for field in fields for number in field], torch.long, self._device)
        fed, places, encoder_lengths, rows = packed.split([len(field) for field in fields])
        self._begin(chunks, places[:, None], encoder_lengths)
        states = self._adapter.decode(fed[:, None], places[:, None])[:, 0]
        return states if host_rows == list(range(num_rows)) else states.index_select(0, rows)

    def _begin_idle(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_decode`, for as many rows of nobody: the tokens and positions, [B, 1] each."""
        positions = torch.full((num_rows, 1), self.cache.scratch, device=self._device)
        self.cache.begin(positions, 1, 1)
        return torch.zeros_like(positions), positions

    def _prefill(self, chunks: list[Chunk], watch: AttentionWatch | None = None) -> torch.Tensor:
        """The states [B, M] of the last tokens of prompts, which are padded on the right."""
        longest = max(len(chunk.token_ids) for chunk in chunks)
        token_ids, positions = [], []
        for chunk in chunks:
            padding = longest - len(chunk.token_ids)
            token_ids += [*chunk.token_ids, *(0,) * padding]
            end = chunk.start + len(chunk.token_ids)
            positions += [*range(chunk.start, end), *(self.cache.scratch,) * padding]
        rows = [chunk.row for chunk in chunks]
        lengths = [self._encoder_lengths[row] for row in rows]
        lasts = [len(chunk.token_ids) - 1 for chunk in chunks]
        fields = (token_ids, positions, rows, lengths, lasts)
        packed = upload([number for field in fields for number in field], torch.long, self._device)
        fed, places, row_ids, encoder_lengths, last_places = packed.split([len(f) for f in fields])
        shape = (len(chunks), longest)
        self._begin(chunks, places.view(shape), encoder_lengths, row_ids)
        states = self._adapter.decode(fed.view(shape), places.view(shape), watch)
        return states[torch.arange(len(chunks), device=self._device), last_places]

    def _begin(
        self,
        chunks: list[Chunk],
        positions: torch.Tensor,
        encoder_lengths: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Prepares the cache; inputs of one length need no mask."""
        num_keys = max(chunk.start + len(chunk.token_ids) for chunk in chunks)
        lengths = {self._encoder_lengths[chunk.row] for chunk in chunks}
        masked = encoder_lengths if len(lengths) > 1 else None
        self.cache.begin(positions, num_keys, max(lengths), masked, rows)


def groups(admissions: Sequence[Admission]) -> Iterator[list[Admission]]:
    """Admissions whose inputs are encoded together, so that little of it is padding."""
    group: list[Admission] = []
    num_positions = 0
    for admission in sorted(admissions, key=_length):
        length = _length(admission)
        padded = (len(group) + 1) * length
        if group and padded > MAX_PADDING * (num_positions + length):
            yield group
            group, num_positions = [], 0
        group.append(admission)
        num_positions += length
    if group:
        yield group


def _length(admission: Admission) -> int:
    return admission.encoder_input.num_positions
