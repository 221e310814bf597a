"""A sequence: the tokens of one answer, where they lie, and the states it goes through.

A sequence waits until a row and its blocks are free, runs (its prompt in chunks, then token by
token) and ends exactly once: at an end token, at its length, when nobody wants it any more, or when
the model fails on it. A running one may lose its blocks to an older one; then it waits again, and
the keys and values of all its tokens are computed again. It can be aborted until it has ended.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum

from scheduler import prefix
from scheduler.plan import NO_INPUT, Admission, Chunk, EncoderInput, TokenScore
from scheduler.prefix import BlockKey
from shared.sampling import NUM_SEEDS, SamplingParams

MAX_PREEMPTIONS = 3


class State(StrEnum):
    """Where a sequence stands; the last four are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPED = "stopped"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"


LEGAL_TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.ABORTED}),
    State.RUNNING: frozenset(
        {State.WAITING, State.STOPPED, State.LENGTH, State.ABORTED, State.FAILED}
    ),
    State.STOPPED: frozenset(),
    State.LENGTH: frozenset(),
    State.ABORTED: frozenset(),
    State.FAILED: frozenset(),
}

FINISH_REASONS: dict[State, str] = {
    State.STOPPED: "stop",
    State.LENGTH: "length",
    State.ABORTED: "abort",
    State.FAILED: "error",
}


Told = tuple[int, int, TokenScore | None]  # a token of the answer: its number, its id, its score


class IllegalTransition(Exception):
    """A sequence was asked to change to a state that does not follow from its own."""


class Sequence:
    """One answer in the scheduler; `row` and `blocks` are its own only while it runs.

    A request for several answers has as many sequences; all but the first follow a `leader`, whose
    prompt they share.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: tuple[int, ...],
        max_tokens: int,
        end_token_ids: frozenset[int],
        sampling: SamplingParams,
        *,
        cache_salt: str | None = "",
        encoder_input: EncoderInput = NO_INPUT,
        is_pooled: bool = False,
    ) -> None:
        self.request_id = request_id
        self.is_pooled = is_pooled  # a vector of the prompt is wanted, and no answer
        self.encoder_input = encoder_input
        self.choice = 0  # which answer of the request
        self.leader: Sequence | None = None
        self.num_prompt_tokens = len(prompt_token_ids)
        self.max_tokens = max_tokens
        self.end_token_ids = end_token_ids
        self.sampling = sampling
        self.cache_salt = cache_salt  # sequences with the same salt share blocks; None: with nobody
        self.token_ids = list(prompt_token_ids)  # the prompt, then the answer
        self.arrival = -1  # number in the order of arrival: the scheduler's
        self.num_computed = 0  # tokens whose keys and values are in the pool
        self.num_flying = 0  # tokens after these that steps under way compute
        self.num_awaited = 0  # tokens after `token_ids` that steps under way sample
        self.num_published = 0  # blocks that the prefix cache knows, or knew
        self.num_cached = 0  # prompt tokens that were there already when it first ran
        self.num_preemptions = 0
        self.row = -1
        self.blocks: list[int] = []
        self.num_promised = 0  # blocks that it may take without asking, owned ones included
        # A prompt that is scored is scored but for its first token, for which there are no logits.
        self.num_to_score = 0 if sampling.num_prompt_logprobs is None else len(prompt_token_ids) - 1
        self.num_scored = 0  # prompt tokens so far, whatever was computed more than once
        self.begins_anew = False  # the runner must be told that the answer has no token any more
        self._prompt_scores: list[TokenScore] = []
        self._block_keys: list[BlockKey] = []
        self._state = State.WAITING

    def fork(self, choice: int) -> "Sequence":
        """Another answer to the same prompt, with noise of its own; it does not score again."""
        prompt = tuple(self.token_ids[: self.num_prompt_tokens])
        seed = (self.sampling.seed + choice) % NUM_SEEDS
        sampling = replace(self.sampling, seed=seed, num_prompt_logprobs=None)
        sibling = Sequence(
            self.request_id,
            prompt,
            self.max_tokens,
            self.end_token_ids,
            sampling,
            cache_salt=self.cache_salt,
            encoder_input=self.encoder_input,
        )
        sibling.choice = choice
        sibling.leader = self
        return sibling

    @property
    def state(self) -> State:
        """Where the sequence stands."""
        return self._state

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_planned(self) -> int:
        """Tokens whose keys and values are in the pool, or will be after the steps under way."""
        return self.num_computed + self.num_flying

    @property
    def is_decoding(self) -> bool:
        """True when only the newest token, a sampled one, is left to compute, and one may follow.

        The newest may still be awaited.
        """
        num_tokens = len(self.token_ids) + self.num_awaited
        if self.num_computed + self.num_flying != num_tokens - 1:
            return False
        num_answered = num_tokens - self.num_prompt_tokens
        # One whose last token is awaited ends with it, whichever it is.
        return num_answered > 0 and (not self.num_awaited or num_answered < self.max_tokens)

    @property
    def may_yield(self) -> bool:
        """False once it has lost its blocks so often that it keeps them to its end."""
        return self.num_preemptions < MAX_PREEMPTIONS

    @property
    def is_aligning(self) -> bool:
        """True when its next chunk, which is told as a whole, is of tokens that it has had."""
        return False

    @property
    def is_scored(self) -> bool:
        """True when nothing of the prompt is left to score."""
        return self.num_scored == self.num_to_score

    @property
    def max_computed(self) -> int:
        """Most tokens that will ever lie in the pool: the last sampled one never does."""
        return self.num_prompt_tokens + self.max_tokens - 1

    def block_keys(self, num_blocks: int, block_size: int) -> Iterator[BlockKey]:
        """Keys of the first full blocks; only those that are asked for are computed."""
        if self.leader is not None and not self._block_keys:  # what it knows of the same prompt
            num_shared = self.num_prompt_tokens // block_size
            self._block_keys = self.leader._block_keys[:num_shared]
        yield from self._block_keys[:num_blocks]
        for number in range(len(self._block_keys), num_blocks):
            yield self.block_key(number, block_size)

    def block_key(self, number: int, block_size: int) -> BlockKey:
        """The key of one full block, from 0; its tokens must be known."""
        assert self.cache_salt is not None, "it shares with nobody"
        keys = self._block_keys
        while len(keys) <= number:
            parent = keys[-1] if keys else prefix.root(self.cache_salt)
            start = len(keys) * block_size
            keys.append(prefix.block_key(parent, self.token_ids[start : start + block_size]))
        return keys[number]

    def waits_for_leader(self, block_size: int) -> bool:
        """True while another answer to the prompt computes the blocks that this one will share.

        Also while it scores the prompt: the scores are told with the request's first token.
        """
        leader = self.leader
        if leader is None:
            return False
        if not leader.is_scored and leader.state in (State.WAITING, State.RUNNING):
            return True
        if leader.state is not State.RUNNING or self.cache_salt is None:
            return False
        return leader.num_computed < leader.num_prompt_tokens > block_size

    def num_to_prefill(self, budget: int) -> int:
        """How many of its tokens the next chunk takes, where a step has room for so many."""
        return min(budget, len(self.token_ids) - self.num_computed)

    def asking(self, chunk: Chunk) -> Chunk:
        """A chunk of its tokens, with the prompt tokens that it scores and that no one did yet."""
        if self.is_scored:
            return chunk
        first = max(chunk.start, self.num_scored)
        end = min(chunk.start + len(chunk.token_ids), self.num_to_score)
        return chunk._replace(
            first_scored=first, targets=tuple(self.token_ids[first + 1 : end + 1])
        )

    def admission(self, num_tokens: int) -> Admission:
        """What the runner is told when the sequence takes its row, with so many of its tokens."""
        return Admission(
            row=self.row,
            sampling=self.sampling,
            token_ids=tuple(self.token_ids[:num_tokens]),
            num_prompt_tokens=self.num_prompt_tokens,
            end_token_ids=self.end_token_ids,
            cached_blocks=tuple(self.blocks),
            encoder_input=self.encoder_input,
            is_pooled=self.is_pooled,
        )

    def score(self, scores: Iterable[TokenScore]) -> None:
        """Keeps the scores of the prompt tokens that follow."""
        self._prompt_scores += scores
        self.num_scored = len(self._prompt_scores)

    def take_prompt_scores(self) -> tuple[TokenScore, ...]:
        """Hands the prompt's scores over, and keeps none; () unless they are complete."""
        scores = tuple(self._prompt_scores) if self.is_scored else ()
        self._prompt_scores = []
        return scores

    def change(self, state: State) -> None:
        """Moves to another state, or raises IllegalTransition."""
        if state not in LEGAL_TRANSITIONS[self._state]:
            raise IllegalTransition(f"{self.request_id}: {self._state} to {state}")
        self._state = state

    def append(self, token_id: int, score: TokenScore | None = None) -> tuple[Told, ...]:
        """Records a sampled token and ends the sequence when it is the last.

        Returns the tokens that may be told now.
        """
        self.token_ids.append(token_id)
        end = self.end_after(token_id)
        if end is not None:
            self.change(end)
        return ((self.num_output_tokens - 1, token_id, score),)

    def end_after(self, token_id: int) -> State | None:
        """How the answer ends with this token, its newest; None: it goes on."""
        if token_id in self.end_token_ids:
            return State.STOPPED
        is_full = len(self.token_ids) == self.num_prompt_tokens + self.max_tokens
        return State.LENGTH if is_full else None

    def align(self, matrix: bytes) -> tuple[State, tuple[Told, ...]]:
        """Takes what a chunk that aligns came to: how the answer ends, and what may be told."""
        raise IllegalTransition(f"{self.request_id} aligns nothing, and got {len(matrix)} bytes")
