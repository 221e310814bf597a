"""Sides of a comparison take turns, so that a busy minute hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping

PAUSE_SECONDS = 0.3  # threads of the side before may still spin for so long


def median_rates(sides: Mapping[str, Callable[[], float]], num_rounds: int) -> dict[str, float]:
    """The median of what each side said about its turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name, side in sides.items():
            time.sleep(PAUSE_SECONDS)
            rates[name].append(side())
    return {name: statistics.median(found) for name, found in rates.items()}
