"""Starts the rooms, tells each where the others live, and ends them in order.

    python launcher.py --hf-model demo

The launcher reads flags and environment once, holds the listening socket and the run directory's
lock, and watches its children. For now one child's death ends the service as a whole: open requests
get an error, the log says which process died and why, and the exit status is not zero.
"""

import dataclasses
import errno
import fcntl
import ipaddress
import logging
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import flags, logs, wire
from shared.config import Identity, ServerConfig, is_local_path
from shared.errors import (
    EXIT_CONFIGURATION,
    EXIT_FAILED,
    EXIT_PORT_IN_USE,
    ErrorCode,
    FatalError,
)
from shared.mailbox import Mailbox, unexpected
from shared.messages import AddressBook, ModelFacts, Peer, RoomReady, RoomStarted, Stop
from shared.process import ChildProcess, last_words_path
from shared.sockets import MAX_PATH_BYTES

logger = logging.getLogger("launcher")

ROOT = Path(__file__).resolve().parent
PROGRAM = "transformers-openai-api"
STOP_SECONDS = 2.0  # for the frontends to end open requests, then again for the other rooms
PROFILE_SECONDS = 60.0  # for the worker to write what --torch-profiling has recorded
# How long an idle OpenMP thread of the worker spins before it sleeps, in turns of a loop: about a
# millisecond. Sleeping at once doubles a step's time on two threads; torch's own default, far
# longer, keeps cores from the other rooms. See docs/log.md.
SPIN_COUNT = "20000"
LISTEN_BACKLOG = 1024
# What an earlier run may have left behind; nothing else in a directory is ours to delete.
_OWN_FILES = re.compile(r"[a-z]+-\d+\.\d+(\.json|\.failed)?|tokenizer\.(json|\d+)")
FIRST_EPOCH = 1
MAX_EPOCH = 9999  # more lives than a room can have before the service gives up
UNREAD_MILLISECONDS = 60_000  # how long the kernel keeps bytes that a client does not take


@dataclass
class Child:
    """One running room."""

    identity: Identity
    process: subprocess.Popen[bytes]
    pidfd: int  # readable once the process has ended; see pidfd_open(2)
    has_started: bool = False
    is_ready: bool = False
    model: ModelFacts | None = None  # once a worker has told it

    @property
    def peer(self) -> Peer:
        """The child's line in the address book."""
        identity = self.identity
        return Peer(identity.room, identity.epoch, identity.address, self.is_ready, self.model)


class Launcher:
    """Supervises the rooms of one server from start to end."""

    def __init__(self, config: ServerConfig, run_directory: str, listener: socket.socket) -> None:
        self._config = config
        self._run_directory = run_directory
        self._listener = listener
        self._mailbox = Mailbox(Identity("launcher", 0, 0, run_directory))
        self._children: dict[str, Child] = {}
        self._poll = select.poll()
        self._signals = _SignalPipe()
        self._poll.register(self._mailbox.fileno(), select.POLLIN)
        self._poll.register(self._signals, select.POLLIN)

    def run(self) -> int:
        """Serves until a signal or a child's death; returns the exit status."""
        self._start_all()
        while True:
            self._poll.poll()
            if self._signals.recv_signals():
                logger.info("stopping")
                self._stop_all(Stop(ErrorCode.SHUTTING_DOWN, "The server is shutting down."))
                return 0
            self._receive()
            if dead := [child for child in self._children.values() if _has_ended(child)]:
                return self._fail(dead[0])

    def _start_all(self) -> None:
        config = self._config
        frontend = dataclasses.replace(config.frontend, socket_fd=self._listener.fileno())
        self._start_kind("frontend", frontend, count=1)
        self._start_kind("tokenizer", config.tokenizer, config.launcher.tokenizer_processes)
        self._start_kind("detokenizer", config.detokenizer, count=1)
        self._start_kind("worker", config.worker, count=1)

    def _start_kind(self, kind: str, config: Any, count: int) -> None:
        for index in range(count):
            self._start(Identity(kind, index, FIRST_EPOCH, self._run_directory), config)

    def _start(self, identity: Identity, config: Any) -> None:
        child = ChildProcess(
            os.getpid(),
            self._config.launcher.loglevel,
            identity.kind,
            dataclasses.asdict(dataclasses.replace(config, identity=identity)),
        )
        path = Path(self._run_directory) / f"{identity.room}.{identity.epoch}.json"
        path.write_bytes(wire.to_json(child))
        process = subprocess.Popen(
            self._command(identity, path),
            env=_child_environment(identity.kind, os.environ),
            stdin=subprocess.DEVNULL,
            pass_fds=[self._listener.fileno()] if identity.kind == "frontend" else [],
        )
        pidfd = os.pidfd_open(process.pid)
        self._poll.register(pidfd, select.POLLIN)
        self._children[identity.room] = Child(identity, process, pidfd)

    def _command(self, identity: Identity, config_path: Path) -> list[str]:
        """How a room is started; benchmarks put another program in the place of some."""
        return [sys.executable, "-P", "-m", "shared.process", str(config_path)]

    def _receive(self) -> None:
        for message in self._mailbox.receive():
            match message:
                case RoomStarted(room, epoch) if self._is_life(room, epoch):
                    self._children[room].has_started = True
                case RoomReady(room, epoch) if self._is_life(room, epoch):
                    self._children[room].is_ready = True
                    self._children[room].model = message.model
                    logger.info("%s is ready", room)
                case _:
                    unexpected(message)
                    continue
            self._publish()
            if all(child.is_ready for child in self._children.values()):
                self._announce_ready()

    def _is_life(self, room: str, epoch: int) -> bool:
        return room in self._children and self._children[room].identity.epoch == epoch

    def _announce_ready(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        model_name = self._config.frontend.model_name
        logger.info("ready: serving %s on http://%s:%d", model_name, shown, port)

    def _publish(self) -> None:
        """Sends everybody the rooms that can be reached now.

        The frontends come last: when they admit a request, the rooms behind know each other.
        """
        started = [child for child in self._children.values() if child.has_started]
        started.sort(key=lambda child: child.identity.kind == "frontend")
        book = AddressBook(tuple(child.peer for child in started))
        self._mailbox.update_peers(book)
        self._mailbox.broadcast(book)

    def _fail(self, dead: Child) -> int:
        reason = f"{dead.identity.room} (pid {dead.process.pid}) {_cause_of_death(dead)}"
        logger.error("%s; ending the service", reason)
        self._stop_all(Stop(ErrorCode.ENGINE_DEAD, "A process of the server died."))
        status = dead.process.returncode
        return status if status > 0 else EXIT_FAILED

    def _stop_all(self, stop: Stop) -> None:
        """Ends the frontends first, so that open requests get their error, then the rest."""
        frontends = [c for c in self._children.values() if c.identity.kind == "frontend"]
        others = [c for c in self._children.values() if c.identity.kind != "frontend"]
        others_seconds = PROFILE_SECONDS if self._config.worker.torch_profiling else STOP_SECONDS
        for children, seconds in ((frontends, STOP_SECONDS), (others, others_seconds)):
            for child in children:
                if child.is_ready:
                    self._mailbox.send(child.identity.room, stop)
                else:
                    child.process.kill()  # it loads, does not listen, and holds no request
            _wait_or_kill(children, time.monotonic() + seconds)


MakeLauncher = Callable[[ServerConfig, str, socket.socket], Launcher]


class _SignalPipe:
    """SIGINT and SIGTERM as bytes on a socket, so that they are handled in the loop."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)  # signal.set_wakeup_fd demands it
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """A descriptor that becomes readable when a signal comes."""
        return self._reader.fileno()

    def recv_signals(self) -> bytes:
        """The numbers of the signals that have come since the last call."""
        try:
            return self._reader.recv(64)
        except BlockingIOError:
            return b""


def _has_ended(child: Child) -> bool:
    return child.process.poll() is not None


def _cause_of_death(child: Child) -> str:
    path = last_words_path(child.identity)
    if path.exists():
        return f"failed: {path.read_text()}"
    status: int = child.process.returncode
    if status < 0:
        return f"was killed by {_signal_name(-status)}"
    return f"exited with status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _wait_or_kill(children: list[Child], deadline: float) -> None:
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in time; killing it", child.identity.room)
            child.process.kill()
            child.process.wait()


def _child_environment(kind: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's own, with this project first on the path and no thread pool left spinning."""
    child = dict(environ)
    child["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environ.get("PYTHONPATH")])])
    child["TOKENIZERS_PARALLELISM"] = "false"
    if kind == "worker":
        child.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        child.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    else:
        child["OMP_NUM_THREADS"] = "1"
    return child


def open_listener(host: str, port: int) -> socket.socket:
    """Binds the HTTP port before anything heavy starts, or raises FatalError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: one whose client stops reading ends, with all that it was sent.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        is_taken = error.errno == errno.EADDRINUSE
        reason = f"cannot listen on {host}:{port}: {error.strerror}; set another --host or --port"
        raise FatalError(reason, EXIT_PORT_IN_USE if is_taken else EXIT_CONFIGURATION) from error
    listener.listen(LISTEN_BACKLOG)
    return listener


def open_run_directory(asked: str, port: int, environ: Mapping[str, str]) -> str:
    """Makes and locks the directory for sockets; raises FatalError if it cannot be used."""
    parent = Path(environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = Path(asked) if asked else parent / f"{PROGRAM}-{os.getuid()}-{port}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_run_directory(path)
        _lock(path)
        _remove_leftovers(path)
    except OSError as error:
        reason = f"--run-directory {path}: {error.strerror}; choose another"
        raise FatalError(reason, EXIT_CONFIGURATION) from error
    return str(path)


def _check_run_directory(path: Path) -> None:
    status = path.lstat()  # a link that somebody else planted is not followed
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077 or path.is_symlink():
        reason = f"--run-directory {path} must be your own directory with mode 0700"
        raise FatalError(reason, EXIT_CONFIGURATION)
    longest = path / f"detokenizer-0.{MAX_EPOCH}"
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


def _remove_leftovers(path: Path) -> None:
    for leftover in path.iterdir():
        if _OWN_FILES.fullmatch(leftover.name):
            leftover.unlink()


def check_model_name(hf_model: str) -> None:
    """Refuses at once what is no model: nothing heavy has been imported yet."""
    if not hf_model:
        raise FatalError("--hf-model is empty; `demo` is built in", EXIT_CONFIGURATION)
    if is_local_path(hf_model) and not Path(hf_model).expanduser().is_dir():
        raise FatalError(f"--hf-model {hf_model}: there is no such directory", EXIT_CONFIGURATION)


def usable_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without a HOSTNAME that is no address, as shells and containers set it."""
    usable = dict(environ)
    hostname = usable.get("HOSTNAME", "")
    try:
        ipaddress.ip_address("127.0.0.1" if hostname == "localhost" else hostname)
    except ValueError:
        usable.pop("HOSTNAME", None)
    return usable


def serve(make_launcher: MakeLauncher = Launcher) -> int:
    """Runs one server to its end; returns the exit status, or raises FatalError."""
    config = flags.parse(sys.argv[1:], usable_environment(os.environ))
    logs.set_up("launcher", config.launcher.loglevel)
    check_model_name(config.worker.model.hf_model)
    listener = open_listener(config.launcher.host, config.launcher.port)
    port = listener.getsockname()[1]
    run_directory = open_run_directory(config.launcher.run_directory, port, os.environ)
    status = make_launcher(config, run_directory, listener).run()
    _remove_leftovers(Path(run_directory))
    return status


def main(make_launcher: MakeLauncher = Launcher) -> int:
    """The boundary of the program: a FatalError is one line and its exit status."""
    try:
        return serve(make_launcher)
    except FatalError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201 — the one line of a failed start
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
