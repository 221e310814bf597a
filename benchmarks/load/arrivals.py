"""When requests arrive and users join: seconds from the start. Pure, and repeatable by a seed."""

import math
from collections.abc import Iterator
from random import Random


def arrival_times(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Arrivals without an end, `rate` a second on average; an infinite rate gives them all at 0.

    Gaps are gamma distributed with shape `burstiness`: 1 is a Poisson process, less comes in
    bursts, more is steadier. As in vLLM's benchmark, but it also stretches the times of a run to
    meet the rate exactly; here they are as drawn. The first request waits for its gap too.
    """
    random = Random(seed)
    scale = 0.0 if math.isinf(rate) else 1 / (rate * burstiness)
    seconds = 0.0
    while True:
        seconds += scale and random.gammavariate(burstiness, scale)
        yield seconds


def join_times(num_users: int, spawn_rate: float) -> list[float]:
    """When each user joins, the first at once."""
    return [user / spawn_rate for user in range(num_users)]
