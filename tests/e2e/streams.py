"""Raw streaming requests, as a browser or curl would make them."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


def chat_body(content: str, **fields: Any) -> dict[str, Any]:
    """A chat request with one user message; greedy unless told otherwise."""
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    return {**body, **fields}


@dataclass
class Reply:
    """What a client saw of one request."""

    status: int = 0
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    was_cut: bool = False  # the connection ended before the answer did
    num_events: int = 0
    ended_at: float = field(default=0.0)  # monotonic seconds

    def take(self, line: str) -> None:
        """Reads one line of the event stream."""
        if not line.startswith("data: ") or line == "data: [DONE]":
            return
        event = json.loads(line.removeprefix("data: "))
        self.num_events += 1
        self.error = event.get("error", self.error)
        for choice in event.get("choices", ()):
            self.text += choice["delta"].get("content", "")
            self.finish_reason = choice["finish_reason"] or self.finish_reason


async def stream_chat(
    client: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None
) -> Reply:
    """Streams one answer; leaves after so many events if told to."""
    reply = Reply()
    try:
        body = {**body, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            reply.status = response.status_code
            if response.status_code != httpx.codes.OK:
                reply.error = json.loads(await response.aread())["error"]
            async for line in response.aiter_lines():
                reply.take(line)
                if leave_after is not None and reply.num_events >= leave_after:
                    break
    except httpx.TransportError:
        reply.was_cut = True
    reply.ended_at = time.monotonic()
    return reply


async def post_chat(client: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    """Asks for one answer in one piece."""
    response = await client.post("/v1/chat/completions", json=body)
    reply = Reply(status=response.status_code, ended_at=time.monotonic())
    if response.status_code != httpx.codes.OK:
        reply.error = response.json()["error"]
        return reply
    choice = response.json()["choices"][0]
    reply.text, reply.finish_reason = choice["message"]["content"], choice["finish_reason"]
    return reply


async def leave_unanswered(client: httpx.AsyncClient, body: dict[str, Any], seconds: float) -> None:
    """Asks for an answer in one piece and hangs up before it can have come."""
    try:
        async with asyncio.timeout(seconds):
            await client.post("/v1/chat/completions", json=body)
    except TimeoutError:
        return
