"""How a service ends and starts again: in order, in the middle of something, and by violence."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.raw_http import post
from shared.launching.signals import ENDING
from tests.e2e.server import GONE_SECONDS, LAUNCHER, RunningServer, is_alive
from tests.reliability.client import CHAT, Outcome
from tests.reliability.conftest import Measured
from tests.reliability.good import GoodLoad, good_request
from tests.reliability.rest import Rest
from tests.reliability.scale import scaled
from tests.reliability.server import FLAGS, program, running_faulty
from tests.reliability.test_frames import run_directory_of
from tests.reliability.test_processes import wait_until_streaming
from tests.waiting import wait_until

SLOW = [pytest.mark.slow, pytest.mark.reliability]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
LONG = {
    "messages": [{"role": "user", "content": "a long story"}],
    "max_tokens": 3000,
    "ignore_eos": True,
}


class Drain:
    """A service that lets nobody in any more."""

    SLACK_SECONDS = 0.5  # of a request that was sent before, and arrives after

    def __init__(self, begun_at: float) -> None:
        self._begun_at = begun_at

    def explains(self, failed: Outcome) -> bool:
        """True for a request that came too late and was turned away."""
        is_late = failed.started > self._begun_at - self.SLACK_SECONDS
        return is_late and (failed.code == "shutting_down" or failed.is_cut)


def long_request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """One of more than a second, so that the drain takes as long."""
    path, body = good_request(chance)
    return path, {**body, "max_tokens": chance.randrange(120, 180)}


def drain(number: signal.Signals) -> tuple[float, float, int]:
    """One life of a service that is ended under load: seconds to not ready, to the end; answers."""
    with running_faulty() as server, GoodLoad(server.port, request=long_request) as load:
        wait_until_streaming(load)
        begun_at = time.monotonic()
        server.process.send_signal(number)
        wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503, GONE_SECONDS)
        refused_at = time.monotonic()
        refusal = httpx.post(f"{server.url}{CHAT}", json=LONG)
        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "shutting_down"
        assert refusal.headers["connection"] == "close"
        assert int(refusal.headers["retry-after"]) > 0
        assert server.process.wait(30) == 0
        ended_at = time.monotonic()
    whole = load.unharmed((Drain(begun_at),))
    assert all(o.is_whole for o in load.outcomes if o.started < begun_at - Drain.SLACK_SECONDS)
    return refused_at - begun_at, ended_at - begun_at, whole


@pytest.mark.slow
@pytest.mark.reliability
def test_a_signal_lets_every_stream_end(measured: Measured) -> None:
    signals = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    cycles = [drain(signals[number % len(signals)]) for number in range(scaled(30))]
    measured("P8", "drains under load; streams cut 0, exit status 0", "30", len(cycles))
    measured("P8", "longest to not ready, s (polled)", "0.1", max(cycle[0] for cycle in cycles))
    measured(
        "P8", "longest to the end, s (answers take up to 1.2)", "<= 35", max(c[1] for c in cycles)
    )
    measured("P8", "answers, each as its reference", "-", sum(cycle[2] for cycle in cycles))


@pytest.mark.slow
@pytest.mark.reliability
def test_who_does_not_read_holds_a_drain_to_its_deadline_only() -> None:
    with running_faulty("--drain-timeout", "2") as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(post(CHAT, {**LONG, "stream": True}))
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1, 20)
        server.process.terminate()
        assert server.process.wait(2 + GONE_SECONDS) == 0


# ── the launcher dies ────────────────────────────────────────────────────────────────────────────


@contextmanager
def loading(server: RunningServer) -> Iterator[None]:
    """The rooms have been started and load."""
    wait_until(lambda: any("frontend-0 is ready" in line for line in server.log), 60)
    yield


@contextmanager
def serving(server: RunningServer) -> Iterator[None]:
    """Streams run."""
    server.wait_ready()
    with GoodLoad(server.port) as load:
        wait_until_streaming(load)
        yield


@contextmanager
def draining(server: RunningServer) -> Iterator[None]:
    """A stream holds the end up."""
    server.wait_ready()
    with socket.create_connection(("127.0.0.1", server.port)) as hold:
        hold.sendall(post(CHAT, {**LONG, "stream": True}))
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1, 20)
        server.process.terminate()
        wait_until(lambda: any("another signal" in line for line in server.log), 5)
        yield


@contextmanager
def restarting(server: RunningServer) -> Iterator[None]:
    """The next life of a worker loads."""
    server.wait_ready()
    server.children()["worker-0"].kill()
    wait_until(lambda: any("restarting worker-0" in line for line in server.log), 5)
    yield


def started(run_directory: Path, *flags: str) -> RunningServer:
    """A server that may not be ready yet."""
    common = ["--host", "127.0.0.1", "--port", "0", "--run-directory", str(run_directory)]
    return RunningServer([*program(), *common, *FLAGS, *flags])


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name leaves room for sockets; see unix(7)."""
    done = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    yield path
    subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("moment", [loading, serving, draining, restarting])
def test_the_rooms_die_with_the_launcher_and_the_next_start_works(
    moment: Callable[[RunningServer], AbstractContextManager[None]], measured: Measured
) -> None:
    with short_directory() as directory:
        server = started(directory)
        try:
            with moment(server):
                children = psutil.Process(server.process.pid).children(recursive=True)
                server.process.kill()
                killed_at = time.monotonic()
                wait_until(lambda: not any(map(is_alive, children)), GONE_SECONDS)
                gone = time.monotonic() - killed_at
            measured("P5", f"launcher killed while {moment.__name__}: rooms gone, s", "<= 5", gone)
        finally:
            server.kill()
        again = started(directory)  # over the sockets and the lock that were left behind
        try:
            again.wait_ready()
            assert again.stop() == 0
        finally:
            again.kill()


@pytest.mark.slow
@pytest.mark.reliability
def test_a_start_that_is_told_to_end_ends_at_once() -> None:
    with short_directory() as directory:
        server = started(directory)
        try:
            wait_until(lambda: any("frontend-0 is ready" in line for line in server.log), 60)
            server.process.terminate()
            assert server.process.wait(GONE_SECONDS) == 0
        finally:
            server.kill()


def test_a_second_server_leaves_the_first_alone(faulty: RunningServer, rest: Rest) -> None:
    environ = {**os.environ, "HOST": "127.0.0.1"}
    directory = ["--run-directory", str(run_directory_of(faulty))]
    for flags, status in ((["--port", str(faulty.port)], 75), (["--port", "0", *directory], 78)):
        command = [*LAUNCHER, "--hf-model", "demo", *flags]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert done.stderr.count("\n") == 1, "one sentence"
    rest.check()
