"""What became of sequences in a step, as the worker tells it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.plan import TokenScore
from scheduler.sequence import Sequence, Told


class SampledToken(NamedTuple):
    """A new token of a sequence, its end, or both; or the prompt's vector."""

    sequence: Sequence
    token_id: int  # NO_TOKEN when the sequence failed, or was pooled
    score: TokenScore | None = None  # where it was asked for
    number: int = 0  # of the token in its answer
    vector: bytes | None = None  # of one that was pooled; None when it failed


def told_of(sequence: Sequence, told: Iterable[Told]) -> list[SampledToken]:
    """The tokens that a sequence lets be told."""
    return [SampledToken(sequence, token_id, score, number) for number, token_id, score in told]


@dataclass
class Counters:
    """What has happened so far, for metrics."""

    num_preemptions: int = 0
    num_queried_tokens: int = 0  # of prompts that were looked up in the prefix cache
    num_cached_tokens: int = 0  # of those, found there
