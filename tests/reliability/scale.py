"""How much of the long runs is done: all of it, or the share that RELIABILITY_SHARE says."""

import os

SHARE = float(os.environ.get("RELIABILITY_SHARE", "1"))


def scaled(count: int) -> int:
    """So many of a full run's repetitions; at least one."""
    return max(1, round(count * SHARE))
