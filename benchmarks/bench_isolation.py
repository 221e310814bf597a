"""What tokenizing prompts of a megabyte does to streams that run: it should do nothing.

The ceiling is the same server without those prompts, in the same run. Steps of 20 ms that wait, as
for a GPU; the launcher has the tokenizers step back. Goals: the interval between two steps grows to
at most 1.05 times at the median and 1.3 times at the 99th percentile; the frontend's event loop is
late by at most 20 ms at the 99th percentile.

The prompts are a little longer than the context, so they are tokenized whole and then refused; with
`--admitted` the context takes them, and the worker is given, plans and computes them too.

    python -m benchmarks.bench_isolation
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

import psutil

from benchmarks.formula.records import FrontendRecord, WorkerRecord, read_record
from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from benchmarks.raw_http import Reply, be_modest, connect, percentile, post, run
from tests.e2e.server import RunningServer

STEP_MS = 20.0
NUM_TOKENIZERS = 2
PROMPT_CHARACTERS = 1_000_000
REFUSING_CONTEXT = 65_536  # 16 characters a token: fewer, and the prompt's beginning is enough
ADMITTING_CONTEXT = 1_000_000
CHAT = "/v1/chat/completions"
SETTLE_SECONDS = 1.0


@dataclass
class Phases:
    """When what was measured, in monotonic seconds, and what became of the long prompts."""

    alone: tuple[float, float] = (0.0, 0.0)
    beside: tuple[float, float] = (0.0, 0.0)
    replies: list[Reply] = field(default_factory=list)
    tokenizer_seconds: float = 0.0  # of processor time, during `beside`


def chat(content: str, **fields: Any) -> bytes:
    """The request of one message."""
    return post(CHAT, {"messages": [{"role": "user", "content": content}], **fields})


def long_prompt(seed: int) -> bytes:
    """Random words: nothing that a tokenizer could remember."""
    letters = "".join(random.Random(seed).choices(ascii_lowercase, k=PROMPT_CHARACTERS))
    words = (letters[start : start + 9] for start in range(0, PROMPT_CHARACTERS, 10))
    return chat(" ".join(words), max_tokens=1)


async def interfere(server: RunningServer, num_streams: int, seconds: float) -> Phases:
    """Streams all the time; long prompts in the second half."""
    phases = Phases()
    prompts = [long_prompt(seed) for seed in range(2 * NUM_TOKENIZERS)]
    streams = [await connect(server.port) for _ in range(num_streams)]
    request = chat("hello", max_tokens=60_000, stream=True)
    tasks = [asyncio.create_task(stream.ask(request)) for stream in streams]
    await asyncio.sleep(SETTLE_SECONDS)
    phases.alone = await _watch(seconds)
    before = _tokenizer_seconds(server)
    loops = [asyncio.create_task(_repeat(server.port, prompt, phases)) for prompt in prompts]
    await asyncio.sleep(SETTLE_SECONDS)
    phases.beside = await _watch(seconds)
    phases.tokenizer_seconds = _tokenizer_seconds(server) - before
    for task in (*loops, *tasks):
        task.cancel()
    await asyncio.gather(*loops, *tasks, return_exceptions=True)
    for stream in streams:
        stream.close()
    return phases


async def _watch(seconds: float) -> tuple[float, float]:
    started = time.monotonic()
    await asyncio.sleep(seconds)
    return started, time.monotonic()


async def _repeat(port: int, request: bytes, phases: Phases) -> None:
    connection = await connect(port)
    try:
        while True:
            phases.replies.append(await connection.ask(request))
    finally:
        connection.close()


def _tokenizers(server: RunningServer) -> list[psutil.Process]:
    return [room for name, room in server.children().items() if name.startswith("tokenizer")]


def _tokenizer_seconds(server: RunningServer) -> float:
    return sum(sum(room.cpu_times()[:2]) for room in _tokenizers(server))


def _intervals(steps: WorkerRecord, window: tuple[float, float]) -> list[float]:
    within = [moment for moment in steps.started if window[0] <= moment <= window[1]]
    return [(late - early) * 1e3 for early, late in pairwise(within)]


def _lags(loop: FrontendRecord, window: tuple[float, float]) -> list[float]:
    looks = zip(loop.looked_at, loop.lags, strict=True)
    return [lag * 1e3 for moment, lag in looks if window[0] <= moment <= window[1]]


def table(phases: Phases, steps: WorkerRecord, loop: FrontendRecord) -> dict[str, Any]:
    """The figures of one run; times in ms."""
    alone, beside = _intervals(steps, phases.alone), _intervals(steps, phases.beside)
    seconds = phases.beside[1] - phases.beside[0]
    found: dict[str, Any] = {
        "prompts_per_second": len(phases.replies) / (seconds + SETTLE_SECONDS),
        "prompt_statuses": ",".join(sorted({str(reply.status) for reply in phases.replies})),
        "tokenizer_cores": phases.tokenizer_seconds / (seconds + SETTLE_SECONDS),
        "steps_alone": len(alone),
        "steps_beside": len(beside),
    }
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        found[f"interval_alone_{name}"] = percentile(alone, share)
        found[f"interval_beside_{name}"] = percentile(beside, share)
        found[f"ratio_{name}"] = percentile(beside, share) / percentile(alone, share)
    found["interval_beside_max"] = max(beside)
    found["loop_lag_alone_p99"] = percentile(_lags(loop, phases.alone), 0.99)
    found["loop_lag_beside_p99"] = percentile(_lags(loop, phases.beside), 0.99)
    return found


def measure(num_streams: int, seconds: float, *, admitted: bool) -> dict[str, Any]:
    """Starts a server, interferes with it and reads what it says of itself."""
    context = ADMITTING_CONTEXT if admitted else REFUSING_CONTEXT
    flags = ["--tokenizer-processes", str(NUM_TOKENIZERS), "--max-model-len", str(context)]
    flags += ["--continuous-batching-batch-size", str(num_streams + 8)]
    with tempfile.TemporaryDirectory() as directory:
        settings = FormulaSettings(step_ms=STEP_MS, record=directory)
        with running_formula(*flags, settings=settings) as server:
            be_modest()
            phases = run(interfere(server, num_streams, seconds))
            server.stop()
        steps = read_record(directory, WorkerRecord)
        return table(phases, steps, read_record(directory, FrontendRecord))


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=32, help="that decode all the time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the two phases")
    parser.add_argument("--admitted", action="store_true", help="a context that takes the prompts")
    options = parser.parse_args()
    found = measure(options.streams, options.seconds, admitted=options.admitted)
    for name, value in found.items():
        print(f"{name:24} {value if isinstance(value, str) else round(value, 2):>10}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
