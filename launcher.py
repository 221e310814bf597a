"""Starts the rooms, tells each where the others live, and ends them in order.

    python launcher.py --hf-model demo

The launcher reads flags and environment once, holds the listening socket and the run directory's
lock, and watches its children. For now one child's death ends the service as a whole: open requests
get an error, the log says which process died and why, and the exit status is not zero.
"""

import sys

if sys.platform != "linux":  # before the imports, of which some need Linux
    sys.exit("transformers-openai-api needs Linux: use WSL2 or Docker on Windows, Docker on macOS")

import dataclasses
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import logs, wire
from shared.config import Identity, ServerConfig
from shared.errors import EXIT_FAILED, ErrorCode, FatalError
from shared.launching import flags, preflight
from shared.launching.environment import child_environment, usable_environment
from shared.launching.listener import is_open_to_others, open_listener
from shared.launching.run_directory import (
    PROGRAM,
    open_run_directory,
    remove_leftovers,
    write_private,
)
from shared.mailbox import Mailbox, unexpected
from shared.messages import AddressBook, RoomReady, RoomStarted, Stop
from shared.parts import ModelFacts, Peer
from shared.process import ChildProcess, last_words_path

logger = logging.getLogger("launcher")

STOP_SECONDS = 2.0  # for the frontends to end open requests, then again for the other rooms
PROFILE_SECONDS = 60.0  # for the worker to write what --torch-profiling has recorded
FIRST_EPOCH = 1
# How far a tokenizer steps back where cores are few: a long prompt may wait, everybody's next token
# should not. See setpriority(2).
TOKENIZER_NICENESS = 10


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
            self._config.launcher.log_format,
            identity.kind,
            dataclasses.asdict(dataclasses.replace(config, identity=identity)),
        )
        path = Path(self._run_directory) / f"{identity.room}.{identity.epoch}.json"
        write_private(path, wire.to_json(child))  # it holds the API keys
        process = subprocess.Popen(
            self._command(identity, path),
            env=child_environment(
                identity.kind, os.environ, self._config.worker.cpu_kernels_directory
            ),
            stdin=subprocess.DEVNULL,
            pass_fds=[self._listener.fileno()] if identity.kind == "frontend" else [],
        )
        if identity.kind == "tokenizer":
            os.setpriority(os.PRIO_PROCESS, process.pid, TOKENIZER_NICENESS)
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


def serve(make_launcher: MakeLauncher = Launcher) -> int:
    """Runs one server to its end; returns the exit status, or raises FatalError."""
    settings = flags.read(sys.argv[1:], usable_environment(os.environ))
    config = settings.config
    if config.launcher.print_config:
        sys.stdout.write(flags.described(settings))
        return 0
    logs.set_up("launcher", config.launcher.loglevel, config.launcher.log_format)
    _log_what_is_not_used(settings)
    preflight.check(config)
    listener = open_listener(config.launcher.host, config.launcher.port)
    _warn_when_open(config, listener)
    port = listener.getsockname()[1]
    run_directory = open_run_directory(config.launcher.run_directory, port, os.environ)
    status = make_launcher(config, run_directory, listener).run()
    remove_leftovers(Path(run_directory))
    return status


def _log_what_is_not_used(settings: flags.Settings) -> None:
    for given in settings.without_effect:
        logger.warning("%s has no effect", given)
    hostname = os.environ.get("HOSTNAME", "")
    if hostname and settings.origins["host"] == flags.DEFAULT:
        logger.info(
            "HOSTNAME=%s is no address of this machine and is not used: listening on %s",
            hostname, settings.config.launcher.host,
        )  # fmt: skip


def _warn_when_open(config: ServerConfig, listener: socket.socket) -> None:
    if is_open_to_others(listener) and not config.frontend.api_keys:
        logger.warning(
            "listening on %s without an API key: whoever reaches the port may call; "
            "set --api-key, or --host 127.0.0.1", config.launcher.host,
        )  # fmt: skip


def main(make_launcher: MakeLauncher = Launcher) -> int:
    """The boundary of the program: a FatalError is one line and its exit status."""
    try:
        return serve(make_launcher)
    except FatalError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201 — the one line of a failed start
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
