"""Starts the rooms, tells each where the others live, and ends them in order.

A room that dies or is stuck is replaced, and what it held fails at once, while the others go on.
SIGTERM drains: nobody new is let in, running requests end.
"""

import dataclasses
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from shared.config import Identity, ServerConfig
from shared.errors import EXIT_CONFIGURATION, EXIT_FAILED, ErrorCode
from shared.launching import signals
from shared.launching.children import Child, start_child, wait_or_kill
from shared.launching.death_count import DeathCount
from shared.launching.environment import child_environment
from shared.launching.service_manager import ServiceManager
from shared.mailbox import BEAT_SECONDS, Mailbox, unexpected
from shared.messages import (
    AddressBook,
    Drained,
    PipelineWarm,
    RoomGetsOn,
    RoomReady,
    RoomStarted,
    StageReached,
    Stop,
    SwitchProfiling,
)  # fmt: skip

logger = logging.getLogger("launcher")

TICK_SECONDS = 0.25  # how late a deadline may be noticed
STOP_SECONDS = 2.0  # for the frontends to end open requests, then again for the other rooms
PROFILE_SECONDS = 60.0  # for the worker to write what it has recorded of its steps
FIRST_EPOCH = 1
KINDS_OF_ANSWERS = {"worker", "detokenizer"}  # of each, an answer goes through one


class Phase(Enum):
    """What the service as a whole does."""

    LOADING = "loading"  # until an answer has come through all rooms for the first time
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"


class Supervisor:
    """Supervises the rooms of one server from start to end."""

    def __init__(
        self,
        config: ServerConfig,
        run_directory: str,
        listener: socket.socket,
        environ: Mapping[str, str],
    ) -> None:
        self._config = config
        self._run_directory = run_directory
        self._listener = listener
        self._sheet = os.memfd_create("frontend sheet")  # no disk can keep its writers waiting
        self._environ = environ
        self._mailbox = Mailbox(Identity("launcher", 0, 0, run_directory))
        self._room_configs: dict[str, Any] = {}
        self._children: dict[str, Child] = {}
        self._deaths = DeathCount(config.launcher.restart_limit)
        self._looked_at = time.monotonic()  # whether anybody is stuck
        self._book = AddressBook((), is_warm=False)
        self._untold: list[str] = []  # rooms that the book has not reached
        self._warm_lives: set[tuple[str, int]] = set()  # that an answer has come through: epochs
        self._phase = Phase.LOADING
        self._drain_deadline = 0.0
        self._drained: set[str] = set()
        self._exit_status = 0
        self._may_have_profiles = config.worker.torch_profiling
        self._manager = ServiceManager(environ, os.getpid())
        self._poll = select.poll()
        self._signals = signals.SignalPipe()
        self._poll.register(self._mailbox.fileno(), select.POLLIN)
        self._poll.register(self._signals, select.POLLIN)

    def run(self) -> int:
        """Serves until a signal, or one death too many; returns the exit status."""
        self._start_all()
        while self._phase is not Phase.ENDED:
            self._poll.poll(1000 * TICK_SECONDS)
            self._tell_untold()
            self._receive()
            self._end_the_stuck()
            self._bury_the_dead()
            self._end_drain_if_due()
            self._obey_signals()  # last: after it, whoever has ended was told to
            self._tell_manager()
        return self._exit_status

    # ── start ────────────────────────────────────────────────────────────────────────────────────

    def _start_all(self) -> None:
        config = self._config
        frontend = dataclasses.replace(
            config.frontend,
            socket_fd=self._listener.fileno(),
            sheet_fd=self._sheet,
            created=int(time.time()),
            num_frontends=config.launcher.frontend_processes,
        )
        self._start_kind("frontend", frontend, frontend.num_frontends)
        self._start_kind("tokenizer", config.tokenizer, config.launcher.tokenizer_processes)
        self._start_kind("detokenizer", config.detokenizer, config.launcher.detokenizer_processes)
        self._start_kind("worker", config.worker, count=1)

    def _start_kind(self, kind: str, config: Any, count: int) -> None:
        self._room_configs[kind] = config
        for index in range(count):
            self._start(Identity(kind, index, FIRST_EPOCH, self._run_directory))

    def _start(self, identity: Identity) -> None:
        child = start_child(
            identity,
            self._room_configs[identity.kind],
            self._config.launcher,
            program=self._program(identity.kind),
            environ=child_environment(
                identity.kind,
                self._environ,
                self._config.worker.cpu_kernels_directory,
                compiles=self._config.worker.torch_compile,
            ),
            pass_fds=[self._listener.fileno(), self._sheet] if identity.kind == "frontend" else [],
        )
        self._poll.register(child.pidfd, select.POLLIN)
        self._children[identity.room] = child

    def _program(self, kind: str) -> str:
        """The module that runs a kind of room; benchmarks put their own in the place of some."""
        return "shared.process"

    # ── what the rooms say ───────────────────────────────────────────────────────────────────────

    def _receive(self) -> None:
        for message in self._mailbox.receive():
            match message:
                case RoomStarted() | StageReached() | RoomReady() | RoomGetsOn() | Drained():
                    child = self._children.get(message.room)
                    if child is not None and child.identity.epoch == message.epoch:
                        self._note(child, message)
                case PipelineWarm(epochs):
                    self._note_warm(epochs)
                case _:
                    unexpected(message)

    def _note(
        self, child: Child, message: RoomStarted | StageReached | RoomReady | RoomGetsOn | Drained
    ) -> None:
        child.heard_at = time.monotonic()
        match message:
            case RoomStarted():
                child.has_started = True
            case StageReached(stage=stage):
                child.stage = stage
                logger.info("%s: %s", child.identity.room, stage)
            case RoomReady(model=model):
                child.is_ready, child.model = True, model
                logger.info("%s is ready", child.identity.room)
            case Drained(room=room):
                self._drained.add(room)
                return
            case RoomGetsOn():
                return
        self._publish()
        if self._phase is Phase.LOADING:
            self._announce_if_warm()

    def _note_warm(self, epochs: dict[str, int]) -> None:
        self._warm_lives |= set(epochs.items())
        self._announce_if_warm()

    def _announce_if_warm(self) -> None:
        """Lets callers in, unless a room has died meanwhile, or still starts for the first time."""
        if (self._phase is not Phase.LOADING and self._book.is_warm) or not self._is_warm():
            return
        self._publish()
        if self._phase is Phase.LOADING:
            self._phase = Phase.SERVING
            self._manager.say_ready()
        logger.info("ready: %s", self._described())

    def _described(self) -> str:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"serving {self._config.frontend.model_name} on http://{shown}:{port}"

    def _is_warm(self) -> bool:
        """True if living rooms have passed an answer on; at first, with all others ready."""
        if self._phase is Phase.LOADING and not all(c.is_ready for c in self._children.values()):
            return False
        living = [child.identity for child in self._children.values()]
        kinds = {life.kind for life in living if (life.room, life.epoch) in self._warm_lives}
        return kinds >= KINDS_OF_ANSWERS

    def _publish(self) -> None:
        """Sends everybody the rooms that can be reached now.

        The frontends come last: when they admit a request, the rooms behind know each other.
        """
        started = [child for child in self._children.values() if child.has_started]
        started.sort(key=lambda child: child.identity.kind == "frontend")
        self._book = AddressBook(
            tuple(child.peer for child in started), self._is_warm(), self._phase is Phase.DRAINING
        )
        self._mailbox.update_peers(self._book)
        self._untold = [peer.room for peer in self._book.peers]
        self._tell_untold()

    def _tell_untold(self) -> None:
        """Sends the book to whom it has not reached: on a busy machine connecting takes time."""
        self._untold = [room for room in self._untold if not self._mailbox.send(room, self._book)]

    # ── the dead and the stuck ───────────────────────────────────────────────────────────────────

    def _end_the_stuck(self) -> None:
        now, stall_timeout = time.monotonic(), self._config.launcher.stall_timeout
        # All may have been halted, as by Ctrl-Z or `docker pause`: then nobody could be heard.
        halted_seconds = max(0.0, now - self._looked_at - BEAT_SECONDS)
        self._looked_at = now
        for child in self._children.values():
            child.heard_at = min(now, child.heard_at + halted_seconds)
            child.kill_if_due(now)
            if child.killed_at is None and child.is_stuck(now, stall_timeout + BEAT_SECONDS):
                silent = now - child.heard_at
                logger.error(
                    "%s (pid %d) has not got on for %.0f s; ending it, its stack follows",
                    child.identity.room, child.process.pid, silent,
                )  # fmt: skip
                child.condemn(now)

    def _bury_the_dead(self) -> None:
        for child in [child for child in self._children.values() if child.has_ended]:
            self._bury(child)
            if not self._mends(child):
                self._stop_all(Stop(ErrorCode.ENGINE_DEAD, "A process of the server died."))
                self._end(_failure_status(child))
                return

    def _bury(self, child: Child) -> None:
        room = child.identity.room
        logger.error("%s (pid %d) %s", room, child.process.pid, child.cause_of_death())
        self._poll.unregister(child.pidfd)
        os.close(child.pidfd)
        del self._children[room]
        self._publish()  # at once: whoever waits for the dead is told

    def _mends(self, dead: Child) -> bool:
        """Restarts a room, or says why not: then the service ends."""
        identity = dead.identity
        if self._phase is Phase.DRAINING:
            self._drained.add(identity.room)  # what it held has failed; the others go on
            self._exit_status = EXIT_FAILED
            return True
        if _failure_status(dead) == EXIT_CONFIGURATION:
            return False
        limit = self._config.launcher.restart_limit
        if not self._deaths.allows_restart(time.monotonic()):
            logger.error("ending the service: --restart-limit is %d", limit)
            return False
        logger.warning("restarting %s", identity.room)
        self._start(dataclasses.replace(identity, epoch=identity.epoch + 1))
        return True

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def _obey_signals(self) -> None:
        for number in self._signals.recv_signals():
            if self._phase is Phase.ENDED:
                return
            if number == signals.PROFILING:
                self._switch_profiling()
            else:
                self._drain_or_finish(signal.Signals(number).name)

    def _drain_or_finish(self, name: str) -> None:
        timeout = self._config.launcher.drain_timeout
        self._manager.say_stopping()
        if self._phase is Phase.SERVING and timeout > 0:
            logger.info("%s: requests have %g s to end; another signal ends them", name, timeout)
            self._phase = Phase.DRAINING
            self._drain_deadline = time.monotonic() + timeout
            self._publish()
        else:
            logger.info("stopping, because of %s", name)
            self._finish()

    def _end_drain_if_due(self) -> None:
        if self._phase is not Phase.DRAINING:
            return
        waited_for = {c.identity.room for c in self._frontends() if c.is_ready} - self._drained
        if not waited_for:
            logger.info("every request has ended; stopping")
            self._finish()
        elif time.monotonic() >= self._drain_deadline:
            logger.warning("requests still run after --drain-timeout; ending them")
            self._finish()

    def _finish(self) -> None:
        self._stop_all(Stop(ErrorCode.SHUTTING_DOWN, "The server is shutting down."))
        self._end(self._exit_status)

    def _end(self, exit_status: int) -> None:
        self._phase = Phase.ENDED
        self._exit_status = exit_status

    def _stop_all(self, stop: Stop) -> None:
        """Ends the frontends first, so that open requests get their error, then the rest."""
        others = [c for c in self._children.values() if c.identity.kind != "frontend"]
        others_seconds = PROFILE_SECONDS if self._may_have_profiles else STOP_SECONDS
        for children, seconds in ((self._frontends(), STOP_SECONDS), (others, others_seconds)):
            for child in children:
                listens = child.is_ready and child.killed_at is None
                if not listens or not self._mailbox.send(child.identity.room, stop):
                    child.process.kill()  # it loads, is stuck or cannot be reached
            wait_or_kill(children, time.monotonic() + seconds)

    def _frontends(self) -> list[Child]:
        return [c for c in self._children.values() if c.identity.kind == "frontend"]

    def _switch_profiling(self) -> None:
        """Lets the worker begin to record its steps, or end it and report."""
        rooms = [r for r, c in self._children.items() if c.identity.kind == "worker" and c.is_ready]
        if sum(self._mailbox.send(room, SwitchProfiling()) for room in rooms):  # to all
            self._may_have_profiles = True
        else:
            logger.warning("SIGUSR2 changes nothing: no worker is ready whose steps could be seen")

    # ── systemd ──────────────────────────────────────────────────────────────────────────────────

    def _tell_manager(self) -> None:
        self._manager.show(self._status())
        stall_timeout = self._config.launcher.stall_timeout
        now = time.monotonic()
        if not any(child.is_stuck(now, stall_timeout) for child in self._children.values()):
            self._manager.feed_watchdog(now)

    def _status(self) -> str:
        if self._phase in (Phase.DRAINING, Phase.ENDED):
            return "draining" if self._phase is Phase.DRAINING else "stopping"
        starting = [c for c in self._children.values() if not c.is_ready]
        if starting:
            return ", ".join(f"{child.identity.room}: {child.stage}" for child in starting)
        return self._described() if self._is_warm() else "warming up"


# What makes one: benchmarks and tests have their own, of other rooms.
MakeSupervisor = Callable[[ServerConfig, str, socket.socket, Mapping[str, str]], Supervisor]


def _failure_status(dead: Child) -> int:
    """What the service ends with if it ends for this death."""
    is_configuration = dead.process.returncode == EXIT_CONFIGURATION
    is_first_life = dead.identity.epoch == FIRST_EPOCH and not dead.is_ready
    return EXIT_CONFIGURATION if is_configuration and is_first_life else EXIT_FAILED
