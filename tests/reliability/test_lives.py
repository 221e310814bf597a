"""Lives that end badly before they have begun, too many deaths, and what systemd hears of it."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import RunningServer, is_alive, running_server
from tests.reliability.client import CHAT
from tests.reliability.conftest import Measured
from tests.reliability.faults import At, Do, Fault
from tests.reliability.good import Death, GoodLoad
from tests.reliability.planted import STALL_SECONDS
from tests.reliability.rest import READY_SECONDS, Rest, is_ready, lives_of
from tests.reliability.server import FLAGS, program, running_faulty
from tests.reliability.test_processes import kill, wait_for_answers, wait_until_streaming
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.reliability]
HELLO_SECONDS = 10.0  # for a first word; in the product it is 60


def has_lives(server: RunningServer, room: str, count: int) -> bool:
    """True when a room has become ready so many times."""
    return lives_of(server)[room] == count


def says(server: RunningServer, *words: str) -> bool:
    """True once a line of the log has all of these."""
    return any(all(word in line for word in words) for line in server.log)


def test_each_way_to_fail_at_the_start_is_found_and_named() -> None:
    faults = (
        Fault(At.LOAD, Do.EXIT, "worker-0", life=2),
        Fault(At.LOAD, Do.RAISE, "worker-0", life=3),
        Fault(At.HELLO, Do.HANG, "worker-0", life=4),
    )
    with running_faulty(
        "--restart-limit", "9", faults=faults, start_seconds=HELLO_SECONDS
    ) as server:
        server.children()["worker-0"].kill()
        wait_until(lambda: lives_of(server)["worker-0"] == 2, 4 * READY_SECONDS)
        wait_until(lambda: is_ready(server), READY_SECONDS)
        ends = [line for line in server.log if " ERROR launcher worker-0 (pid " in line]
        causes = ["SIGKILL", "status 0", "failed: PlantedError", "has not got on", "was killed by"]
        assert len(ends) == len(causes)
        assert all(cause in line for cause, line in zip(causes, ends, strict=True)), ends
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_tokenizer_without_memory_fails_or_dies_alone(
    impatient: RunningServer, impatient_rest: Rest
) -> None:
    tokenizer = impatient.children()["tokenizer-1"]
    limit = tokenizer.memory_info().vms + 2**20
    _, old = resource.prlimit(tokenizer.pid, resource.RLIMIT_AS)
    content = "word " * 40_000
    body = {
        "messages": [{"role": "user", "content": content}],
        "truncate_prompt_tokens": 8,
        "max_tokens": 8,
    }
    with GoodLoad(impatient.port) as load:
        wait_until_streaming(load)
        begun_at = time.monotonic()
        resource.prlimit(tokenizer.pid, resource.RLIMIT_AS, (limit, old))
        statuses = {
            httpx.post(f"{impatient.url}{CHAT}", json=body, timeout=120).status_code
            for _ in range(8)
        }
        has_died = not tokenizer.is_running() or not is_alive(tokenizer)
        if not has_died:
            resource.prlimit(tokenizer.pid, resource.RLIMIT_AS, (old, old))
        impatient_rest.wait_mended(*["tokenizer-1"] * has_died)
        wait_for_answers(load)
    assert statuses <= {200, 400, 500, 503}
    assert load.unharmed((Death("tokenizer-1", time.monotonic(), time.monotonic(), begun_at),))
    impatient_rest.check()


def test_a_real_model_comes_back_and_answers_the_same(measured: Measured) -> None:
    question = {"messages": [{"role": "user", "content": "What is 2 plus 3?"}], "temperature": 0}
    num_kills = 3
    flags = ("--hf-model", "demo", "--torch-dtype", "float32", "--restart-limit", "9")
    with running_server(*flags) as server:
        answer = httpx.post(f"{server.url}{CHAT}", json=question, timeout=60).json()
        longest = 0.0
        for life in range(2, num_kills + 2):
            server.children()["worker-0"].kill()
            killed_at = time.monotonic()
            wait_until(partial(has_lives, server, "worker-0", life), READY_SECONDS)
            wait_until(lambda: is_ready(server), READY_SECONDS)
            longest = max(longest, time.monotonic() - killed_at)
            again = httpx.post(f"{server.url}{CHAT}", json=question, timeout=60).json()
            assert again["choices"] == answer["choices"]
        wait_until(server.is_at_rest, 10)
        assert server.stop() == 0
    measured("P3", "torch worker kills, same answer after each", "3", num_kills)
    measured("P3", "torch worker: longest to the next answer, s", "load + 5", longest)


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def service_manager(path: Path) -> Iterator[list[str]]:
    """A notification socket, and what is said on it."""
    said: list[str] = []
    is_over = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(0.1)

        def listen() -> None:
            while not is_over.is_set():
                try:
                    said.append(receiver.recv(4096).decode())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        yield said
        is_over.set()
        thread.join()


def test_the_service_manager_hears_when_it_is_ready_alive_and_ending(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    environ = ("env", f"NOTIFY_SOCKET={path}", "WATCHDOG_USEC=1500000")
    flags = (*FLAGS, "--restart-limit", "9", "--stall-timeout", str(STALL_SECONDS))
    with (
        service_manager(path) as said,
        running_server(*flags, program=(*environ, *program())) as server,
    ):
        rest = Rest(server)
        wait_until(lambda: "READY=1" in said, 5)
        assert any("warming up" in state for state in said[: said.index("READY=1")])
        server.children()["worker-0"].suspend()
        wait_until(lambda: says(server, "worker-0", "has not got on"), 4 * STALL_SECONDS)
        rest.wait_mended("worker-0")
        with GoodLoad(server.port) as load:
            kill(server, rest, "frontend-0", load)
        assert said.count("READY=1") == 1
        num_pings = said.count("WATCHDOG=1")
        wait_until(lambda: said.count("WATCHDOG=1") >= num_pings + 4, 4 * 0.5 + 2)
        assert server.stop() == 0
        wait_until(lambda: "STOPPING=1" in said, 5)
