"""The control groups that this process is in: what a container may take of its machine.

Both versions, https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/: limits hold from a group up to the root.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The process's group of a controller and those above it, with the version of each.

    In a container only the root may be there, and any of the folders may be missing.
    """
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is closed
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inner = PurePosixPath(path.strip("/"))
        for part in (inner, *inner.parents):
            if not controllers:
                yield CGROUPS / part, 2
            elif controller in controllers.split(","):
                yield CGROUPS / controller / part, 1


def numbers(path: Path) -> list[int | None]:
    """The numbers of a file of one line; None for the word `max`; none where there is no file."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [int(word) if word.lstrip("-").isdecimal() else None for word in words]


def statistic(path: Path, name: str) -> int:
    """One entry of a file of names and numbers; 0 where it is not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
