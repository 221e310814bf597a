"""Requests that fail by a planted fault, or whose clients behave badly, harm nobody else."""

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from benchmarks.raw_http import connect, post
from tests.e2e.server import RunningServer
from tests.reliability.client import CHAT, Outcome, ask
from tests.reliability.good import GoodLoad
from tests.reliability.planted import HARMS, Harm, saying
from tests.reliability.rest import Rest
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ABORTS = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="demo"}'
FREED_SECONDS = 2.0  # of which a report of the worker takes up to one at rest


def together(*works: Coroutine[Any, Any, Outcome]) -> list[Outcome]:
    """Runs them at the same time."""

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*works)

    return asyncio.run(all_of_them())


def harmed(server: RunningServer, word: str, **fields: Any) -> Coroutine[Any, Any, Outcome]:
    return ask(server.port, *saying(word, random.Random(word), **fields))


def assert_told(harm: Harm, outcome: Outcome, *, is_stream: bool) -> None:
    """One failure, of the right kind, and nothing that a good answer has."""
    assert outcome.code == harm.code, (harm, outcome)
    assert outcome.finish_reason is None
    assert "0x" not in str(outcome.error), "no address"
    assert "Traceback" not in str(outcome.error)
    if is_stream and harm.is_told_in_stream:
        assert (outcome.status, outcome.num_done) == (200, 1)
    else:
        assert outcome.status == harm.status


def test_a_planted_fault_fails_its_own_request_alone(faulty: RunningServer, rest: Rest) -> None:
    with GoodLoad(faulty.port) as load:
        wait_until(lambda: load.num_whole > 0, 20)
        plain = together(*(harmed(faulty, harm.word) for harm in HARMS))
        streams = together(
            *(
                harmed(faulty, harm.word, stream=True, stream_options={"include_usage": True})
                for harm in HARMS
            )
        )
    for harm, outcome, streamed in zip(HARMS, plain, streams, strict=True):
        assert_told(harm, outcome, is_stream=False)
        assert_told(harm, streamed, is_stream=True)
    assert load.unharmed()
    rest.check()


@pytest.mark.parametrize("word", ["boomonce", "oomonce"])
def test_a_step_that_fails_once_is_computed_again_and_nobody_notices(
    faulty: RunningServer, rest: Rest, word: str
) -> None:
    with GoodLoad(faulty.port) as load:
        wait_until(lambda: load.num_open == load.num_streams, 20)
        (outcome,) = together(harmed(faulty, word))
    assert outcome.is_whole
    assert load.unharmed()
    rest.check()


def test_a_connection_is_right_after_an_error(faulty: RunningServer, rest: Rest) -> None:
    async def one_after_the_other() -> list[int]:
        connection = await connect(faulty.port)
        statuses = []
        for word in ("fine", "boomdecode", "fine", "boomencode", "fine"):
            request = post(*saying(word, random.Random(word)))
            statuses.append((await connection.ask(request)).status)
        connection.close()
        return statuses

    assert asyncio.run(one_after_the_other()) == [200, 500, 200, 500, 200]
    rest.check()


# ── clients that leave ───────────────────────────────────────────────────────────────────────────


def a_request(*, stream: bool) -> bytes:
    """One that would take long."""
    body = {"messages": [{"role": "user", "content": "a long story"}], "stream": stream}
    return post(CHAT, {**body, "max_tokens": 3000, "ignore_eos": True})


def opened(server: RunningServer, sent: bytes) -> socket.socket:
    """A connection on which this was sent."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(sent)
    return client


def leave(client: socket.socket) -> None:
    """Ends in order (FIN)."""
    client.close()


def break_off(client: socket.socket) -> None:
    """Ends at once (RST); see socket(7), SO_LINGER."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def moments(server: RunningServer, *, stream: bool) -> Iterator[tuple[socket.socket, bool]]:
    """Connections at every point of a request, and whether the ledger knows it by then."""
    request = a_request(stream=stream)
    yield opened(server, request[:40]), False  # within the header
    yield opened(server, request[:-20]), False  # within the body
    running = opened(server, request)
    wait_until(lambda: server.metric("vllm:num_requests_running") >= 1, 20)
    if stream:
        assert running.recv(65536)
    yield running, True


def has_aborted(server: RunningServer, count: float) -> bool:
    """True when so many requests were aborted, since the frontend lives."""
    return server.metric(ABORTS) == count


@pytest.mark.parametrize("end", [leave, break_off])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_what_it_had_and_is_counted_once(
    faulty: RunningServer, rest: Rest, stream: bool, end: Callable[[socket.socket], None]
) -> None:
    for client, is_known in moments(faulty, stream=stream):
        aborted = faulty.metric(ABORTS)
        end(client)
        wait_until(partial(has_aborted, faulty, aborted + is_known), FREED_SECONDS)
        wait_until(faulty.is_at_rest, FREED_SECONDS)
    rest.check()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_sending_side_has_left(
    faulty: RunningServer, rest: Rest, stream: bool
) -> None:
    aborted = faulty.metric(ABORTS)
    client = opened(faulty, a_request(stream=stream))
    wait_until(lambda: faulty.metric("vllm:num_requests_running") == 1, 20)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: faulty.metric(ABORTS) == aborted + 1, FREED_SECONDS)
    wait_until(faulty.is_at_rest, FREED_SECONDS)
    client.close()
    rest.check()


def test_a_queue_whose_clients_leave_is_empty_at_once(faulty: RunningServer, rest: Rest) -> None:
    max_concurrent, num_queued = 100, 40
    queued = "transformers_openai_api:queued_answers"
    clients = [opened(faulty, a_request(stream=True)) for _ in range(max_concurrent)]
    wait_until(lambda: faulty.metric("transformers_openai_api:open_requests") == 100, 20)
    waiting = [opened(faulty, a_request(stream=True)) for _ in range(num_queued)]
    wait_until(lambda: faulty.metric(queued) == num_queued, 20)
    for client in waiting:
        client.close()
    wait_until(lambda: faulty.metric(queued) == 0, FREED_SECONDS)
    for client in clients:
        client.close()
    (outcome,) = together(harmed(faulty, "fine"))  # it is let in
    assert outcome.is_whole
    rest.check()
