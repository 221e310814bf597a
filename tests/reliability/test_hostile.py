"""Ten thousand hostile requests among two thousand good ones: no death, and no good one harmed."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest

from benchmarks.raw_http import Pool, post
from tests.e2e.server import RunningServer
from tests.frontend.test_bodies_over_http import BAD_BYTES, BAD_NUMBERS
from tests.frontend.test_translate import BAD_BODIES, BAD_VALUES
from tests.frontend.test_translate_sampling import BAD_VALUES as BAD_SAMPLING
from tests.reliability.client import CHAT
from tests.reliability.conftest import Measured
from tests.reliability.good import GoodLoad
from tests.reliability.planted import HARMS, saying
from tests.reliability.rest import Rest
from tests.reliability.scale import scaled

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.reliability]
NUM_HOSTILE, NUM_GOOD = 10_000, 2_000
NUM_CALLERS = 32
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
LIMIT = b'"max_tokens"'
ALLOWED_HERE = ("n", 9)  # the table is of a server that makes eight answers at most

MALFORMED = [
    *(json.dumps(body).encode() for body, _, _ in BAD_BODIES),
    *(
        json.dumps({**HELLO, name: value}).encode()
        for name, value, _ in (*BAD_VALUES, *BAD_SAMPLING)
        if (name, value) != ALLOWED_HERE
    ),
    *BAD_BYTES.values(),
    *(body for body, _ in BAD_NUMBERS),
]


def raw(body: bytes) -> bytes:
    """A request with any bytes for a body."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def cut_somewhere(body: bytes, chance: random.Random) -> bytes:
    """Valid JSON with one byte changed or its end missing.

    The name that limits the answer is left whole: an answer to the context's end takes minutes.
    """
    position = chance.randrange(len(body))
    if chance.random() < 0.5:
        return body[:position]
    limit_start = body.index(LIMIT)
    if limit_start <= position < limit_start + len(LIMIT):
        position = 0
    return body[:position] + bytes([chance.randrange(256)]) + body[position + 1 :]


def hostile(chance: random.Random) -> tuple[bytes, frozenset[int]]:
    """A request, and the statuses that it may have."""
    kind = chance.random()
    if kind < 0.6:
        return raw(chance.choice(MALFORMED)), frozenset({400})
    if kind < 0.8:
        good = json.dumps({**HELLO, "temperature": chance.random()}).encode()
        return raw(cut_somewhere(good, chance)), frozenset({200, 400})
    harm = chance.choice(HARMS)
    return post(*saying(harm.word, chance)), frozenset({harm.status})


async def attack(port: int, count: int, seed: int) -> Counter[int]:
    """Hostile requests one after the other from each of some callers; the statuses."""
    statuses: Counter[int] = Counter()
    pool = Pool(port)

    async def call(caller: int) -> None:
        chance = random.Random(f"{seed}-{caller}")
        for _ in range(count // NUM_CALLERS):
            request, allowed = hostile(chance)
            reply = await pool.ask(request)
            assert reply.status in allowed, (request[-300:], reply.status)
            statuses[reply.status] += 1

    await asyncio.gather(*map(call, range(NUM_CALLERS)))
    pool.close()
    return statuses


def test_hostile_requests_harm_nobody(
    faulty: RunningServer, rest: Rest, measured: Measured
) -> None:
    with GoodLoad(faulty.port, num_streams=24) as load:
        statuses: Counter[int] = Counter()
        while statuses.total() < scaled(NUM_HOSTILE) or load.num_whole < scaled(NUM_GOOD):
            statuses += asyncio.run(attack(faulty.port, scaled(1_000), seed=statuses.total()))
    whole = load.unharmed()
    measured("P1", "hostile requests", "10000", statuses.total())
    measured("P1", "their statuses", "400, 500; 200 where a cut body is right", dict(statuses))
    measured("P1", "good requests beside them, each as its reference", "2000", whole)
    measured("P1", "process deaths; good requests harmed", "0; 0", "0; 0")
    rest.check()
