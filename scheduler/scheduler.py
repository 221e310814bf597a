"""The scheduler: continuous batching with chunked prefill over a pool of blocks.

`schedule` plans one step, whoever runs the model computes it, `apply` records what came out. Every
step carries one token of each decoding sequence and as much prefill as the token budget leaves, so
that a long prompt delays nobody by more than one chunk.

A sequence is admitted when a row is free and the pool can hold it to its full length; so it never
waits for blocks once it runs. The order is first come, first served.
"""

from collections import deque
from dataclasses import dataclass

from scheduler.block_pool import BlockPool
from scheduler.plan import NO_TOKEN, Admission, Chunk, StepPlan, StepResult
from scheduler.sequence import Sequence, State


@dataclass(frozen=True)
class SampledToken:
    """One sequence's share in a step: a new token, an end, or both."""

    sequence: Sequence
    token_id: int  # NO_TOKEN when the sequence failed


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
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self._block_size = block_size
        self._home_size = max(1, num_blocks // max_sequences)  # blocks that a row prefers
        self._max_tokens_per_step = max(max_tokens_per_step, max_sequences)
        self._max_early_aborts = max_early_aborts
        self._sequences: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # by row, in order of admission
        self._free_rows = list(range(max_sequences))[::-1]
        self._num_reserved = 0  # blocks promised to running sequences
        self._early_aborts: dict[str, None] = {}  # they overtook their sequence; oldest first
        self._step = 0

    @property
    def is_idle(self) -> bool:
        """True when no sequence waits or runs."""
        return not self._sequences

    @property
    def num_running(self) -> int:
        """Sequences that hold a row."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a row or for blocks."""
        return len(self._waiting)

    def holds(self, request_id: str) -> bool:
        """True while the sequence waits or runs."""
        return request_id in self._sequences

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence that the pool can hold, unless its abort has come already."""
        needed = self._num_blocks_for(sequence.max_computed)
        assert needed <= self.pool.num_blocks, "checked at the worker's door"
        if sequence.request_id in self._early_aborts:
            del self._early_aborts[sequence.request_id]
            sequence.change(State.ABORTED)
            return
        self._sequences[sequence.request_id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> Sequence | None:
        """Ends the sequence in any state and returns it; an unknown id is remembered for `add`."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            self._remember_abort(request_id)
            return None
        was_running = sequence.state is State.RUNNING
        sequence.change(State.ABORTED)
        if was_running:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        del self._sequences[request_id]
        return sequence

    def schedule(self) -> StepPlan:
        """Returns the next step: decodes first, then prefill in order of arrival."""
        self._step += 1
        decodes = tuple(
            self._chunk(sequence, 1) for sequence in self._running.values() if sequence.is_decoding
        )
        admissions, prefills = self._plan_prefills(self._max_tokens_per_step - len(decodes))
        return StepPlan(self._step, tuple(admissions), (*decodes, *prefills), len(decodes))

    def apply(self, plan: StepPlan, result: StepResult) -> list[SampledToken]:
        """Records a computed step and returns what became of each sequence that got a token.

        Sequences aborted since the plan was made are passed over.
        """
        sampled = iter(result.token_ids)
        outputs = []
        for chunk in plan.chunks:
            token_id = next(sampled) if chunk.samples else None
            sequence = self._running.get(chunk.row)
            if sequence is None:
                continue
            sequence.num_computed += len(chunk.token_ids)
            if token_id is not None:
                self._record(sequence, token_id)
                outputs.append(SampledToken(sequence, token_id))
        return outputs

    def check(self) -> None:
        """Asserts that blocks, rows and reservations are all accounted for."""
        self.pool.check(sequence.blocks for sequence in self._running.values())
        running = list(self._running.values())
        reserved = sum(self._num_blocks_for(sequence.max_computed) for sequence in running)
        assert reserved == self._num_reserved <= self.pool.num_blocks, "reservations are wrong"
        assert not self._running.keys() & set(self._free_rows), "a row is both free and used"
        assert {*running, *self._waiting} == set(self._sequences.values()), "a sequence is lost"
        for sequence in running:
            assert self._num_blocks_for(sequence.num_computed) <= len(sequence.blocks)

    def _remember_abort(self, request_id: str) -> None:
        self._early_aborts[request_id] = None
        if len(self._early_aborts) > self._max_early_aborts:
            del self._early_aborts[next(iter(self._early_aborts))]

    def _plan_prefills(self, budget: int) -> tuple[list[Admission], list[Chunk]]:
        """Spends the budget on prompts that have begun, then on those that can be admitted."""
        admissions: list[Admission] = []
        prefills: list[Chunk] = []
        begun = deque(s for s in self._running.values() if not s.is_decoding)
        while budget and (begun or self._can_admit()):
            sequence = begun.popleft() if begun else self._admit(admissions)
            length = min(budget, sequence.num_prompt_tokens - sequence.num_computed)
            prefills.append(self._chunk(sequence, length))
            budget -= length
        return admissions, prefills

    def _can_admit(self) -> bool:
        if not self._waiting or not self._free_rows:
            return False
        needed = self._num_blocks_for(self._waiting[0].max_computed)
        return self._num_reserved + needed <= self.pool.num_blocks

    def _admit(self, admissions: list[Admission]) -> Sequence:
        sequence = self._waiting.popleft()
        sequence.change(State.RUNNING)
        sequence.row = self._free_rows.pop()
        self._running[sequence.row] = sequence
        self._num_reserved += self._num_blocks_for(sequence.max_computed)
        admissions.append(Admission(sequence.row, sequence.sampling))
        return sequence

    def _chunk(self, sequence: Sequence, length: int) -> Chunk:
        """Plans the next tokens of a sequence and gives it the blocks that they need."""
        start, end = sequence.num_computed, sequence.num_computed + length
        new_blocks = self._grow(sequence, end)
        return Chunk(
            row=sequence.row,
            start=start,
            token_ids=tuple(sequence.token_ids[start:end]),
            new_blocks=new_blocks,
            output_index=sequence.num_output_tokens,
            samples=end == len(sequence.token_ids),
        )

    def _grow(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...]:
        num_old = len(sequence.blocks)
        while len(sequence.blocks) < self._num_blocks_for(num_tokens):
            home = sequence.row * self._home_size + 1
            preferred = sequence.blocks[-1] + 1 if sequence.blocks else home
            sequence.blocks.append(self.pool.allocate(preferred))
        return tuple(sequence.blocks[num_old:])

    def _record(self, sequence: Sequence, token_id: int) -> None:
        if token_id == NO_TOKEN:
            sequence.change(State.FAILED)
        else:
            sequence.append(token_id)
        if sequence.state is not State.RUNNING:
            self._release(sequence)
            del self._sequences[sequence.request_id]

    def _release(self, sequence: Sequence) -> None:
        """Takes back what `_admit` and `_grow` gave; no step that writes there may be under way."""
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        del self._running[sequence.row]
        self._free_rows.append(sequence.row)
        self._num_reserved -= self._num_blocks_for(sequence.max_computed)

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)
