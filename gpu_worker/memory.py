"""How much memory a device still has, as far as this process may use it.

A container's limit counts as much as the machine's own memory: a cgroup kills who exceeds it.
"""

from collections.abc import Iterator

import psutil
import torch

from gpu_worker import cgroups


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken; on the CPU never more than the cgroups allow."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself is free for the KV cache
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_cgroup_headrooms()]))


def _cgroup_headrooms() -> Iterator[int]:
    """Bytes to the limit in each cgroup with a limit.

    Page cache that is not in use counts as free, because the kernel drops it before it refuses
    memory.
    """
    for group, version in cgroups.groups("memory"):
        limit_name, usage_name, cache_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if version == 1
            else ("memory.max", "memory.current", "inactive_file")
        )
        limits, usages = cgroups.numbers(group / limit_name), cgroups.numbers(group / usage_name)
        for limit, usage in zip(limits, usages, strict=False):  # one of each, or a file is missing
            if limit is not None and usage is not None:
                yield limit - usage + cgroups.statistic(group / "memory.stat", cache_name)
