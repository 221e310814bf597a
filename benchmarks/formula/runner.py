"""Executes plans by the formula, over a paged cache that holds a state where a model holds keys."""

import time
from array import array
from collections.abc import Callable

from benchmarks.formula.formula import START, Formula, advance, key_of
from scheduler.plan import Chunk, StepPlan, StepResult

NOTHING: frozenset[int] = frozenset()


class FormulaRunner:
    """Knows only what the plans say: a wrong start, block or row gives wrong tokens.

    Any part of a plan may be executed again. A step takes at least `step_seconds`, most of which
    it waits, as a process does whose GPU works: other threads and processes run meanwhile.
    """

    def __init__(
        self,
        formula: Formula,
        *,
        num_blocks: int,
        block_size: int,
        max_sequences: int,
        step_seconds: float = 0.0,
        note_step: Callable[[float, int], None] = lambda started, num_decodes: None,
    ) -> None:
        self._formula = formula
        self._block_size = block_size
        self._step_seconds = step_seconds
        self._note_step = note_step  # called with a step's start on the monotonic clock
        self._states = array("Q", bytes(8 * (num_blocks + 1) * block_size))  # by slot
        self._tables: list[list[int]] = [[] for _ in range(max_sequences)]
        self._keys = [0] * max_sequences
        self._bans = [(0, NOTHING)] * max_sequences  # before as many tokens, these

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step."""
        started = time.monotonic()
        self._note_step(started, plan.num_decodes)
        for admission in plan.admissions:
            self._tables[admission.row] = list(admission.cached_blocks)
            self._keys[admission.row] = key_of(admission.sampling)
            self._bans[admission.row] = (admission.sampling.min_tokens, admission.end_token_ids)
        states = [self._compute(chunk) for chunk in plan.chunks]
        sampled = tuple(
            self._sample(chunk, state)
            for chunk, state in zip(plan.chunks, states, strict=True)
            if chunk.samples
        )
        rest = started + self._step_seconds - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        return StepResult(sampled)

    def _compute(self, chunk: Chunk) -> int:
        """Writes the states of a chunk's tokens; returns the last one."""
        table, size, states = self._tables[chunk.row], self._block_size, self._states
        if chunk.new_blocks:
            table[-(-chunk.start // size) :] = chunk.new_blocks
        state = START
        if chunk.start:
            block, offset = divmod(chunk.start - 1, size)
            state = states[table[block] * size + offset]
        for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
            state = advance(state, token_id)
            states[table[position // size] * size + position % size] = state
        return state

    def _sample(self, chunk: Chunk, state: int) -> int:
        min_tokens, end_token_ids = self._bans[chunk.row]
        banned = end_token_ids if chunk.output_index < min_tokens else NOTHING
        return self._formula.next_token(state, self._keys[chunk.row], banned)
