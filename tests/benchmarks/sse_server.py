"""A small server that streams as a test says, and a clock that only the test moves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.load.client import Client, Target, open_session
from benchmarks.load.options import CHAT, COMPLETIONS
from benchmarks.load.outcome import Outcome
from benchmarks.load.prompts import Prompt
from benchmarks.load.sounds import TRANSCRIPTIONS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PROMPT = Prompt("one two three", 5)
DONE = b"data: [DONE]\n\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}}


class HandClock:
    """Shows the time that the test has set, and lets it wait until somebody has looked."""

    def __init__(self) -> None:
        self.now = 0.0
        self._looked = asyncio.Event()

    def __call__(self) -> float:
        self._looked.set()
        return self.now

    async def was_read_at(self, seconds: float) -> None:
        """Moves the clock, and returns when it has been read since the last move."""
        await self._looked.wait()
        self._looked.clear()
        self.now = seconds


def event(chunk: object) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def delta(finish_reason: str | None = None, **fields: str) -> bytes:
    """An event of a chat's stream."""
    return event({"choices": [{"delta": fields, "finish_reason": finish_reason}]})


async def begin_stream(request: web.Request) -> web.StreamResponse:
    """An open event stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def streaming(*pieces: bytes) -> Handler:
    """Sends these bytes and ends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await begin_stream(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return handle


async def list_models(_: web.Request) -> web.Response:
    """One model."""
    return web.json_response({"data": [{"id": "org/served"}, {"id": "other"}]})


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The URL of a server whose three endpoints answer by this handler."""
    app = web.Application(client_max_size=2**23)  # of sounds
    app.router.add_post(CHAT, handler)
    app.router.add_post(COMPLETIONS, handler)
    app.router.add_post(TRANSCRIPTIONS, handler)
    app.router.add_get("/v1/models", list_models)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def ask_once(
    handler: Handler, clock: HandClock, endpoint: str = CHAT, timeout_seconds: float = 60.0
) -> Outcome:
    """What becomes of one request to such a server."""
    async with serving(handler) as url, open_session("key", timeout_seconds) as session:
        target = Target(url, endpoint, "org/served", {"temperature": 0})
        return await Client(session, target, clock).ask(PROMPT)
