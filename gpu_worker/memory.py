"""How much memory a device still has, as far as this process may use it.

A container's limit counts as much as the machine's own memory: a cgroup kills who exceeds it.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken; on the CPU never more than the cgroups allow."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself is free for the KV cache
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_cgroup_headrooms()]))


def _cgroup_headrooms() -> Iterator[int]:
    """Bytes to the limit in each cgroup with a limit, from this process's up to the root.

    Both versions are read, https://docs.kernel.org/admin-guide/cgroup-v2.html#memory and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html; page cache that is not in use counts
    as free, because the kernel drops it before it refuses memory.
    """
    for root, path in _memory_cgroups():
        version_1 = root != CGROUPS
        limit_name, usage_name, cache_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if version_1
            else ("memory.max", "memory.current", "inactive_file")
        )
        for group in _with_parents(root, path):
            limit, usage = _number(group / limit_name), _number(group / usage_name)
            if limit is not None and usage is not None:
                yield limit - usage + _statistic(group / "memory.stat", cache_name)


def _memory_cgroups() -> Iterator[tuple[Path, str]]:
    """(mount point, path below it) of the memory controller, for either version of cgroups."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is closed
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield CGROUPS, path
        elif "memory" in controllers.split(","):
            yield CGROUPS / "memory", path


def _with_parents(root: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and those above it; in a container only the root may be there."""
    inner = PurePosixPath(path.strip("/"))
    for part in (inner, *inner.parents):
        yield root / part


def _number(path: Path) -> int | None:
    """The one number of a file; None where there is no file, or the word `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
