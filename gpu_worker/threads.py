"""How many threads a step on the CPU is given.

The other rooms need a core too: a step is as slow as its slowest thread, and one that shares its
core with a busy tokenizer holds up all the others (docs/log.md has the figures).
"""

import math
import os
from collections.abc import Iterator

import torch

from gpu_worker import cgroups


def default_threads() -> int:
    """All usable cores but one, at least one."""
    return max(1, _usable_cores() - 1)


def _usable_cores() -> int:
    """Cores that torch would use, as far as affinity and cgroups let this process have them."""
    affinity = len(os.sched_getaffinity(0))
    return min(torch.get_num_threads(), affinity, *_cgroup_cores())


def _cgroup_cores() -> Iterator[int]:
    """The cores of each cgroup with a quota; a share of a core counts as one."""
    for group, version in cgroups.groups("cpu"):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        match [number for name in names for number in cgroups.numbers(group / name)]:
            case [int(quota), int(period)] if quota > 0:
                yield math.ceil(quota / period)
            case _:  # no quota here
                continue
