"""A room's life as a real process: it dies with its launcher, and its last words are kept."""

import dataclasses
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import wire
from shared.config import Identity, ModelConfig, WorkerConfig
from shared.errors import EXIT_CONFIGURATION, EXIT_FAILED, ErrorCode
from shared.mailbox import Mailbox
from shared.messages import AddressBook, Message, RoomStarted, Stop
from shared.parts import Peer
from shared.process import ROOM_KINDS, ChildProcess, last_words_path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 20.0
# A worker whose `run` is this body, started as the launcher starts rooms.
ROOM = """
import sys
from shared import process
from shared.config import WorkerConfig
from shared.errors import FatalError

def run(config, mailbox):
    {body}

process.ROOM_KINDS["worker"] = process.RoomKind("__main__:run", WorkerConfig)
sys.exit(process.main(sys.argv[1]))
"""
SERVES = "while mailbox.stop is None: mailbox.receive(None)"
# A launcher that starts what its arguments say and then waits to be killed.
LAUNCHER = """
import json, os, subprocess, sys
path = sys.argv[1]
child = json.load(open(path))
child["launcher_pid"] = os.getpid()
json.dump(child, open(path, "w"))
process = subprocess.Popen([sys.executable, "-P", *sys.argv[2:], path])
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_directory() -> Iterator[str]:
    """A directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="pr") as path:
        yield path


@pytest.fixture
def launcher(run_directory: str) -> Iterator[Mailbox]:
    """The launcher's mailbox, which rooms report to."""
    mailbox = Mailbox(Identity("launcher", 0, 0, run_directory))
    yield mailbox
    mailbox.close()


def identity(run_directory: str) -> Identity:
    """Who the rooms of these tests are."""
    return Identity("worker", 0, 1, run_directory)


def last_words(run_directory: str) -> str:
    """What the room left behind."""
    return last_words_path(identity(run_directory)).read_text()


def child_file(run_directory: str, launcher_pid: int | None = None) -> Path:
    """Writes the file that a room is started with, as the launcher does."""
    settings = dataclasses.asdict(WorkerConfig(identity(run_directory)))
    child = ChildProcess(launcher_pid or os.getpid(), "INFO", "text", "worker", settings)
    path = Path(run_directory) / "worker-0.1.json"
    path.write_bytes(wire.to_json(child))
    return path


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts Python as the launcher does."""
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status and what was written to standard error."""
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, stderr


def run_room(body: str, run_directory: str) -> tuple[int, str]:
    """Runs a room to its end."""
    return finish(start("-c", ROOM.format(body=body), str(child_file(run_directory))))


def wait_for(mailbox: Mailbox, found: Callable[[Message], bool]) -> None:
    """Receives until this message has come."""
    while not any(found(message) for message in mailbox.receive(PATIENCE_SECONDS)):
        pass


def connect(launcher: Mailbox) -> None:
    """Waits for the room's first words and connects to it."""
    wait_for(launcher, lambda message: message == RoomStarted("worker-0", 1))
    room = identity(launcher.identity.run_directory)
    launcher.update_peers(
        AddressBook((Peer(room.room, 1, room.address, True, None),), is_warm=False)
    )


def test_a_room_whose_launcher_is_gone_exits_at_once(run_directory: str) -> None:
    path = child_file(run_directory, launcher_pid=-1)
    status, _ = finish(start("-m", "shared.process", str(path)))
    assert status == EXIT_FAILED
    assert list(Path(run_directory).iterdir()) == [path]  # not even its inbox was bound


def test_a_room_dies_with_its_launcher(run_directory: str, launcher: Mailbox) -> None:
    path = child_file(run_directory)
    parent = start("-c", LAUNCHER, str(path), "-c", ROOM.format(body=SERVES))
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    connect(launcher)
    parent.kill()
    finish(parent)
    readable, _, _ = select.select([child], [], [], PATIENCE_SECONDS)
    os.close(child)
    assert readable, "the room outlived its launcher"


def test_only_the_launchers_stop_ends_a_room(run_directory: str, launcher: Mailbox) -> None:
    room = start("-c", ROOM.format(body=SERVES), str(child_file(run_directory)))
    connect(launcher)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        room.send_signal(number)
    assert room.poll() is None
    launcher.send("worker-0", Stop(ErrorCode.SHUTTING_DOWN, "bye"))
    assert finish(room) == (0, "")


@pytest.mark.usefixtures("launcher")
def test_a_fatal_errors_sentence_and_status_are_kept(run_directory: str) -> None:
    body = f"raise FatalError('no such model', {EXIT_CONFIGURATION})"
    status, stderr = run_room(body, run_directory)
    assert status == EXIT_CONFIGURATION
    assert last_words(run_directory) == "no such model"
    assert "Traceback" not in stderr


@pytest.mark.usefixtures("launcher")
def test_a_crash_leaves_its_reason_and_a_traceback(run_directory: str) -> None:
    status, stderr = run_room("raise ValueError('oops')", run_directory)
    assert status == EXIT_FAILED
    assert last_words(run_directory) == "ValueError: oops"
    assert "Traceback" in stderr


@pytest.mark.usefixtures("launcher")
def test_a_room_that_ends_well_says_nothing(run_directory: str) -> None:
    assert run_room("pass", run_directory) == (0, "")
    assert not last_words_path(identity(run_directory)).exists()


def test_a_room_that_cannot_bind_its_inbox_says_why(tmp_path: Path) -> None:
    run_directory = tmp_path / ("x" * 100)
    run_directory.mkdir()
    status, _ = run_room("pass", str(run_directory))
    assert status == EXIT_FAILED
    assert "--run-directory" in last_words(str(run_directory))


def test_last_words_of_another_life_lie_elsewhere() -> None:
    first, second = Identity("worker", 0, 1, "/r"), Identity("worker", 0, 2, "/r")
    assert last_words_path(first) == Path("/r/worker-0.1.failed")
    assert last_words_path(second) != last_words_path(first)


@pytest.mark.parametrize("kind", ROOM_KINDS)
def test_every_rooms_settings_survive_the_file(kind: str) -> None:
    config_class = ROOM_KINDS[kind].config_class
    given: dict[str, Any] = {"identity": Identity(kind, 2, 3, "/é")}
    if any(field.name == "model" for field in dataclasses.fields(config_class)):
        given["model"] = ModelConfig("demo", 7)
    config = config_class(**given)
    child = ChildProcess(1, "DEBUG", "json", kind, dataclasses.asdict(config))
    read = msgspec.json.decode(wire.to_json(child), type=ChildProcess)
    assert msgspec.convert(read.config, config_class) == config


@pytest.mark.parametrize("kind", ROOM_KINDS)
def test_every_room_is_one_function_of_one_module(kind: str) -> None:
    module, _, function = ROOM_KINDS[kind].entry.partition(":")
    assert function == "run"
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
