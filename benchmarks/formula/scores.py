"""How likely the formula says that tokens are: what a worker tells where logprobs are wanted. Pure.

The best token of a state has probability 1/2, the next 1/4, and so on for as many as a caller may
see; all others share what is left. So the numbers of one state are those of one distribution,
however many alternatives are asked for.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from benchmarks.formula.formula import START, advance, mix
from shared.messages import TokenLogprobs
from shared.sampling import MAX_LOGPROBS


class Likelihoods:
    """The distribution of the next token, by state."""

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._token_ids: Sequence[int] = sorted(set(token_ids))
        self._ranks = {token_id: rank for rank, token_id in enumerate(self._token_ids)}

    def told(self, state: int, token_id: int, num_alternatives: int) -> TokenLogprobs:
        """What is told of a token that follows this state, and of the best ones."""
        first = mix(state) % len(self._token_ids)
        best = [self._token_ids[(first + rank) % len(self._token_ids)]
                for rank in range(num_alternatives)]  # fmt: skip
        return TokenLogprobs(
            self._logprob((self._ranks.get(token_id, first - 1) - first) % len(self._token_ids)),
            tuple(best),
            tuple(self._logprob(rank) for rank in range(num_alternatives)),
        )

    def of_prompt(self, prompt: Sequence[int], num_alternatives: int) -> Iterator[TokenLogprobs]:
        """What is told of every token of a prompt but the first."""
        state = START
        for token_id, following in pairwise(prompt):
            state = advance(state, token_id)
            yield self.told(state, following, num_alternatives)

    def _logprob(self, rank: int) -> float:
        if rank < MAX_LOGPROBS:
            return -(rank + 1) * math.log(2)
        return -MAX_LOGPROBS * math.log(2) - math.log(len(self._token_ids) - MAX_LOGPROBS)
