"""A sequence: the tokens of one request, where they lie, and the states it goes through.

A sequence waits until a row and its blocks are free, runs (its prompt in chunks, then token by
token) and ends exactly once: at an end token, at its length, when nobody wants it any more, or when
the model fails on it. It can be aborted in every state that is not an end.
"""

from enum import StrEnum

from shared.sampling import SamplingParams


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
    State.RUNNING: frozenset({State.STOPPED, State.LENGTH, State.ABORTED, State.FAILED}),
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
    """One request in the scheduler; `row` and `blocks` are its own only while it runs."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: tuple[int, ...],
        max_tokens: int,
        end_token_ids: frozenset[int],
        sampling: SamplingParams,
    ) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = len(prompt_token_ids)
        self.max_tokens = max_tokens
        self.end_token_ids = end_token_ids
        self.sampling = sampling
        self.token_ids = list(prompt_token_ids)  # the prompt, then the answer
        self.num_computed = 0  # tokens whose keys and values are in the pool
        self.row = -1
        self.blocks: list[int] = []
        self._state = State.WAITING

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
        """True when only the newest token is left to compute."""
        return self.num_output_tokens > 0

    @property
    def max_computed(self) -> int:
        """Most tokens that will ever lie in the pool: the last sampled one never does."""
        return self.num_prompt_tokens + self.max_tokens - 1

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
        elif self.num_output_tokens == self.max_tokens:
            self.change(State.LENGTH)
