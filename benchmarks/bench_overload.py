"""Ten times the load that a server can take: how fast it refuses, and what still gets done.

The ceiling of the goodput is the server's own saturated rate, measured first, in a closed loop at
the best concurrency. Then requests arrive at ten times that rate whatever becomes of them. Goals:
every refusal starts within 20 ms, counted inside the server from the moment when its application
has the request; goodput of at least 90 %; whoever was let in is answered.

    python -m benchmarks.bench_overload
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.formula.records import FrontendRecord, read_record
from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from benchmarks.raw_http import Connection, Pool, Reply, be_modest, connect, percentile, post, run

TIMES = 10
STEP_MS = 10.0
NUM_ROWS = 32
MAX_CONCURRENT = 2 * NUM_ROWS  # half of them wait for a row
CONCURRENCIES = (NUM_ROWS, MAX_CONCURRENT * 3 // 4, MAX_CONCURRENT)
# Of different lengths, so that answers do not come in waves.
REQUESTS = [
    post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": num_tokens},
    )
    for num_tokens in range(16, 49)
]
REFUSED_AT_THE_DOOR = 429
WARM_UP_SECONDS = 1.0


@dataclass
class Overload:
    """What came back of one flood; times are monotonic seconds."""

    started: float
    ended: float
    replies: list[Reply]

    def rate(self, status: int) -> float:
        """Responses of this status a second, while the flood lasted."""
        found = [r for r in self.replies if r.status == status and self.includes(r.ended)]
        return len(found) / (self.ended - self.started - WARM_UP_SECONDS)

    def includes(self, moment: float) -> bool:
        """True within the measured time, which begins after the warm-up."""
        return self.started + WARM_UP_SECONDS <= moment <= self.ended


async def saturate(port: int, concurrency: int, seconds: float) -> Overload:
    """A closed loop: each connection asks again as soon as it is answered."""
    chance = random.Random(0)
    started = time.monotonic()
    replies: list[Reply] = []

    async def work(connection: Connection) -> None:
        while time.monotonic() < started + seconds:
            replies.append(await connection.ask(chance.choice(REQUESTS)))
        connection.close()

    connections = [await connect(port) for _ in range(concurrency)]
    await asyncio.gather(*map(work, connections))
    return Overload(started, started + seconds, replies)


async def flood(port: int, rate: float, seconds: float) -> Overload:
    """An open loop: arrivals at random moments, at this mean rate."""
    chance, pool = random.Random(0), Pool(port)
    started = due = time.monotonic()
    tasks: list[asyncio.Task[Reply]] = []
    while due < started + seconds:
        await asyncio.sleep(due - time.monotonic())
        tasks.append(asyncio.create_task(pool.ask(chance.choice(REQUESTS))))
        due += chance.expovariate(rate)
    replies = await asyncio.gather(*tasks)
    pool.close()
    return Overload(started, started + seconds, replies)


def row(saturated: float, overload: Overload, record: FrontendRecord) -> dict[str, Any]:
    """The flood's figures; latencies are the server's own, in ms."""
    refusals = [
        seconds * 1e3
        for moment, seconds, status in zip(
            record.started, record.seconds, record.statuses, strict=True
        )
        if status == REFUSED_AT_THE_DOOR and overload.includes(moment)
    ]
    looks = zip(record.looked_at, record.lags, strict=True)
    lags = [lag * 1e3 for moment, lag in looks if overload.includes(moment)]
    statuses = [reply.status for reply in overload.replies]
    return {
        "saturated_per_second": saturated,
        "offered_per_second": len(statuses) / (overload.ended - overload.started),
        "refusals": len(refusals),
        "refusal_p50_ms": percentile(refusals, 0.5),
        "refusal_p99_ms": percentile(refusals, 0.99),
        "refusal_max_ms": max(refusals, default=0.0),
        "loop_lag_p99_ms": percentile(lags, 0.99),
        "loop_lag_max_ms": max(lags, default=0.0),
        "goodput_share": overload.rate(200) / saturated,
        "answered": statuses.count(200),
        "let_in_and_not_answered": sum(s not in (200, REFUSED_AT_THE_DOOR) for s in statuses),
    }


def measure(seconds: float, step_ms: float) -> dict[str, Any]:
    """Starts a server, saturates it, floods it and reads what it says of itself."""
    flags = ["--continuous-batching-batch-size", str(NUM_ROWS)]
    flags += ["--max-concurrent", str(MAX_CONCURRENT)]
    with tempfile.TemporaryDirectory() as directory:
        settings = FormulaSettings(step_ms=step_ms, record=directory)
        with running_formula(*flags, settings=settings) as server:
            be_modest()
            closed = [run(saturate(server.port, n, seconds)).rate(200) for n in CONCURRENCIES]
            overload = run(flood(server.port, TIMES * max(closed), seconds + WARM_UP_SECONDS))
            server.stop()
        return row(max(closed), overload, read_record(directory, FrontendRecord))


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--step-ms", type=float, default=STEP_MS, help="of the formula's steps")
    options = parser.parse_args()
    found = measure(options.seconds, options.step_ms)
    for name, value in found.items():
        print(f"{name:28} {value:10.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
