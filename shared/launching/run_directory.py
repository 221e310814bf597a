"""The private directory of one run: sockets, the rooms' settings, and a lock against others."""

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.launching.notices import PROGRAM
from shared.sockets import MAX_PATH_BYTES

MAX_EPOCH = 9999  # more lives than a room can have before the service gives up
# What an earlier run may have left behind; nothing else in a directory is ours to delete.
_OWN_FILES = re.compile(r"[a-z]+-\d+\.\d+(\.json|\.failed)?|tokenizer\.(json|\d+)")


def open_run_directory(asked: str, port: int, environ: Mapping[str, str]) -> str:
    """Makes and locks the directory for sockets; raises FatalError if it cannot be used."""
    parent = Path(environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = Path(asked) if asked else parent / f"{PROGRAM}-{os.getuid()}-{port}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_run_directory(path)
        _lock(path)
        remove_leftovers(path)
    except OSError as error:
        reason = f"--run-directory {path}: {error.strerror}; choose another"
        raise FatalError(reason, EXIT_CONFIGURATION) from error
    return str(path)


def _check_run_directory(path: Path) -> None:
    status = path.lstat()  # a link that somebody else planted is not followed
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077 or path.is_symlink():
        reason = f"--run-directory {path} must be your own directory with mode 0700"
        raise FatalError(reason, EXIT_CONFIGURATION)
    longest = path / f"detokenizer-99.{MAX_EPOCH}"
    if len(os.fsencode(longest)) > MAX_PATH_BYTES:
        reason = f"--run-directory {path} is too long for sockets; choose a shorter one"
        raise FatalError(reason, EXIT_CONFIGURATION)


def _lock(path: Path) -> None:
    """Holds a lock (flock(2)) until this process ends.

    A second bind on an `ipc://` path would silently take the first one's messages.
    """
    lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        reason = f"--run-directory {path} is in use by another server"
        raise FatalError(reason, EXIT_CONFIGURATION) from error


def write_private(path: Path, content: bytes) -> None:
    """Writes a new file that nobody but its owner may read."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)


def remove_leftovers(path: Path) -> None:
    """Deletes what this program writes there, and nothing else."""
    for leftover in path.iterdir():
        if _OWN_FILES.fullmatch(leftover.name):
            leftover.unlink()
