"""A room that stands still holds back what is given to it, and the door says so."""

import asyncio
import random
import threading
import time
from collections import Counter

import psutil
import pytest

from benchmarks.raw_http import Pool, percentile, post
from tests.e2e.server import RunningServer
from tests.reliability.conftest import Measured
from tests.reliability.good import Death, GoodLoad, good_request
from tests.reliability.planted import STALL_SECONDS
from tests.reliability.rest import Rest
from tests.reliability.server import running_faulty
from tests.reliability.test_processes import wait_for_answers, wait_until_streaming
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.reliability]
CREDIT = 4  # of `tokenizer_proc/tokenizer.py`
STOPPED_SECONDS = 20.0
RATE = 100.0  # requests a second
MIB = 2**20


def test_a_stuck_tokenizer_holds_no_more_than_its_credit(
    impatient: RunningServer, impatient_rest: Rest, measured: Measured
) -> None:
    with GoodLoad(impatient.port, num_streams=24) as load:
        wait_until_streaming(load)
        tokenizer = impatient.children()["tokenizer-0"]
        stopped_at = time.monotonic()
        tokenizer.suspend()
        wait_until(lambda: not tokenizer.is_running(), 4 * STALL_SECONDS)
        died_at = time.monotonic()
        impatient_rest.wait_mended("tokenizer-0")
        wait_for_answers(load)
    assert load.unharmed((Death("tokenizer-0", died_at, time.monotonic(), stopped_at),))
    held = [o for o in load.outcomes if o.started < died_at and not o.is_whole]
    measured("P30", "requests held by a stopped tokenizer", f"<= {CREDIT}", len(held))
    assert len(held) <= CREDIT
    between = [o for o in load.outcomes if stopped_at < o.started and o.ended < died_at]
    assert sum(o.is_whole for o in between) > len(held), "the other tokenizer goes on"
    impatient_rest.check()


class Flood:
    """An open loop of good requests from a thread of its own; the statuses and latencies."""

    def __init__(self, port: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.refusal_seconds: list[float] = []
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def end(self) -> None:
        """Stops sending, and waits for every outcome."""
        self._is_over.set()
        self._thread.join()

    async def _run(self) -> None:
        pool, chance = Pool(self._port), random.Random(0)
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._is_over.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += 1 / RATE
                group.create_task(self._ask(pool, post(*good_request(chance))))
        pool.close()

    async def _ask(self, pool: Pool, request: bytes) -> None:
        reply = await pool.ask(request)
        self.statuses[reply.status] += 1
        if reply.status != 200:
            self.refusal_seconds.append(reply.ended - reply.sent)


def test_a_worker_that_stands_still_fills_the_queue_and_no_memory(measured: Measured) -> None:
    flags = ("--tokenizer-processes", "2", "--stall-timeout", "60", "--queue-timeout", "60")
    with running_faulty(*flags) as server:
        rest = Rest(server)
        rooms = [process for room, process in server.children().items() if room != "worker-0"]
        before = sum(room.memory_info().rss for room in rooms)
        worker = server.children()["worker-0"]
        worker.suspend()
        flood = Flood(server.port)
        time.sleep(STOPPED_SECONDS)  # this is what is tested
        grown = grown_mib(rooms, before)
        worker.resume()
        flood.end()
        refused = flood.statuses[429]
        measured("P29", "worker stopped 20 s at 100/s: growth behind the door, MiB", "<= 50", grown)
        measured("P29", "refused with 429, and let in", "-", f"{refused}, {flood.statuses[200]}")
        p99 = 1000 * percentile(flood.refusal_seconds, 0.99)
        measured("P29", "refusal p99 at the client, ms", "<= 10 in the server", p99)
        assert flood.statuses.keys() == {200, 429}
        assert grown <= 50
        rest.check()


def grown_mib(processes: list[psutil.Process], before: int) -> float:
    """How much memory they have more than before."""
    now = sum(int(process.memory_info().rss) for process in processes)
    return (now - before) / MIB
