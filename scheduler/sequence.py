"""A sequence: the tokens of one answer, where they lie, and the states it goes through.

A sequence waits until a row and its blocks are free, runs (its prompt in chunks, then token by
token) and ends exactly once: at an end token, at its length, when nobody wants it any more, or when
the model fails on it. A running one may lose its blocks to an older one; then it waits again, and
the keys and values of all its tokens are computed again. It can be aborted until it has ended.
"""

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum

from scheduler import prefix
from scheduler.prefix import BlockKey
from shared.sampling import NUM_SEEDS, SamplingParams


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
    ) -> None:
        self.request_id = request_id
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
        self.num_published = 0  # blocks that the prefix cache knows, or knew
        self.num_cached = 0  # prompt tokens that were there already when it first ran
        self.num_preemptions = 0
        self.row = -1
        self.blocks: list[int] = []
        self.num_promised = 0  # blocks that it may take without asking, owned ones included
        self._block_keys: list[BlockKey] = []
        self._state = State.WAITING

    def fork(self, choice: int) -> "Sequence":
        """Another answer to the same prompt, with noise of its own."""
        prompt = tuple(self.token_ids[: self.num_prompt_tokens])
        sampling = replace(self.sampling, seed=(self.sampling.seed + choice) % NUM_SEEDS)
        sibling = Sequence(
            self.request_id,
            prompt,
            self.max_tokens,
            self.end_token_ids,
            sampling,
            cache_salt=self.cache_salt,
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
    def is_decoding(self) -> bool:
        """True when only the newest token, a sampled one, is left to compute."""
        num_tokens = len(self.token_ids)
        return self.num_computed == num_tokens - 1 and num_tokens > self.num_prompt_tokens

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

    def change(self, state: State) -> None:
        """Moves to another state, or raises IllegalTransition."""
        if state not in LEGAL_TRANSITIONS[self._state]:
            raise IllegalTransition(f"{self.request_id}: {self._state} to {state}")
        self._state = state

    def append(self, token_id: int) -> None:
        """Records a sampled token and ends the sequence when it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.end_token_ids:
            self.change(State.STOPPED)
        elif len(self.token_ids) == self.num_prompt_tokens + self.max_tokens:
            self.change(State.LENGTH)
