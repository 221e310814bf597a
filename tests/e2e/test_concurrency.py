"""Many clients at once: every answer equals its solo run, and nothing is left behind."""

import asyncio
import random

import httpx
import pytest

from tests.e2e.server import RunningServer
from tests.e2e.streams import Reply, chat_body, leave_unanswered, post_chat, stream_chat
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
NUM_CLIENTS = 64
REST_SECONDS = 5.0
PROMPTS = [
    "What is the capital of France?",
    "Count from 1 to 20.",
    "Spell the word: planet",
    "Reverse the word: stone",
    "What is 17 plus 25?",
    "Sort these numbers: 9, 3, 7",
    "Count from 5 to 33.",
    "Hello!",
]


def bodies() -> list[dict[str, object]]:
    """One request for each client: greedy or seeded, all of them reproducible."""
    requests = []
    for index in range(NUM_CLIENTS):
        body = chat_body(PROMPTS[index % len(PROMPTS)], max_tokens=60)
        if index % 3 == 1:
            body |= {"temperature": 0.9, "seed": index, "top_p": 0.95}
        if index % 3 == 2:
            body |= {"temperature": 1.2, "seed": index, "top_k": 20}
        requests.append(body)
    return requests


async def run_together(server: RunningServer) -> list[Reply | None]:
    """All requests at once: every fourth in one piece, every fifth client leaves midway."""

    async def one(client: httpx.AsyncClient, index: int, body: dict[str, object]) -> Reply | None:
        if index % 5 == 4:
            await stream_chat(client, body, leave_after=1 + index % 7)
            return None
        if index % 4 == 0:
            return await post_chat(client, body)
        return await stream_chat(client, body)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(one(client, i, body) for i, body in enumerate(bodies())))


async def run_alone(server: RunningServer) -> list[Reply]:
    """The same requests, one after the other."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        return [await post_chat(client, body) for body in bodies()]


def test_every_answer_equals_its_solo_run(demo_server: RunningServer) -> None:
    processes = {name: child.pid for name, child in demo_server.children().items()}
    alone = asyncio.run(run_alone(demo_server))
    together = asyncio.run(run_together(demo_server))
    for solo, reply in zip(alone, together, strict=True):
        if reply is not None:
            assert (reply.text, reply.finish_reason) == (solo.text, solo.finish_reason)
    assert sum(reply is not None for reply in together) > NUM_CLIENTS // 2
    wait_until(demo_server.is_at_rest, REST_SECONDS)
    assert {name: child.pid for name, child in demo_server.children().items()} == processes


async def disconnect_at_random(server: RunningServer, count: int, seed: int) -> None:
    """Clients that leave at a random moment, streaming or not, 16 at a time."""
    random_source = random.Random(seed)
    gate = asyncio.Semaphore(16)

    async def one(client: httpx.AsyncClient) -> None:
        body = chat_body("Count from 1 to 50.", max_tokens=200)
        async with gate:
            if random_source.random() < 0.5:
                await stream_chat(client, body, leave_after=random_source.randrange(1, 60))
            else:
                await leave_unanswered(client, body, random_source.uniform(0.001, 0.3))

    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        await asyncio.gather(*(one(client) for _ in range(count)))


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_take_their_blocks_with_them(
    demo_server: RunningServer, count: int
) -> None:
    asyncio.run(disconnect_at_random(demo_server, count, seed=count))
    wait_until(demo_server.is_at_rest, REST_SECONDS)
    reply = httpx.post(f"{demo_server.url}/v1/chat/completions", json=chat_body("Hello!"))
    assert reply.status_code == httpx.codes.OK
