"""A whole server whose steps are launched ahead says what one says whose steps go in turn."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.e2e.server import running_server

pytestmark = pytest.mark.e2e
ANSWER_SECONDS = 60.0


def bodies() -> list[dict[str, Any]]:
    """Requests of many kinds, more than run at a time."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "seed": 6, "frequency_penalty": 0.8, "presence_penalty": 0.3},
        {"temperature": 0.7, "seed": 7, "repetition_penalty": 1.3, "n": 2},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"temperature": 1.0, "seed": 8, "stop": ["e", "."]},
        {"temperature": 1.0, "seed": 9, "min_tokens": 12},
    ]
    return [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": f"hello, number {number}"}],
            "max_tokens": 5 + 9 * number % 40,
            **kinds[number % len(kinds)],
        }
        for number in range(21)
    ]


async def answers(url: str) -> list[list[tuple[str, str]]]:
    """What each request is answered, and how its answers end."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS) as client:
        asked = [client.post("/v1/chat/completions", json=body) for body in bodies()]
        responses = [
            response.raise_for_status().json() for response in await asyncio.gather(*asked)
        ]
    return [
        [(choice["message"]["content"], choice["finish_reason"]) for choice in response["choices"]]
        for response in responses
    ]


def test_answers_are_the_same_with_and_without() -> None:
    found = []
    for overlap in ("on", "off"):
        flags = ("--overlap", overlap, "--continuous-batching-batch-size", "6")
        with running_server("--hf-model", "demo", *flags) as server:
            found.append(asyncio.run(answers(server.url)))
            assert server.is_at_rest()
    assert found[0] == found[1]
    assert {reason for answer in found[0] for _, reason in answer} == {"stop", "length"}
