"""Validated generation settings, as every room sees them. A leaf: the scheduler may import it."""

from dataclasses import dataclass

# Temperatures below this are greedy: dividing logits by less overflows float32 for real models.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's next token is chosen.

    `seed` is always set: a request without one gets a random seed where it is admitted, so that the
    noise of a sequence never depends on who shares its batch.
    """

    seed: int  # 0 <= seed < 2**63
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability; 0 is the best token
    top_k: int = 0  # 0 is off

    @property
    def is_greedy(self) -> bool:
        """True when the best token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_p == 0.0 or self.top_k == 1
