"""What the supervisor tells rooms that it cannot reach at once, and how it ends."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from shared.config import Identity, ServerConfig
from shared.errors import ErrorCode
from shared.launching import signals
from shared.launching.children import Child
from shared.launching.supervisor import Phase, Supervisor
from shared.messages import AddressBook, Drained, RoomReady, Stop
from tests.fakes import FakeMailbox

FRONTENDS = ("frontend-0", "frontend-1")
STOP = Stop(ErrorCode.SHUTTING_DOWN, "why")


@dataclass
class Stage:
    """A supervisor whose mailbox is a list, and whose rooms are processes that hear nothing."""

    supervisor: Supervisor
    mailbox: FakeMailbox

    def add(self, room: str, *command: str, is_ready: bool = True) -> Child:
        """A room that has started; its process is this command."""
        kind, _, index = room.partition("-")
        process = subprocess.Popen(command)
        child = Child(
            Identity(kind, int(index), 1, "/nowhere"),
            process,
            os.pidfd_open(process.pid),
            time.monotonic(),
            has_started=True,
            is_ready=is_ready,
        )
        self.supervisor._children[room] = child
        return child

    def told_to_drain(self) -> list[str]:
        """Whom a book that says so has reached, in order."""
        sent = self.mailbox.sent
        return [room for room, m in sent if isinstance(m, AddressBook) and m.is_draining]


@pytest.fixture
def stage() -> Iterator[Stage]:
    numbers = (*signals.ENDING, signals.PROFILING)
    handlers = {number: signal.getsignal(number) for number in numbers}
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as port:
        supervisor = Supervisor(ServerConfig(), directory, port, {})
        supervisor._mailbox.close()
        mailbox = FakeMailbox(Identity("launcher", 0, 0, directory))
        supervisor._mailbox = mailbox
        supervisor._phase = Phase.SERVING
        yield Stage(supervisor, mailbox)
    signal.set_wakeup_fd(-1)
    for end in (supervisor._signals._reader, supervisor._signals._writer):
        end.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.close(supervisor._sheet)
    for child in supervisor._children.values():
        child.process.kill()
        child.process.wait()
        os.close(child.pidfd)


def test_a_frontend_that_is_not_reached_hears_of_the_drain_later(stage: Stage) -> None:
    for room in FRONTENDS:
        stage.add(room, "sleep", "60")
    stage.mailbox.unreachable.add("frontend-1")
    stage.supervisor._drain_or_finish("SIGTERM")
    stage.supervisor._tell_untold()
    assert stage.told_to_drain() == ["frontend-0"]
    stage.mailbox.unreachable.clear()
    for _ in range(2):
        stage.supervisor._tell_untold()
    assert stage.told_to_drain() == ["frontend-0", "frontend-1"]


def test_a_frontend_that_becomes_ready_in_a_drain_drains_too(stage: Stage) -> None:
    stage.add("frontend-0", "sleep", "60")
    late = stage.add("frontend-1", "sleep", "60", is_ready=False)
    late.has_started = False
    stage.supervisor._drain_or_finish("SIGTERM")
    assert stage.told_to_drain() == ["frontend-0"]
    late.has_started = True
    stage.supervisor._note(late, RoomReady("frontend-1", 1, None))
    assert stage.told_to_drain()[-1] == "frontend-1"


def test_a_drain_is_over_when_every_frontend_has_said_so(stage: Stage) -> None:
    for room in FRONTENDS:
        stage.add(room, "true").process.wait()
    stage.supervisor._drain_or_finish("SIGTERM")
    for room, phase in zip(FRONTENDS, (Phase.DRAINING, Phase.ENDED), strict=True):
        stage.mailbox.deliver(Drained(room, 1), Drained(room, 1))
        stage.supervisor._receive()
        stage.supervisor._end_drain_if_due()
        assert stage.supervisor._phase is phase


@pytest.mark.parametrize("halted_seconds", [0.0, 1000.0])
def test_who_was_not_heard_is_stuck_unless_the_supervisor_was_halted_as_long(
    stage: Stage, halted_seconds: float
) -> None:
    child = stage.add("worker-0", "sleep", "60")
    child.heard_at -= 1000.0
    stage.supervisor._looked_at -= halted_seconds
    stage.supervisor._end_the_stuck()
    assert (child.killed_at is None) == (halted_seconds > 0)
    assert child.heard_at <= time.monotonic()


def test_who_is_stuck_after_a_halt_is_found(stage: Stage) -> None:
    child = stage.add("worker-0", "sleep", "60")
    child.heard_at -= 1000.0
    stage.supervisor._looked_at -= 500.0
    stage.supervisor._end_the_stuck()
    assert child.killed_at is not None


def test_who_cannot_be_told_to_stop_is_not_waited_for(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    child = stage.add("worker-0", "sleep", "60")
    stage.mailbox.unreachable.add("worker-0")
    stage.supervisor._may_have_profiles = True  # then a worker has a minute
    begun_at = time.monotonic()
    stage.supervisor._stop_all(STOP)
    assert child.process.returncode == -signal.SIGKILL
    assert time.monotonic() - begun_at < 10
    assert "did not stop in time" not in caplog.text
