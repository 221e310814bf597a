"""How much quantised weights may take on disk: beyond it files go, the longest unused first.

A process locks the files that it uses (flock(2)) until it ends, so that no other removes them: the
weights of a server that runs are there when it is started again. Where a file system knows no locks
nothing is removed.
"""

import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_FILES = 16
MOST_BYTES = 64 * 2**30
STALE_SECONDS = 24 * 3600.0  # no file takes so long to write: who began it has died

_OWN_FILE = re.compile(r"weights-[0-9a-f]{24}\.safetensors")  # nothing else is ours to delete
_OWN_FOLDER = "weights-unfinished-"


def hold(path: Path) -> int:
    """Says that the file is used, now and until this process ends or closes what is returned.

    OSError where there is none.
    """
    descriptor, _ = _open(path, fcntl.LOCK_SH)
    try:
        os.utime(descriptor)
    except OSError as error:  # a file system that is only read
        logger.debug("%s seems older than it is: %s", path, error)
    return descriptor


def folder_for_writing(directory: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder in which a file is written before it has its name."""
    return tempfile.TemporaryDirectory(prefix=_OWN_FOLDER, dir=directory)


def sweep(directory: Path) -> None:
    """Removes files beyond the bounds that nobody uses, and what dead processes left unfinished."""
    try:
        _remove_unfinished(directory)
        _remove_unused(directory)
    except OSError as error:  # such as another process that sweeps, too
        logger.warning("quantised weights that nobody uses may be left in %s: %s", directory, error)


def _remove_unfinished(directory: Path) -> None:
    for folder in directory.glob(f"{_OWN_FOLDER}*"):
        if _age_of(folder.lstat()) > STALE_SECONDS:
            shutil.rmtree(folder)
            logger.info("removed %s, which was left unfinished", folder)


def _remove_unused(directory: Path) -> None:
    num_files = num_bytes = 0
    for path, status in _newest_first(directory):
        fits = num_files < MOST_FILES and num_bytes + status.st_size <= MOST_BYTES
        if fits or not _remove(path, status):
            num_files += 1
            num_bytes += status.st_size


def _newest_first(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """The files by their last use."""
    own = [path for path in directory.iterdir() if _OWN_FILE.fullmatch(path.name)]
    found = [(path, path.lstat()) for path in own]
    files = [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]
    return sorted(files, key=lambda file: file[1].st_mtime, reverse=True)


def _remove(path: Path, status: os.stat_result) -> bool:
    """False if somebody uses it."""
    descriptor, is_locked = _open(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        if is_locked:
            path.unlink()
    finally:
        os.close(descriptor)
    if is_locked:
        logger.info(
            "removed %s: %.1f GiB, unused for %.0f days; others are newer, and at most %d files "
            "of %d GiB are kept",
            path, status.st_size / 2**30, _age_of(status) / 86400, MOST_FILES, MOST_BYTES // 2**30,
        )  # fmt: skip
    return is_locked


def _age_of(status: os.stat_result) -> float:
    """Seconds since it was used."""
    return time.time() - status.st_mtime


def _open(path: Path, lock: int) -> tuple[int, bool]:
    """A descriptor of the file that has this name, and whether it is locked in this way."""
    access = os.O_RDWR if lock & fcntl.LOCK_EX else os.O_RDONLY  # as NFS wants it
    while True:
        descriptor = os.open(path, access)
        try:
            is_locked = _locks(descriptor, lock)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, is_locked
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another file took the name meanwhile


def _locks(descriptor: int, lock: int) -> bool:
    try:
        fcntl.flock(descriptor, lock)
    except OSError:  # another process has it, or the file system knows no locks
        return False
    return True
