"""What streaming costs beside the bare minimum: 256 streams through all rooms, and through none.

The ceiling is an ASGI application under the same uvicorn that sends as many events of the same size
and does nothing else. A step of all streams takes the worker longer than `STEP_MS`, so steps come
as fast as it makes them; while the streams begin one by one, the first do not run away. Goals: at
least half of the ceiling's tokens a second, and at most 1.5 tokens an event at the median: a
frontend that cannot keep up joins what has come meanwhile.

    python -m benchmarks.bench_streams
    python -m benchmarks.bench_streams --frontends 2 --detokenizers 2

Several frontends help where there are cores for them; the ceiling is always that of one process.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from benchmarks.raw_http import Connection, Reply, be_modest, connect, post, run
from tests.e2e.server import RunningServer

NUM_STREAMS = 256
STEP_MS = 2.0
SAMPLE_EVERY = 16  # streams whose events are looked at, after the run
ROUNDS = 2
_TEXT_BEGINS, _TEXT_ENDS = b'"delta":{"content":"', b'"}'


@dataclass(frozen=True)
class Round:
    """All streams once."""

    seconds: float
    num_bytes: int
    tokens_per_event: list[int]  # of the sampled streams; every token is one letter

    @property
    def events_per_stream(self) -> float:
        """Events with text, of a sampled stream."""
        return len(self.tokens_per_event) / (NUM_STREAMS // SAMPLE_EVERY)


async def stream_all(port: int, request: bytes) -> Round:
    """Every stream at the same time, from the first request to the last byte."""
    connections = [
        await connect(port, keeps_data=number % SAMPLE_EVERY == 0) for number in range(NUM_STREAMS)
    ]
    started = time.monotonic()
    replies = await asyncio.gather(*(_ask(connection, request) for connection in connections))
    seconds = max(reply.ended for reply in replies) - started
    sampled = [count for reply in replies if reply.data for count in _tokens(b"".join(reply.data))]
    return Round(seconds, sum(reply.num_bytes for reply in replies), sampled)


async def _ask(connection: Connection, request: bytes) -> Reply:
    reply = await connection.ask(request)
    connection.close()
    assert reply.status == 200
    return reply


def _tokens(body: bytes) -> Iterator[int]:
    """The letters of each event that has some."""
    for event in body.split(b"data: "):
        _, found, rest = event.partition(_TEXT_BEGINS)
        if found and (count := rest.index(_TEXT_ENDS)):
            yield count


def rounds(port: int, path: str, num_tokens: int) -> list[Round]:
    """The same a few times; the first is for warming up."""
    request = post(
        path,
        {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": num_tokens,
            "stream": True,
        },
    )
    return [run(stream_all(port, request)) for _ in range(ROUNDS + 1)][1:]


@contextmanager
def bare_server() -> Iterator[int]:
    """The port of the application that only sends."""
    command = [sys.executable, "-m", "benchmarks.bare_stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def row(found: list[Round], num_tokens: int) -> dict[str, float]:
    """The median round, and tokens an event over all."""
    counts = [count for one in found for count in one.tokens_per_event]
    return {
        "tokens_per_second": NUM_STREAMS * num_tokens / statistics.median(r.seconds for r in found),
        "tokens_per_event_median": statistics.median(counts),
        "tokens_per_event_mean": statistics.mean(counts),
    }


def processor_seconds(server: RunningServer) -> dict[str, float]:
    """The processor time that each room has taken so far."""
    times = {room: process.cpu_times() for room, process in server.children().items()}
    return {room: spent.user + spent.system for room, spent in times.items()}


def measure(num_tokens: int, num_frontends: int, num_detokenizers: int) -> dict[str, Any]:
    """Both servers, one after the other, with the same load generator."""
    flags = ["--continuous-batching-batch-size", str(NUM_STREAMS)]
    flags += ["--max-concurrent", str(NUM_STREAMS)]
    flags += ["--frontend-processes", str(num_frontends)]
    flags += ["--detokenizer-processes", str(num_detokenizers)]
    settings = FormulaSettings(step_ms=STEP_MS, text="letters")
    with bare_server() as bare_port, running_formula(*flags, settings=settings) as server:
        be_modest()  # not before: the servers would inherit it
        before = processor_seconds(server)
        served = rounds(server.port, "/v1/chat/completions", num_tokens)
        after = processor_seconds(server)
        num_events = statistics.mean(one.events_per_stream for one in served)
        event_bytes = statistics.mean(one.num_bytes for one in served) / NUM_STREAMS / num_events
        bare = rounds(bare_port, f"/{num_tokens}/{round(event_bytes)}", num_tokens)
    rows = {"server": row(served, num_tokens), "bare": row(bare, num_tokens)}
    share = rows["server"]["tokens_per_second"] / rows["bare"]["tokens_per_second"]
    num_all = NUM_STREAMS * num_tokens * (ROUNDS + 1)
    return {
        "streams": NUM_STREAMS,
        "processes": {"frontend": num_frontends, "detokenizer": num_detokenizers},
        "event_bytes": event_bytes,
        **rows,
        "share": share,
        "microseconds_per_token": {r: 1e6 * (after[r] - before[r]) / num_all for r in after},
    }


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024, help="of each stream")
    parser.add_argument("--frontends", type=int, default=1, help="HTTP processes")
    parser.add_argument("--detokenizers", type=int, default=1, help="detokenizer processes")
    asked = parser.parse_args()
    found = measure(asked.tokens, asked.frontends, asked.detokenizers)
    for name in ("server", "bare"):
        for figure, value in found[name].items():
            print(f"{name:8} {figure:26} {value:12.2f}")
    print(f"{NUM_STREAMS} streams, events of {found['event_bytes']:.0f} bytes: "
          f"{found['share']:.2f} of the ceiling")  # fmt: skip
    for room, microseconds in sorted(found["microseconds_per_token"].items()):
        print(f"{room:16} {microseconds:6.2f} µs of processor time a token")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
