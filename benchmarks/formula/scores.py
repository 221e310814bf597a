"""How likely the formula says that tokens are: what a worker tells where logprobs are wanted. Pure.

The best token of a state has probability 1/2, the next 1/4, and so on for as many as a caller may
see; all others share what is left. So the numbers of one state are those of one distribution,
however many alternatives are asked for.
"""

import math
from collections.abc import Iterable

from benchmarks.formula.formula import mix
from shared.sampling import MAX_LOGPROBS

Score = tuple[float, tuple[int, ...], tuple[float, ...]]  # logprob, best tokens, their logprobs


class Likelihoods:
    """The distribution of the next token, by state; `token_ids` are the whole vocabulary."""

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids = sorted(set(token_ids))
        self._ranks = {token_id: rank for rank, token_id in enumerate(self._token_ids)}

    def score(self, state: int, token_id: int, num_alternatives: int) -> Score:
        """What is told of a token that follows this state, and of the best ones."""
        num_tokens = len(self._token_ids)
        first = mix(state) % num_tokens
        rank = (self._ranks[token_id] - first) % num_tokens
        best = tuple(
            self._token_ids[(first + rank) % num_tokens] for rank in range(num_alternatives)
        )
        return self._logprob(rank), best, tuple(map(self._logprob, range(num_alternatives)))

    def _logprob(self, rank: int) -> float:
        if rank < MAX_LOGPROBS:
            return -(rank + 1) * math.log(2)
        return -MAX_LOGPROBS * math.log(2) - math.log(len(self._token_ids) - MAX_LOGPROBS)
