"""The model as a formula: the next token of any tokens, settings and seed. Pure.

A state stands for all tokens so far, in order, as keys and values do in a real model; one token
more costs one multiplication. What is sampled depends on the state and on the caller's settings, so
that a token, a position or a setting that is lost on the way changes the answer.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from zlib import crc32

from shared.sampling import SamplingParams

START = 17  # the state before the first token
_BITS_64 = 2**64 - 1
# Knuth's linear congruential generator over 64 bits (MMIX).
_FACTOR, _INCREMENT = 6364136223846793005, 1442695040888963407


def advance(state: int, token_id: int) -> int:
    """The state after one token more."""
    return (state * _FACTOR + token_id + _INCREMENT) & _BITS_64


def mix(number: int) -> int:
    """Spreads every bit over all 64: the finaliser of SplitMix64 (Steele et al., 2014)."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _BITS_64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _BITS_64
    return number ^ (number >> 31)


def key_of(sampling: SamplingParams) -> int:
    """One number for all settings that may change an answer; greedy ones have no seed."""
    seed = 0 if sampling.is_greedy else sampling.seed
    settings = replace(sampling, seed=0, num_logprobs=None, num_prompt_logprobs=None)
    return mix(seed + 1) ^ crc32(repr(settings).encode())


@dataclass(frozen=True)
class Formula:
    """What may be said: tokens as often as they should come, and when the answer ends."""

    token_ids: Sequence[int]  # of ordinary text; one that is there twice comes twice as often
    end_token_id: int
    end_probability: float = 0.0  # of each token

    def next_token(self, state: int, key: int, banned: AbstractSet[int] = frozenset()) -> int:
        """The token after this state; a banned one only where nothing else can be said."""
        number = mix(state ^ key)
        may_end = self.end_token_id not in banned
        if may_end and mix(number) < self.end_probability * 2**64:
            return self.end_token_id
        first = number % len(self.token_ids)
        if not banned:
            return self.token_ids[first]
        circle = (*self.token_ids[first:], *self.token_ids[:first])
        return next((token for token in circle if token not in banned), circle[0])

    def answer(
        self,
        prompt: Iterable[int],
        max_tokens: int,
        sampling: SamplingParams,
        end_token_ids: frozenset[int],
    ) -> list[int]:
        """What a sequence answers when it is alone in the world."""
        state, key = START, key_of(sampling)
        for token_id in prompt:
            state = advance(state, token_id)
        answer: list[int] = []
        while len(answer) < max_tokens and not end_token_ids.intersection(answer):
            is_early = len(answer) < sampling.min_tokens
            token_id = self.next_token(state, key, end_token_ids if is_early else frozenset())
            answer.append(token_id)
            state = advance(state, token_id)
        return answer
