"""A mixed load for a long time: no process may grow, whatever is asked of it.

Good, aborted and failing requests run beside each other on a formula server with planted faults.
After the warm-up each process may have 16 MiB, no descriptor and no thread more. Ends with a table,
and with status 1 if any of it is not so.

    python -m tests.reliability.soak --minutes 20
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.raw_http import Pool, connect, post
from tests.e2e.server import RunningServer
from tests.reliability.good import GoodLoad, good_request
from tests.reliability.planted import FAULTS, save_template
from tests.reliability.rest import SPARE_DESCRIPTORS, Rest, Vitals, vitals_of
from tests.reliability.server import running_faulty
from tests.reliability.test_hostile import hostile
from tests.waiting import wait_until

MAX_GROWN_MIB = 16.0
WARM_UP_SHARE = 0.25
MOST_WARM_UP_SECONDS = 120.0
NUM_HOSTILE, NUM_LEAVING = 3, 3
ROWS = "{:<15} {:>11} {:>11} {:>9} {:>9}"


@dataclass(frozen=True)
class Size:
    """What a process holds."""

    mib: float
    vitals: Vitals


class Trouble:
    """Hostile requests, and clients that leave, in a thread of its own."""

    def __init__(self, port: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def end(self) -> None:
        """Stops, once everything has its outcome."""
        self._is_over.set()
        self._thread.join()

    async def _run(self) -> None:
        pool = Pool(self._port)

        async def fail(chance: random.Random) -> None:
            request, allowed = hostile(chance)
            reply = await pool.ask(request)
            assert reply.status in allowed, (request[-200:], reply.status)
            self.outcomes["failed"] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(NUM_HOSTILE):
                group.create_task(self._repeat(fail, random.Random(number)))
            for number in range(NUM_LEAVING):
                group.create_task(self._repeat(self._leave, random.Random(-number)))
        pool.close()

    async def _repeat(
        self, do: Callable[[random.Random], Awaitable[None]], chance: random.Random
    ) -> None:
        while not self._is_over.is_set():
            await do(chance)

    async def _leave(self, chance: random.Random) -> None:
        connection = await connect(self._port)
        asking = asyncio.create_task(connection.ask(post(*good_request(chance))))
        await asyncio.wait((asking,), timeout=chance.random())
        connection.close()
        await asking
        self.outcomes["left"] += 1


def sizes_of(server: RunningServer, rest: Rest) -> dict[str, Size]:
    """Of every process, once the server is at rest."""
    rest.check()
    vitals = vitals_of(server)
    return {
        room: Size(psutil.Process(its.pid).memory_info().rss / 2**20, its)
        for room, its in vitals.items()
    }


def stress(server: RunningServer, seconds: float) -> Counter[str]:
    """Mixed load for so long; what became of the requests."""
    with GoodLoad(server.port) as load:
        trouble = Trouble(server.port)
        try:
            time.sleep(seconds)
        finally:
            trouble.end()
    assert len(load.outcomes) == load.unharmed()
    trouble.outcomes["good"] = len(load.outcomes)
    return trouble.outcomes


def report(before: dict[str, Size], after: dict[str, Size]) -> bool:
    """Prints what grew; true if nothing grew too much."""
    print(ROWS.format("process", "MiB before", "MiB after", "fds", "threads"))
    is_good = True
    for room, old in before.items():
        new = after[room]
        descriptors = new.vitals.num_descriptors - old.vitals.num_descriptors
        threads = new.vitals.num_threads - old.vitals.num_threads
        sizes = (f"{old.mib:.1f}", f"{new.mib:.1f}", f"{descriptors:+}", f"{threads:+}")
        print(ROWS.format(room, *sizes))
        is_good &= new.vitals.pid == old.vitals.pid and new.mib - old.mib <= MAX_GROWN_MIB
        is_good &= descriptors <= SPARE_DESCRIPTORS and threads <= 0
    return is_good


def soak(minutes: float) -> bool:
    """Runs all of it."""
    warm_up_seconds = min(MOST_WARM_UP_SECONDS, 60 * minutes * WARM_UP_SHARE)
    with tempfile.TemporaryDirectory() as directory:
        flags = ["--tokenizer-processes", "2", "--continuous-batching-batch-size", "16"]
        flags += ["--chat-template", str(save_template(Path(directory)))]
        with running_faulty(*flags, faults=FAULTS) as server:
            rest = Rest(server)
            stress(server, warm_up_seconds)
            before = sizes_of(server, rest)
            outcomes = stress(server, 60 * minutes - warm_up_seconds)
            wait_until(server.is_at_rest, 30)
            after = sizes_of(server, rest)
    print(f"{minutes:g} minutes, of which {warm_up_seconds:.0f} s to warm up; {dict(outcomes)}")
    return report(before, after)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    return 0 if soak(parser.parse_args().minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
