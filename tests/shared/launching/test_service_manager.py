"""What systemd is told, by a socket in its place."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.launching.service_manager import ServiceManager

PID = 42


@pytest.fixture
def manager_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        yield receiver


def heard(receiver: socket.socket) -> list[str]:
    """Everything that has been sent so far."""
    messages = []
    while True:
        try:
            messages.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_it_hears_of_every_change_once(manager_socket: socket.socket, tmp_path: Path) -> None:
    manager_socket.bind(str(tmp_path / "notify"))
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}, PID)
    for status in ("worker-0: starting", "worker-0: starting", "serving demo"):
        manager.show(status)
    manager.say_ready()
    manager.feed_watchdog(now=1.0)
    manager.say_stopping()
    told = ["STATUS=worker-0: starting", "STATUS=serving demo", "READY=1", "STOPPING=1"]
    assert heard(manager_socket) == told


def test_an_abstract_address(manager_socket: socket.socket, tmp_path: Path) -> None:
    name = f"notify-{tmp_path.name}-{id(tmp_path)}"
    manager_socket.bind(f"\0{name}")
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}, PID).say_ready()
    assert heard(manager_socket) == ["READY=1"]


def test_the_watchdog_is_fed_three_times_in_its_time(
    manager_socket: socket.socket, tmp_path: Path
) -> None:
    manager_socket.bind(str(tmp_path / "notify"))
    environ = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "60000000",
        "WATCHDOG_PID": str(PID),
    }
    manager = ServiceManager(environ, PID)
    for tenths in range(600):
        manager.feed_watchdog(now=1000 + tenths / 10)
    assert heard(manager_socket) == ["WATCHDOG=1"] * 3
    ServiceManager({**environ, "WATCHDOG_PID": "7"}, PID).feed_watchdog(now=0.0)
    assert heard(manager_socket) == []


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_nobody_listens(environ: dict[str, str]) -> None:
    manager = ServiceManager(environ, PID)
    manager.say_ready()
    manager.show("serving")
