"""The scheduler: continuous batching with chunked prefill over a pool of blocks.

`schedule` plans one step, whoever runs the model computes it, `apply` records what came out. Every
step carries one token of each decoding sequence and as much prefill as the token budget leaves, so
that a long prompt delays nobody by more than one chunk.

The order is first come, first served. A sequence is admitted when the pool can hold what it has so
far, not all that it may become. When a decoding sequence finds no block, the newest one that runs
gives up its own and is computed again later; the third time that this happens to a sequence, it
comes back only with blocks for all that it may become, and keeps them.
"""

from bisect import insort
from collections import deque
from itertools import islice, repeat

from scheduler.block_pool import BlockPool
from scheduler.outcome import Counters, SampledToken, told_of
from scheduler.plan import NO_TOKEN, Admission, Chunk, Move, StepPlan, StepResult, TokenScore
from scheduler.row_pool import RowPool
from scheduler.sequence import Sequence, State
from scheduler.waiting import WaitingLine, arrival, assert_in_order, remove

MAX_PREEMPTIONS = 3
MAX_ALIGNED = 8  # windows in a step: what it tells of each is large


class Scheduler:
    """Owns every sequence from `add` to its end. The caller runs one plan at a time."""

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
        self.pool = BlockPool(num_blocks)
        self.counters = Counters()
        self._block_size = block_size
        self._home_size = max(1, num_blocks // max_sequences)  # blocks that a row prefers
        self._max_tokens_per_step = max(max_tokens_per_step, max_sequences)
        self._max_early_aborts = max_early_aborts
        self._prefix_caching = prefix_caching
        self._rows_are_slots = rows_are_slots
        self._requests: dict[str, list[Sequence]] = {}  # that have not ended, by request
        self._waiting = WaitingLine()
        self._running: list[Sequence] = []  # in order of arrival
        self._rows = RowPool(max_sequences)
        self._num_promised = 0  # blocks that running sequences may still take without asking
        self._early_aborts: dict[str, None] = {}  # they overtook their sequence; oldest first
        self._num_arrived = 0
        self._step = 0

    @property
    def is_idle(self) -> bool:
        """True when no sequence waits or runs."""
        return not self._requests

    @property
    def num_running(self) -> int:
        """Sequences that hold a row."""
        return len(self._running)

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
            needed = self._num_blocks_for(sequence.max_computed)
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
        """Returns the next step: decodes first, then prefill in order of arrival."""
        self._step += 1
        moves = self._plan_moves() if self._rows_are_slots else ()
        decodes = self._plan_decodes()
        admissions: list[Admission] = []
        prefills = self._plan_prefills(len(decodes), admissions)
        chunks = (*decodes, *prefills)
        return StepPlan(self._step, tuple(admissions), chunks, len(decodes), moves)

    def apply(self, plan: StepPlan, result: StepResult) -> list[SampledToken]:
        """Records a computed step and returns what became of each sequence that it changed.

        Sequences aborted since the plan was made are passed over.
        """
        sampled = zip(result.token_ids, result.scores or repeat(None), strict=False)
        prompt_scores, vectors = iter(result.prompt_scores), iter(result.vectors)
        alignments = iter(result.alignments)
        outputs = []
        for chunk in plan.chunks:
            token_id, score = next(sampled) if chunk.samples else (None, None)
            found = tuple(islice(prompt_scores, len(chunk.targets))) if chunk.targets else ()
            vector = next(vectors) if chunk.pools else b""
            matrix = next(alignments) if chunk.num_aligned else b""
            sequence = self._rows.owner(chunk.row)
            if sequence is None:
                continue
            is_unsound = token_id == NO_TOKEN or None in found or None in (vector, matrix)
            if chunk.row in result.failed_rows or is_unsound:
                self._end(sequence, State.FAILED)
                outputs.append(SampledToken(sequence, NO_TOKEN))
                continue
            sequence.num_computed += len(chunk.token_ids)
            if found:
                sequence.score(score for score in found if score is not None)
            if token_id is not None:
                self._publish(sequence)
                outputs += self._record(sequence, token_id, score)
            if matrix:
                outputs += self._record_alignment(sequence, matrix)
            if chunk.pools:
                self._publish(sequence)
                self._end(sequence, State.STOPPED)
                outputs.append(SampledToken(sequence, NO_TOKEN, vector=vector))
        return outputs

    def check(self) -> None:
        """Asserts that blocks, rows and promises are all accounted for."""
        self.pool.check(sequence.blocks for sequence in self._running)
        self._rows.check(self._running)
        everybody = {s for siblings in self._requests.values() for s in siblings}
        assert {*self._running, *self._waiting} == everybody, "a sequence is lost"
        open_promises = sum(max(0, s.num_promised - len(s.blocks)) for s in self._running)
        assert open_promises == self._num_promised <= self.pool.num_available
        assert_in_order(self._running)
        self._waiting.check()
        for sequence in self._running:
            assert self._num_blocks_for(sequence.num_computed) <= len(sequence.blocks)

    def _remember_abort(self, request_id: str) -> None:
        self._early_aborts[request_id] = None
        if len(self._early_aborts) > self._max_early_aborts:
            del self._early_aborts[next(iter(self._early_aborts))]

    # ── planning ─────────────────────────────────────────────────────────────────────────────────

    def _plan_moves(self) -> tuple[Move, ...]:
        """Closes the gaps between the rows in use, unless somebody waits who will fill them."""
        if self._waiting:
            return ()
        moved = self._rows.close_gaps()
        return tuple(Move(source, mover.admission(mover.num_computed)) for source, mover in moved)

    def _plan_decodes(self) -> list[Chunk]:
        """One token of everybody who decodes; the newest may lose their blocks to the others."""
        decodes = []
        for sequence in tuple(self._running):
            if sequence.state is not State.RUNNING or not sequence.is_decoding:
                continue
            if sequence.num_computed % self._block_size == 0 and not self._make_room(sequence):
                continue
            decodes.append(self._chunk(sequence, 1))
        return decodes

    def _make_room(self, sequence: Sequence) -> bool:
        """Sees to it that the sequence can take one more block, or preempts it."""
        if len(sequence.blocks) < sequence.num_promised:
            return True
        while self.pool.num_available <= self._num_promised:
            victim = next(s for s in reversed(self._running) if self._may_preempt(s))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _may_preempt(self, sequence: Sequence) -> bool:
        return sequence.num_preemptions < MAX_PREEMPTIONS

    def _plan_prefills(self, num_decodes: int, admissions: list[Admission]) -> list[Chunk]:
        """Spends the budget on prompts that have begun, then on those that can be admitted."""
        budget = self._max_tokens_per_step - num_decodes
        prefills: list[Chunk] = []
        begun: deque[Sequence] = deque()
        if num_decodes < len(self._running):
            aligning = [s for s in self._running if s.is_aligning]
            begun.extend(aligning[:MAX_ALIGNED])
            prefilling = (s for s in self._running if not s.is_decoding and not s.is_aligning)
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
        if not self._waiting or not self._rows.has_free:
            return None
        sequence = self._waiting.first(lambda s: not s.waits_for_leader(self._block_size))
        if sequence is None or (admissions and sequence.encoder_input.num_positions >= budget):
            return None
        found = self._find(sequence)
        if not self._has_room(sequence, found):
            return None
        self._admit(sequence, found)
        admissions.append(sequence.admission(len(sequence.token_ids)))
        return sequence

    def _has_room(self, sequence: Sequence, found: list[int]) -> bool:
        """True when the pool can hold the sequence beside those that run.

        One block more is left for each of these, lest one be preempted soon; a slot never grows.
        """
        needed = self._num_to_promise(sequence) - len(found) + self.pool.num_unowned(found)
        is_fixed = self._rows_are_slots or sequence.num_preemptions >= MAX_PREEMPTIONS
        spare = 0 if is_fixed else len(self._running)
        return self._num_promised + needed + spare <= self.pool.num_available

    def _find(self, sequence: Sequence) -> list[int]:
        """Known blocks of the sequence's beginning; its last token is always left to compute.

        So is every token whose logits a score needs.
        """
        if sequence.cache_salt is None:
            return []
        num_tokens = len(sequence.token_ids) - 1
        num_tokens = num_tokens if sequence.is_scored else sequence.num_scored
        num_blocks = num_tokens // self._block_size
        return self.pool.find(sequence.block_keys(num_blocks, self._block_size))

    def _num_to_promise(self, sequence: Sequence) -> int:
        is_reserved = sequence.num_preemptions >= MAX_PREEMPTIONS
        num_tokens = sequence.max_computed if is_reserved else len(sequence.token_ids)
        return self._num_blocks_for(num_tokens)

    def _admit(self, sequence: Sequence, found: list[int]) -> None:
        sequence.change(State.RUNNING)
        self._waiting.admit(sequence)
        self.pool.share(found)
        sequence.blocks = found
        sequence.num_published = len(found)
        sequence.num_computed = len(found) * self._block_size
        sequence.num_promised = self._num_to_promise(sequence)
        self._num_promised += sequence.num_promised - len(found)
        self._rows.take(sequence)
        insort(self._running, sequence, key=arrival)
        self._count_lookup(sequence)

    def _count_lookup(self, sequence: Sequence) -> None:
        looked = sequence.cache_salt is not None and not sequence.num_to_score
        if sequence.num_preemptions == 0 and looked:
            sequence.num_cached = sequence.num_computed
            self.counters.num_queried_tokens += sequence.num_prompt_tokens
            self.counters.num_cached_tokens += sequence.num_cached

    def _chunk(self, sequence: Sequence, length: int) -> Chunk:
        """Plans the next tokens of a sequence and gives it the blocks that they need."""
        start = sequence.num_computed
        end = start + length
        is_covered = end <= len(sequence.blocks) * self._block_size
        is_last = end == len(sequence.token_ids)
        return Chunk(
            sequence.row,
            start,
            tuple(sequence.token_ids[start:end]),
            () if is_covered else self._grow(sequence, end),
            len(sequence.token_ids) - sequence.num_prompt_tokens,
            samples=is_last and not sequence.is_pooled,
            pools=is_last and sequence.is_pooled,
        )

    def _grow(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...]:
        num_old = len(sequence.blocks)
        while len(sequence.blocks) < self._num_blocks_for(num_tokens):
            home = sequence.row * self._home_size + 1
            preferred = sequence.blocks[-1] + 1 if sequence.blocks else home
            if len(sequence.blocks) < sequence.num_promised:
                self._num_promised -= 1
            sequence.blocks.append(self.pool.allocate(preferred))
        return tuple(sequence.blocks[num_old:])

    # ── recording ────────────────────────────────────────────────────────────────────────────────

    def _publish(self, sequence: Sequence) -> None:
        """Lets full blocks be found, now that a token was sampled from them: they are sound."""
        num_full = sequence.num_computed // self._block_size
        if num_full == sequence.num_published or sequence.cache_salt is None:
            return
        for number in range(sequence.num_published, num_full):
            key = sequence.block_key(number, self._block_size)
            self.pool.publish(sequence.blocks[number], key)
        sequence.num_published = num_full

    def _record(
        self, sequence: Sequence, token_id: int, score: TokenScore | None
    ) -> list[SampledToken]:
        told = sequence.append(token_id, score)
        if sequence.state is not State.RUNNING:
            self._release(sequence)
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
        self._release(sequence)
        self._waiting.add(sequence)

    def _end(self, sequence: Sequence, state: State) -> None:
        was_running = sequence.state is State.RUNNING
        sequence.change(state)
        if was_running:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        siblings = [s for s in self._requests[sequence.request_id] if s is not sequence]
        if siblings:
            self._requests[sequence.request_id] = siblings
        else:
            del self._requests[sequence.request_id]

    def _release(self, sequence: Sequence) -> None:
        """Takes back what `_admit` and `_grow` gave; no step that writes there may be under way."""
        self._num_promised -= max(0, sequence.num_promised - len(sequence.blocks))
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        remove(self._running, sequence)
        self._rows.give_back(sequence)

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
