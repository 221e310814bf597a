"""The rooms as processes: how one is started, what is known of it, and how it has ended."""

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import wire
from shared.config import Identity, LauncherConfig
from shared.launching.run_directory import write_private
from shared.parts import ModelFacts, Peer
from shared.process import ChildProcess, last_words_path

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # to the first word of a new process; loading comes after it
LAST_WORDS_SECONDS = 1.0  # for a stuck process to write its stack, before it is killed
# How far a tokenizer steps back where cores are few: a long prompt may wait, everybody's next token
# should not. See setpriority(2).
TOKENIZER_NICENESS = 10


@dataclass
class Child:
    """One running room; all times are monotonic seconds."""

    identity: Identity
    process: subprocess.Popen[bytes]
    pidfd: int  # readable once the process has ended; see pidfd_open(2)
    heard_at: float  # when it last said that it gets on; before that, its start
    has_started: bool = False
    is_ready: bool = False
    stage: str = "starting"
    model: ModelFacts | None = None  # once a worker has told it
    killed_at: float | None = None  # when it will be killed, or was

    @property
    def peer(self) -> Peer:
        """The child's line in the address book."""
        identity = self.identity
        stage = "" if self.is_ready else self.stage
        return Peer(
            identity.room, identity.epoch, identity.address, self.is_ready, self.model, stage
        )

    @property
    def has_ended(self) -> bool:
        """True once the process is no more; it is reaped then."""
        return self.process.poll() is not None

    def is_stuck(self, now: float, stall_seconds: float) -> bool:
        """True for a room that should have been heard of by now; one that loads may be silent."""
        if self.is_ready:
            return now - self.heard_at > stall_seconds
        return not self.has_started and now - self.heard_at > START_SECONDS

    def condemn(self, now: float) -> None:
        """Asks for the stack of a stuck process, and lets `kill_if_due` end it."""
        self.process.send_signal(signal.SIGABRT)  # faulthandler writes it
        self.killed_at = now + LAST_WORDS_SECONDS

    def kill_if_due(self, now: float) -> None:
        """Kills a condemned process that is still there."""
        if self.killed_at is not None and now >= self.killed_at:
            self.process.kill()

    def cause_of_death(self) -> str:
        """Why an ended process has ended, in words that follow its name."""
        path = last_words_path(self.identity)
        if path.exists():
            return f"failed: {path.read_text()}"
        status: int = self.process.returncode
        if status < 0:
            return f"was killed by {_signal_name(-status)}"
        return f"exited with status {status}"


def start_child(
    identity: Identity,
    config: Any,
    launcher: LauncherConfig,
    *,
    program: str,
    environ: Mapping[str, str],
    pass_fds: Iterable[int] = (),
) -> Child:
    """Starts a room: `program` is a module that takes the path of its settings."""
    settings = ChildProcess(
        os.getpid(),
        launcher.loglevel,
        launcher.log_format,
        identity.kind,
        dataclasses.asdict(dataclasses.replace(config, identity=identity)),
    )
    path = Path(identity.run_directory) / f"{identity.room}.{identity.epoch}.json"
    write_private(path, wire.to_json(settings))  # it holds the API keys
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", program, str(path)],
        env=environ,
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(pass_fds),
    )
    if identity.kind == "tokenizer":
        own = os.getpriority(os.PRIO_PROCESS, 0)  # whoever is nicer may not be made less so
        with contextlib.suppress(ProcessLookupError):  # it has died already, and is buried later
            os.setpriority(os.PRIO_PROCESS, process.pid, max(own, TOKENIZER_NICENESS))
    return Child(identity, process, os.pidfd_open(process.pid), time.monotonic())


def wait_or_kill(children: Iterable[Child], deadline: float) -> None:
    """Waits for processes that were told to end, until the monotonic deadline."""
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in time; killing it", child.identity.room)
            child.process.kill()
            child.process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
