"""SIGTERM while answers are under way: who may finish, who is let in, and when it is over."""

import asyncio
import functools
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from tests.e2e.server import RunningServer
from tests.e2e.streams import Reply, chat_body, stream_chat
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
STEP_MS = 20.0
TOLD_SECONDS = 1.0  # from a signal to what follows from it; the promise is far less


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A formula server of 50 tokens a second, with the flags of the test."""
    with running_formula(*request.param, settings=FormulaSettings(step_ms=STEP_MS)) as running:
        yield running


async def streams_at_a_signal(
    server: RunningServer, *lengths: int, signals: int = 1
) -> tuple[list[Reply], httpx.Response, float]:
    """Streams of these lengths, of which all run when the signals come.

    What each client saw, what one heard that came too late, and when the signal came.
    """
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        bodies = [chat_body(f"Story {length}", max_tokens=length) for length in lengths]
        streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
        metric = "vllm:time_to_first_token_seconds_count"
        await asyncio.to_thread(wait_until, lambda: server.metric(metric) == len(lengths), 20.0)
        server.process.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        # As long as the signal is on its way, the server may still let callers in.
        ask = functools.partial(
            client.post, "/v1/chat/completions", json=chat_body("late", max_tokens=1)
        )
        late = await ask()
        while late.status_code == httpx.codes.OK and time.monotonic() < told_at + TOLD_SECONDS:
            late = await ask()
        for _ in range(signals - 1):
            server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*streams), late, told_at


@pytest.mark.parametrize("server", [()], indirect=True)
def test_what_runs_ends_and_nobody_else_comes_in(server: RunningServer) -> None:
    replies, late, told_at = asyncio.run(streams_at_a_signal(server, 60, 100))
    assert [reply.finish_reason for reply in replies] == ["length", "length"]
    assert not any(reply.was_cut or reply.error for reply in replies)
    assert late.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert late.json()["error"]["code"] == "shutting_down"
    assert late.headers["connection"] == "close"
    assert int(late.headers["retry-after"]) > 0
    assert server.process.wait(20) == 0
    assert time.monotonic() - told_at < 100 * STEP_MS / 1000 + 5


@pytest.mark.parametrize("server", [("--drain-timeout", "1")], indirect=True)
def test_what_does_not_end_in_time_is_ended(server: RunningServer) -> None:
    (short, long), _, told_at = asyncio.run(streams_at_a_signal(server, 20, 3000))
    assert short.finish_reason == "length"
    assert long.error is not None
    assert long.error["code"] == "shutting_down"
    assert 1.0 <= long.ended_at - told_at < 3.0
    assert server.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("server", [()], indirect=True)
def test_a_second_signal_ends_everything_at_once(server: RunningServer) -> None:
    (reply,), _, told_at = asyncio.run(streams_at_a_signal(server, 3000, signals=2))
    assert reply.error is not None
    assert reply.ended_at - told_at < TOLD_SECONDS + 2
    assert server.process.wait(20) == 0
    assert time.monotonic() - told_at < 5
