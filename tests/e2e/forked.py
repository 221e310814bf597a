"""Processes that are forked and not executed, with what is asked of a Popen."""

import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

STANDARD = 3  # descriptors: input, output, errors


class Forked:
    """A process by its id; how it has ended is told by whoever forked it."""

    def __init__(self, pid: int, reaped: Callable[[int], int]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._reaped = reaped  # waits for the end of a process, and returns its wait status
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, as soon as there is one; raises TimeoutExpired as Popen does."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(self._reaped(self.pid))
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)


def fork(life: Callable[[], Any], kept: Collection[int] = ()) -> int:
    """Forks a process that lives as if it were new; its id.

    It has no open files but the standard ones and those to keep, and no handlers of signals.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _forget(kept)
        _live(life)
    return pid


def _forget(kept: Collection[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(path.name)
        if descriptor >= STANDARD and descriptor not in kept:
            with suppress(OSError):  # the one by which the list was read
                os.close(descriptor)


def _live(life: Callable[[], Any]) -> NoReturn:
    """Ends as the interpreter would, with the status of SystemExit."""
    status = 1
    try:
        life()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 — the boundary of the process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
