"""A process that has imported what a server imports, and forks servers that need not do it again.

Importing torch and transformers is what most of a start consists of, a dozen seconds of processor
time for each server. A forked launcher runs the same code as one that is executed, and so do the
rooms that it forks in turn; how they are executed is left to the tests that say `afresh`.
"""

import contextlib
import gc
import importlib
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import SimpleNamespace

import msgspec

from shared.child import name_process
from shared.launching.environment import ROOT, child_environment
from tests.e2e.forked import Forked, fork

IMPORTED = (
    *("frontend.server", "gpu_worker.worker", "tokenizer_proc.detokenizer"),
    *("tokenizer_proc.tokenizer", "benchmarks.formula.server", "benchmarks.formula.worker"),
    *("benchmarks.formula.frontend", "tests.reliability.server", "tests.reliability.runner"),
)
MAX_FRAME_BYTES = 1 << 20
END_SECONDS = 60.0


class Birth(msgspec.Struct, tag=True):
    """Asks for a launcher, and comes with its standard error; the answer is its id."""

    program: list[str]  # "-m" and a module, or a file; then its arguments
    environ: dict[str, str]


class Death(msgspec.Struct, tag=True):
    """Asks for the wait status of a launcher that ends."""

    pid: int


class Nursery:
    """The side of the tests."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours

    def start(self, program: Sequence[str], environ: Mapping[str, str], stderr: int) -> Forked:
        """A launcher, in a temporary directory as its working directory."""
        birth = Birth(list(program), dict(environ))
        socket.send_fds(self._socket, [msgspec.json.encode(birth)], [stderr])
        return Forked(self._answer(), self._reaped)

    def _reaped(self, pid: int) -> int:
        self._socket.send(msgspec.json.encode(Death(pid)))
        return self._answer()

    def _answer(self) -> int:
        answer = self._socket.recv(MAX_FRAME_BYTES)
        assert answer, "the nursery has ended; why is in standard error"
        return int(answer)


@contextlib.contextmanager
def running_nursery() -> Iterator[Nursery]:
    """Starts a nursery, and ends it; its launchers are whoever's started them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.e2e.nursery", str(theirs.fileno())],
                env=child_environment("worker", os.environ),
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        yield Nursery(ours)
    assert process.wait(END_SECONDS) == 0


def main(descriptor: int) -> None:
    """Forks what it is asked for, until nobody is there to ask."""
    name_process("nursery")  # while arguments and environment lie where titles are written
    sys.modules["hqq"] = None  # type: ignore[assignment]  # as shared/process.py hides it
    for module in IMPORTED:
        importlib.import_module(module)
    # `python -m` runs a second copy of what is imported already, and so does this.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    gc.collect()
    gc.freeze()  # what never changes stays shared
    with socket.socket(fileno=descriptor) as theirs:
        while True:
            frame, descriptors, *_ = socket.recv_fds(theirs, MAX_FRAME_BYTES, 1)
            if not frame:
                return
            theirs.send(str(_obey(frame, descriptors)).encode())


def _obey(frame: bytes, descriptors: Sequence[int]) -> int:
    asked: Birth | Death = msgspec.json.decode(frame, type=Birth | Death)
    if isinstance(asked, Death):
        return os.waitpid(asked.pid, 0)[1]
    (stderr,) = descriptors
    pid = fork(lambda: _launch(asked.program, asked.environ, stderr), kept=descriptors)
    os.close(stderr)
    return pid


def _launch(program: list[str], environ: Mapping[str, str], stderr: int) -> None:
    """Becomes a launcher, whose rooms are forked too."""
    os.dup2(stderr, sys.stderr.fileno())
    os.close(stderr)
    os.chdir(tempfile.gettempdir())
    _settle_environment(environ)
    from shared.launching import children

    children.subprocess = SimpleNamespace(  # type: ignore[attr-defined,assignment]  # what it uses
        Popen=_fork_room, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    _run(program)


def _fork_room(
    command: Sequence[str], *, env: Mapping[str, str], stdin: int, pass_fds: Collection[int]
) -> Forked:
    assert command[:2] == [sys.executable, "-P"]
    assert stdin == subprocess.DEVNULL
    pid = fork(lambda: _live_as_room(command[2:], env), kept=pass_fds)
    return Forked(pid, lambda pid: os.waitpid(pid, 0)[1])


def _live_as_room(program: Sequence[str], environ: Mapping[str, str]) -> None:
    import torch
    import zmq

    from shared import sockets

    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    _settle_environment(environ)
    if threads := environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sockets._CONTEXT = zmq.Context()  # the launcher's has threads, which no fork inherits
    _run(list(program))


def _settle_environment(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


def _run(program: list[str]) -> None:
    """Runs what `python` would run, with these arguments."""
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]))
