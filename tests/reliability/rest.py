"""Check Z: after whatever happened, the server is as it was."""

from collections import Counter
from dataclasses import dataclass

import httpx
import psutil

from tests.e2e.server import RunningServer
from tests.reliability.good import CANARY, GoodLoad
from tests.waiting import wait_until

READY_SECONDS = 120.0  # for a new life of a room on a busy machine
REST_SECONDS = 30.0
SPARE_DESCRIPTORS = 2  # that ZeroMQ may be about to close, or a probe of ours to open


@dataclass(frozen=True)
class Vitals:
    """What of a process must not grow."""

    pid: int
    num_threads: int
    num_descriptors: int


class Rest:
    """A server at rest, after its first work, and that it comes to rest again."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        wait_until(lambda: lives_of(server).keys() == rooms_of(server), READY_SECONDS)
        with GoodLoad(server.port) as load:
            wait_until(lambda: load.num_whole > 2 * load.num_streams, REST_SECONDS)
        wait_until(server.is_at_rest, REST_SECONDS)
        self._vitals = vitals_of(server)
        self._lives = lives_of(server)
        self._died: set[str] = set()

    def wait_mended(self, *died: str) -> None:
        """Returns once rooms that have died, each once more, live again and callers are let in."""
        self._lives += Counter(died)
        self._died |= set(died)
        try:
            wait_until(lambda: lives_of(self._server) == self._lives, READY_SECONDS)
            wait_until(lambda: is_ready(self._server), READY_SECONDS)
        except TimeoutError as error:
            said = "".join(line for line in self._server.log if " launcher " in line)
            raise AssertionError(f"not {self._lives}, but {said[-3000:]}") from error

    def check(self, *died: str) -> None:
        """Check Z: no room has died but these, and those that `wait_mended` has waited for."""
        server = self._server
        self.wait_mended(*died)
        wait_until(server.is_at_rest, REST_SECONDS)
        now = vitals_of(server)
        fresh = {room for room, vitals in now.items() if vitals.pid != self._vitals[room].pid}
        assert fresh == self._died
        self._wait_not_grown()
        assert zombies_of(server) == []
        assert not [line for line in server.log if CANARY in line]
        self._vitals.update({room: now[room] for room in fresh})
        self._died = set()

    def _wait_not_grown(self) -> None:
        try:
            wait_until(lambda: not self._grown(), REST_SECONDS)
        except TimeoutError as error:
            raise AssertionError(f"grown: {self._grown()}") from error

    def _grown(self) -> list[tuple[Vitals, Vitals]]:
        """The processes that have more than they had, before and now."""
        now = vitals_of(self._server)
        assert now.keys() == self._vitals.keys()
        pairs = [(self._vitals[room], now[room]) for room in now if room not in self._died]
        return [
            (old, new)
            for old, new in pairs
            if new.num_descriptors > old.num_descriptors + SPARE_DESCRIPTORS
            or new.num_threads > old.num_threads
        ]


def rooms_of(server: RunningServer) -> set[str]:
    """The rooms that live."""
    return set(server.children())


def lives_of(server: RunningServer) -> Counter[str]:
    """How often each room has become ready."""
    ready = (line.split() for line in server.log if line.endswith(" is ready\n"))
    return Counter(words[-3] for words in ready)


def is_ready(server: RunningServer) -> bool:
    """True when new requests are welcome."""
    try:
        return httpx.get(f"{server.url}/ready").status_code == 200
    except httpx.TransportError:  # the frontend is being replaced
        return False


def vitals_of(server: RunningServer) -> dict[str, Vitals]:
    """Of the launcher and every room."""
    processes = {"launcher-0": psutil.Process(server.process.pid), **server.children()}
    return {
        room: Vitals(process.pid, process.num_threads(), process.num_fds())
        for room, process in processes.items()
    }


def zombies_of(server: RunningServer) -> list[psutil.Process]:
    """Children that have ended and that nobody has reaped."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if child.status() == psutil.STATUS_ZOMBIE]
