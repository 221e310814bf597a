"""The scheduler: continuous batching with chunked prefill over a pool of blocks.

`schedule` plans one step, whoever runs the model computes it, `apply` records what came out. Every
step carries one token of each decoding sequence and as much prefill as the token budget leaves, so
that a long prompt delays nobody by more than one chunk.

The order is first come, first served. A sequence is admitted when the pool can hold what it has so
far, not all that it may become. When a decoding sequence finds no block, the newest one that runs
gives up its own and is computed again later; the third time that this happens to a sequence, it
comes back only with blocks for all that it may become, and keeps them.

While a step is under way, `schedule_ahead` may plan the next one: a decode of the tokens that the
first is yet to sample. One that turns out to be an end has cost a row for nothing.
"""

from collections import deque
from itertools import islice, repeat

from scheduler.outcome import Counters, SampledToken, told_of
from scheduler.places import Places
from scheduler.plan import (
    NO_TOKEN,
    PENDING,
    Admission,
    Chunk,
    Move,
    StepPlan,
    StepResult,
    TokenScore,
)
from scheduler.sequence import Sequence, State
from scheduler.waiting import WaitingLine

MAX_ALIGNED = 8  # windows in a step: what it tells of each is large


class Scheduler:
    """Owns every sequence from `add` to its end. The caller runs plans in order, two at most."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_sequences: int,
        max_tokens_per_step: int,
        max_early_aborts: int = 256,
        prefix_caching: bool = True,
        rows_are_slots: bool = False,
    ) -> None:
        """With `rows_are_slots` the rows in use are kept together, from 0, by moving sequences."""
        self._places = Places(
            num_blocks=num_blocks,
            block_size=block_size,
            num_rows=max_sequences,
            rows_are_slots=rows_are_slots,
        )
        self.pool = self._places.pool
        self.counters = Counters()
        self._block_size = block_size
        self._max_tokens_per_step = max(max_tokens_per_step, max_sequences)
        self._max_early_aborts = max_early_aborts
        self._prefix_caching = prefix_caching
        self._rows_are_slots = rows_are_slots
        self._requests: dict[str, list[Sequence]] = {}  # that have not ended, by request
        self._waiting = WaitingLine()
        self._early_aborts: dict[str, None] = {}  # they overtook their sequence; oldest first
        self._num_arrived = 0
        self._step = 0
        self._num_under_way = 0  # steps that were planned and are not recorded yet

    @property
    def is_idle(self) -> bool:
        """True when no sequence waits or runs, and no step is under way."""
        return not self._requests and not self._num_under_way

    @property
    def num_running(self) -> int:
        """Sequences that hold a row."""
        return len(self._places.running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a row or for blocks."""
        return len(self._waiting)

    def holds(self, request_id: str) -> bool:
        """True while a sequence of the request waits or runs."""
        return request_id in self._requests

    def add(self, *siblings: Sequence) -> None:
        """Queues the sequences of a request, unless its abort has come already.

        The pool must be able to hold each of them alone to its full length.
        """
        request_id = siblings[0].request_id
        if request_id in self._early_aborts:
            del self._early_aborts[request_id]
            for sequence in siblings:
                sequence.change(State.ABORTED)
            return
        self._requests[request_id] = list(siblings)
        for sequence in siblings:
            needed = self._places.num_blocks_for(sequence.max_computed)
            assert needed <= self.pool.num_blocks, "checked at the worker's door"
            sequence.arrival = self._num_arrived
            self._num_arrived += 1
            if not self._prefix_caching and sequence.cache_salt is not None:
                # Nothing is shared beyond the request, whose answers have one prompt.
                is_alone = len(siblings) == 1 or sequence.is_pooled
                sequence.cache_salt = None if is_alone else str(siblings[0].arrival)
            self._waiting.add(sequence)

    def abort(self, request_id: str, choice: int | None = None) -> list[Sequence]:
        """Ends one answer of the request, or all, in any state, and returns them.

        The abort of a whole request that is not known is remembered for `add`.
        """
        if request_id not in self._requests and choice is None:
            self._remember_abort(request_id)
        siblings = self._requests.get(request_id, ())
        aborted = [s for s in siblings if choice is None or s.choice == choice]
        for sequence in aborted:
            self._end(sequence, State.ABORTED)
        return aborted

    def schedule(self) -> StepPlan:
        """Returns the next step: decodes first, then prefill in order of arrival.

        No step may be under way; for that there is `schedule_ahead`.
        """
        assert not self._num_under_way, "a step is under way"
        self._step += 1
        moves = self._plan_moves() if self._rows_are_slots else ()
        decodes = self._plan_decodes()
        admissions: list[Admission] = []
        prefills = self._plan_prefills(len(decodes), admissions)
        chunks = (*decodes, *prefills)
        self._num_under_way += bool(chunks)
        return StepPlan(self._step, tuple(admissions), chunks, len(decodes), moves)

    def schedule_ahead(self) -> StepPlan | None:
        """Returns the step after the one that is under way, or None: record that one first.

        It decodes; whoever could be admitted, has a prompt to compute or would be preempted is
        not made to wait for it.
        """
        assert self._num_under_way == 1, "it is planned ahead of one step"
        decoding = [s for s in self._places.running if s.is_decoding]
        num_needed = sum(self._places.needs_block(s) for s in decoding)
        if self._rows_are_slots or not decoding or num_needed > self._places.num_to_spare:
            return None
        if next(self._places.prefilling(), None) is not None or self._could_admit():
            return None
        self._step += 1
        self._num_under_way += 1
        decodes = tuple(self._plan_decodes())
        return StepPlan(self._step, (), decodes, len(decodes))

    def apply(self, plan: StepPlan, result: StepResult) -> list[SampledToken]:
        """Records a computed step and returns what became of each sequence that it changed.

        Sequences that have ended since the plan was made are passed over.
        """
        self._num_under_way -= not plan.is_empty
        sampled = zip(result.token_ids, result.scores or repeat(None), strict=False)
        prompt_scores, vectors = iter(result.prompt_scores), iter(result.vectors)
        alignments, owner_of = iter(result.alignments), self._places.rows.owner
        outputs = []
        for chunk in plan.chunks:
            token_id, score = next(sampled) if chunk.samples else (None, None)
            found = tuple(islice(prompt_scores, len(chunk.targets))) if chunk.targets else ()
            vector = next(vectors) if chunk.pools else b""
            matrix = next(alignments) if chunk.num_aligned else b""
            sequence, length = owner_of(chunk.row), len(chunk.token_ids)
            assert sequence is not None, "it keeps its row while a step is under way"
            sequence.num_flying -= length
            sequence.num_awaited -= chunk.samples
            if sequence.state is not State.RUNNING:
                self._places.land(sequence)
                continue
            is_unsound = token_id == NO_TOKEN or None in found or None in (vector, matrix)
            if chunk.row in result.failed_rows or is_unsound:
                self._end(sequence, State.FAILED)
                outputs.append(SampledToken(sequence, NO_TOKEN))
                continue
            sequence.num_computed += length
            if found:
                sequence.score(score for score in found if score is not None)
            if token_id is not None:
                self._places.publish(sequence)
                outputs += self._record(sequence, token_id, score)
            if matrix:
                outputs += self._record_alignment(sequence, matrix)
            if chunk.pools:
                self._places.publish(sequence)
                self._end(sequence, State.STOPPED)
                outputs.append(SampledToken(sequence, NO_TOKEN, vector=vector))
        return outputs

    def check(self) -> None:
        """Asserts that blocks, rows and promises are all accounted for."""
        self._places.check()
        everybody = {s for siblings in self._requests.values() for s in siblings}
        assert {*self._places.running, *self._waiting} == everybody, "a sequence is lost"
        self._waiting.check()

    def _remember_abort(self, request_id: str) -> None:
        self._early_aborts[request_id] = None
        if len(self._early_aborts) > self._max_early_aborts:
            del self._early_aborts[next(iter(self._early_aborts))]

    # ── planning ─────────────────────────────────────────────────────────────────────────────────

    def _plan_moves(self) -> tuple[Move, ...]:
        """Closes the gaps between the rows in use, unless somebody waits who will fill them."""
        if self._waiting:
            return ()
        moved = self._places.rows.close_gaps()
        return tuple(Move(source, mover.admission(mover.num_computed)) for source, mover in moved)

    def _plan_decodes(self) -> list[Chunk]:
        """One token of everybody who decodes; the newest may lose their blocks to the others."""
        decodes = []
        for sequence in tuple(self._places.running):
            if sequence.state is not State.RUNNING or not sequence.is_decoding:
                continue
            num_planned = sequence.num_computed + sequence.num_flying
            if num_planned % self._block_size == 0 and not self._make_room(sequence):
                continue
            decodes.append(self._chunk(sequence, 1))
        return decodes

    def _make_room(self, sequence: Sequence) -> bool:
        """Sees to it that the sequence can take one more block, or preempts it."""
        if not self._places.needs_block(sequence):
            return True
        while self._places.num_to_spare <= 0:
            victim = next(s for s in reversed(self._places.running) if s.may_yield)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _plan_prefills(self, num_decodes: int, admissions: list[Admission]) -> list[Chunk]:
        """Spends the budget on prompts that have begun, then on those that can be admitted."""
        budget = self._max_tokens_per_step - num_decodes
        prefills: list[Chunk] = []
        begun: deque[Sequence] = deque()
        if num_decodes < len(self._places.running):
            aligning = [s for s in self._places.running if s.is_aligning]
            begun.extend(aligning[:MAX_ALIGNED])
            prefilling = [s for s in self._places.prefilling() if not s.is_aligning]
            begun.extend(sorted(prefilling, key=lambda s: s.is_pooled))
        while budget > 0:
            sequence = self._next_to_prefill(begun, budget, admissions)
            if sequence is None:
                break
            if sequence.begins_anew:
                admissions.append(sequence.admission(len(sequence.token_ids)))
                sequence.begins_anew = False
            length = sequence.num_to_prefill(budget)
            prefills.append(sequence.asking(self._chunk(sequence, length)))
            budget -= length
            if sequence.num_computed == 0:
                budget -= sequence.encoder_input.num_positions
        return prefills

    def _next_to_prefill(
        self, begun: deque[Sequence], budget: int, admissions: list[Admission]
    ) -> Sequence | None:
        """One that has begun, else one that can be admitted; what is pooled lets answers pass."""
        if begun and not (begun[0].is_pooled and self._waiting.has_answers):
            return begun.popleft()
        admitted = self._admit_next(budget, admissions)
        return begun.popleft() if admitted is None and begun else admitted

    def _admit_next(self, budget: int, admissions: list[Admission]) -> Sequence | None:
        """Admits the first that waits if a row is free, and blocks for what it has so far.

        One whose leader still computes their prompt is passed over until its blocks can be shared.
        An encoder reads its input whole: one that exceeds what is left of the budget comes first in
        a step or not at all.
        """
        sequence = self._next_waiting()
        if sequence is None or (admissions and sequence.encoder_input.num_positions >= budget):
            return None
        found = self._places.find(sequence)
        if not self._places.has_room(sequence, found):
            return None
        self._admit(sequence, found)
        admissions.append(sequence.admission(len(sequence.token_ids)))
        return sequence

    def _next_waiting(self) -> Sequence | None:
        if not self._waiting or not self._places.rows.has_free:
            return None
        return self._waiting.first(lambda s: not s.waits_for_leader(self._block_size))

    def _could_admit(self) -> bool:
        """True when a sequence that waits could run."""
        sequence = self._next_waiting()
        if sequence is None:
            return False
        return self._places.has_room(sequence, self._places.find(sequence))

    def _admit(self, sequence: Sequence, found: list[int]) -> None:
        sequence.change(State.RUNNING)
        self._waiting.admit(sequence)
        self._places.take(sequence, found)
        self._count_lookup(sequence)

    def _count_lookup(self, sequence: Sequence) -> None:
        looked = sequence.cache_salt is not None and not sequence.num_to_score
        if sequence.num_preemptions == 0 and looked:
            sequence.num_cached = sequence.num_computed
            self.counters.num_queried_tokens += sequence.num_prompt_tokens
            self.counters.num_cached_tokens += sequence.num_cached

    def _chunk(self, sequence: Sequence, length: int) -> Chunk:
        """Plans the next tokens of a sequence and gives it the blocks that they need."""
        start = sequence.num_computed + sequence.num_flying
        end = start + length
        num_tokens = len(sequence.token_ids) + sequence.num_awaited
        is_covered = end <= len(sequence.blocks) * self._block_size
        is_last = end == num_tokens
        samples = is_last and not sequence.is_pooled
        sequence.num_flying += length
        sequence.num_awaited += samples
        return Chunk(
            sequence.row,
            start,
            tuple(sequence.token_ids[start:end]) or (PENDING,),
            () if is_covered else self._places.grow(sequence, end),
            num_tokens - sequence.num_prompt_tokens,
            samples=samples,
            pools=is_last and sequence.is_pooled,
        )

    # ── recording ────────────────────────────────────────────────────────────────────────────────

    def _record(
        self, sequence: Sequence, token_id: int, score: TokenScore | None
    ) -> list[SampledToken]:
        told = sequence.append(token_id, score)
        if sequence.state is not State.RUNNING:
            self._places.leave(sequence)
            self._forget(sequence)
        return told_of(sequence, told)

    def _record_alignment(self, sequence: Sequence, matrix: bytes) -> list[SampledToken]:
        end, told = sequence.align(matrix)
        self._end(sequence, end)
        return told_of(sequence, told)

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to its place in the queue, without its blocks."""
        sequence.change(State.WAITING)
        sequence.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._places.leave(sequence)
        self._waiting.add(sequence)

    def _end(self, sequence: Sequence, state: State) -> None:
        was_running = sequence.state is State.RUNNING
        sequence.change(state)
        if was_running:
            self._places.leave(sequence)
        else:
            self._waiting.remove(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        siblings = [s for s in self._requests[sequence.request_id] if s is not sequence]
        if siblings:
            self._requests[sequence.request_id] = siblings
        else:
            del self._requests[sequence.request_id]
