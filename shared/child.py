"""What every process of the server owes to the one that started it: to end with it, and only so."""

import ctypes
import os
import signal
import sys

import setproctitle

from shared.errors import EXIT_FAILED

TITLE = "transformers-openai-api"
_PR_SET_PDEATHSIG = 1


def settle(parent_pid: int) -> None:
    """Dies with the parent, and leaves it the signals that whoever runs the service sends.

    A terminal, or a service manager, sends them to all of its processes.
    """
    die_with(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def die_with(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies; exits if it is dead already.

    See prctl(2), PR_SET_PDEATHSIG. A fork does not inherit it; what is executed does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit(EXIT_FAILED)


def name_process(name: str) -> None:
    """Shows the name in lists of processes."""
    setproctitle.setproctitle(f"{TITLE}: {name}")
