"""Executes plans by the formula, over a paged cache that holds a state where a model holds keys."""

import math
import time
from array import array
from collections.abc import Callable, Iterator

from benchmarks.formula.formula import START, Formula, advance, key_of
from benchmarks.formula.scores import Likelihoods
from scheduler.plan import Chunk, StepPlan, StepResult, TokenScore

NOTHING: frozenset[int] = frozenset()
VECTOR_SIZE = 4


def vector(state: int) -> bytes:
    """Numbers of length 1 that tell states apart."""
    parts = [((state >> 16 * n) & 0xFFFF) + 1.0 for n in range(VECTOR_SIZE)]
    length = math.hypot(*parts)
    return array("f", [part / length for part in parts]).tobytes()


class FormulaRunner:
    """Knows only what the plans say: a wrong start, block or row gives wrong tokens.

    Any part of a plan may be executed again. A step takes at least `step_seconds`, most of which
    it waits, as a process does whose GPU works: other threads and processes run meanwhile.
    """

    def __init__(
        self,
        formula: Formula,
        likelihoods: Likelihoods,
        *,
        num_blocks: int,
        block_size: int,
        max_sequences: int,
        step_seconds: float = 0.0,
        note_step: Callable[[float, int], None] = lambda started, num_decodes: None,
    ) -> None:
        self._formula = formula
        self._likelihoods = likelihoods
        self._block_size = block_size
        self._step_seconds = step_seconds
        self._note_step = note_step  # called with a step's start on the monotonic clock
        self._states = array("Q", bytes(8 * (num_blocks + 1) * block_size))  # by slot
        self._tables: list[list[int]] = [[] for _ in range(max_sequences)]
        self._keys = [0] * max_sequences
        self._num_told: list[tuple[int | None, int]] = [(None, 0)] * max_sequences
        self._bans = [(0, NOTHING)] * max_sequences  # before as many tokens, these

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step."""
        started = time.monotonic()
        self._note_step(started, plan.num_decodes)
        for admission in plan.admissions:
            self._tables[admission.row] = list(admission.cached_blocks)
            sampling = admission.sampling
            self._keys[admission.row] = key_of(sampling)
            self._num_told[admission.row] = sampling.num_logprobs, sampling.num_prompt_logprobs or 0
            self._bans[admission.row] = (admission.sampling.min_tokens, admission.end_token_ids)
        states = [self._compute(chunk) for chunk in plan.chunks]
        result = self._result(plan, states)
        rest = started + self._step_seconds - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        return result

    def _result(self, plan: StepPlan, states: list[int]) -> StepResult:
        """Samples after the last token of each chunk, and scores what is to be scored."""
        ends = [end for end in zip(plan.chunks, states, strict=True) if end[0].samples]
        sampled = [self._sample(chunk, state) for chunk, state in ends]
        scores: list[TokenScore | None] = []
        if any(self._num_told[chunk.row][0] is not None for chunk, _ in ends):
            scores = [self._score(*end, token) for end, token in zip(ends, sampled, strict=True)]
        targets = [score for chunk in plan.chunks for score in self._prompt_scores(chunk)]
        pooled = zip(plan.chunks, states, strict=True)
        return StepResult(
            tuple(sampled),
            scores=tuple(scores),
            prompt_scores=tuple(targets),
            vectors=tuple(vector(state) for chunk, state in pooled if chunk.pools),
        )

    def _score(self, chunk: Chunk, state: int, token_id: int) -> TokenScore | None:
        num_told = self._num_told[chunk.row][0]
        if num_told is None:
            return None
        return TokenScore(*self._likelihoods.score(state, token_id, num_told))

    def _prompt_scores(self, chunk: Chunk) -> Iterator[TokenScore]:
        table, size, num_told = self._tables[chunk.row], self._block_size, self._num_told[chunk.row]
        for position, token_id in enumerate(chunk.targets, start=chunk.first_scored):
            state = self._states[table[position // size] * size + position % size]
            yield TokenScore(*self._likelihoods.score(state, token_id, num_told[1]))

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
