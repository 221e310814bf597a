"""Two frontends on one port, two detokenizers: one server to callers, and to whoever watches."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from benchmarks.formula.running import running_formula
from benchmarks.formula.settings import FormulaSettings
from tests.e2e.server import RunningServer, running_server
from tests.e2e.streams import Reply, chat_body, stream_chat
from tests.reliability.client import CHAT, COMPLETION, Outcome, ask
from tests.reliability.good import GoodLoad, good_request, reference
from tests.reliability.rest import Rest
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
COUNTS = ("--frontend-processes", "2", "--detokenizer-processes", "2")
FRONTENDS = ("frontend-0", "frontend-1")
MAX_CONCURRENT, MAX_QUEUE = 12, 4
LIMITS = ("--max-concurrent", str(MAX_CONCURRENT), "--max-queue", str(MAX_QUEUE))
RUNNING = "vllm:num_requests_running"
QUEUED = "transformers_openai_api:queued_answers"
STEP_MS = 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A formula server that mends every death, and shows thoughts where the formula says them."""
    flags = ("--continuous-batching-batch-size", "16", "--restart-limit", "99")
    rules = (*COUNTS, *LIMITS, "--reasoning-field", "none")
    with running_formula(*rules, *flags, settings=FormulaSettings(step_ms=STEP_MS)) as running:
        yield running


@pytest.fixture(scope="module")
def rest(server: RunningServer) -> Rest:
    """What the server is like when it has nothing to do."""
    return Rest(server)


@pytest.fixture
def each(server: RunningServer) -> Iterator[dict[str, httpx.Client]]:
    """A client with a connection to each of the frontends."""
    with contextlib.ExitStack() as stack:
        found: dict[str, httpx.Client] = {}
        while found.keys() != set(FRONTENDS):
            client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            room = room_behind(server, client.get("/live"))
            if room in found:
                client.close()
            found.setdefault(room, client)
        yield found


def room_behind(server: RunningServer, response: httpx.Response) -> str:
    """Which frontend has the connection that this came on."""
    port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
    return next(room for room in FRONTENDS if port in ports_at(server, room))


def ports_at(server: RunningServer, room: str) -> set[int]:
    """The callers' ports of a frontend's connections."""
    connections = server.children()[room].net_connections("tcp")
    return {connection.raddr.port for connection in connections if connection.raddr}


async def gathered(server: RunningServer, count: int) -> list[Outcome]:
    """Good requests at the same time."""
    chance = random.Random(count)
    return await asyncio.gather(*(ask(server.port, *good_request(chance)) for _ in range(count)))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_answers_are_those_of_one_of_each(demo_server: RunningServer) -> None:
    question = {"messages": [{"role": "user", "content": "Count from 1 to 9."}], "max_tokens": 40}
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {**question, "temperature": 0}),
        (CHAT, {**question, "n": 3, "seed": 7, "logprobs": True, "top_logprobs": 2}),
        (CHAT, {**question, "temperature": 0, "stop": ["5"]}),
        (COMPLETION, {"prompt": ["Hello", "What is"], "n": 2, "seed": 3, "echo": True}),
    ]
    flags = ("--hf-model", "demo", "--torch-dtype", "float32", *COUNTS)
    with running_server(*flags) as several:
        for path, body in asked * 2:  # through both detokenizers
            alone, spread = (
                httpx.post(f"{s.url}{path}", json=body, timeout=60).json()
                for s in (demo_server, several)
            )
            assert spread["choices"] == alone["choices"]
            assert spread["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"]
        assert several.stop() == 0


def test_many_answers_at_once_are_right_and_both_detokenizers_make_them(
    server: RunningServer, rest: Rest
) -> None:
    rooms = [f"detokenizer-{number}" for number in range(2)]
    before = {room: server.children()[room].cpu_times().user for room in rooms}
    for _ in range(3):
        for outcome in asyncio.run(gathered(server, MAX_CONCURRENT + MAX_QUEUE)):
            assert outcome.text == reference(outcome), outcome
    after = {room: server.children()[room].cpu_times().user for room in rooms}
    assert all(after[room] > before[room] for room in rooms)
    rest.check()


# ── one server to whoever asks ───────────────────────────────────────────────────────────────────


def test_metrics_tell_the_whole_server_whoever_answers(
    server: RunningServer, each: dict[str, httpx.Client]
) -> None:
    wait_until(server.is_at_rest, 10)
    names = (
        "vllm:request_success_total",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
    )
    before = [server.metric(name) for name in names]
    for tokens, client in enumerate(each.values(), start=5):
        body = chat_body(f"From {tokens}", max_tokens=tokens)
        assert client.post(CHAT, json=body).status_code == 200

    def pages() -> set[str]:
        return {client.get("/metrics").text for client in each.values()}

    assert server.metric(names[1]) - before[1] == 5 + 6
    wait_until(lambda: len(pages()) == 1, 5)  # a step of the worker may be told in between


def test_probes_and_descriptions_are_the_same_whoever_answers(
    each: dict[str, httpx.Client],
) -> None:
    for path in ("/health", "/ready", "/live", "/server_info", "/v1/models", "/version", "/"):
        first, second = (client.get(path) for client in each.values())
        assert first.status_code == second.status_code == 200
        assert first.json() == second.json(), path
    limits = each["frontend-1"].get("/server_info").json()["limits"]
    assert (limits["max_concurrent"], limits["max_queue"]) == (MAX_CONCURRENT, MAX_QUEUE)


def test_the_limits_hold_for_all_together(
    server: RunningServer, rest: Rest, each: dict[str, httpx.Client]
) -> None:
    """Both are full when so many answers run and wait, wherever they do."""

    async def overfill() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            number = range(MAX_CONCURRENT + MAX_QUEUE)
            bodies = [chat_body(f"Long {n}", max_tokens=3000) for n in number]
            streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
            await asyncio.to_thread(wait_until, partial(is_full, server), 20)
            await asyncio.to_thread(refuses, each)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    asyncio.run(overfill())
    wait_until(server.is_at_rest, 10)
    for client in each.values():
        many = client.post(CHAT, json=chat_body("n", n=MAX_CONCURRENT, temperature=1, max_tokens=4))
        assert len(many.json()["choices"]) == MAX_CONCURRENT
        more = client.post(CHAT, json=chat_body("n", n=MAX_CONCURRENT + 1, temperature=1))
        assert more.status_code == 400
        client.close()  # it is none of what the server keeps
    rest.check()


def refuses(each: dict[str, httpx.Client]) -> None:
    """Every frontend says that the server is full."""
    for client in each.values():
        refused = client.post(CHAT, json=chat_body("one more"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def is_full(server: RunningServer) -> bool:
    """True when every place is taken, and every place in the queue."""
    return server.metric(RUNNING) == MAX_CONCURRENT and server.metric(QUEUED) == MAX_QUEUE


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────


def killed_under_load(
    server: RunningServer, rest: Rest, room: str
) -> tuple[list[Outcome], list[Outcome]]:
    """The outcomes of what was open when a room was killed, and of what came later."""
    with GoodLoad(server.port) as load:
        wait_until(lambda: load.num_whole >= load.num_streams, 30)
        wait_until(lambda: load.num_open == load.num_streams, 30)
        died_at = time.monotonic()
        server.children()[room].kill()
        rest.wait_mended(room)
        num_whole = load.num_whole
        wait_until(lambda: load.num_whole >= num_whole + 2 * load.num_streams, 30)
    for outcome in load.outcomes:
        assert outcome.num_ends == 1, outcome
        assert not outcome.is_whole or outcome.text == reference(outcome), outcome
    opened = [o for o in load.outcomes if o.started < died_at < o.ended]
    return opened, [o for o in load.outcomes if o.started >= died_at]


def test_a_detokenizer_that_dies_takes_its_own_requests_alone(
    server: RunningServer, rest: Rest
) -> None:
    for room in ("detokenizer-0", "detokenizer-1"):
        opened, later = killed_under_load(server, rest, room)
        failed = [outcome for outcome in opened if not outcome.is_whole]
        assert {outcome.code for outcome in failed} == {"engine_dead"}
        assert len(failed) < len(opened), "half of them went through the other one"
        # Until its death is known, it may be given one or the other.
        late = [outcome for outcome in later if not outcome.is_whole]
        assert all(outcome.code == "engine_dead" for outcome in late)
        assert len(late) < len(later) / 4
    rest.check()


def test_a_frontend_that_dies_breaks_its_own_connections_alone(
    server: RunningServer, rest: Rest
) -> None:
    generated = server.metric("vllm:generation_tokens_total")
    for room in FRONTENDS:
        opened, later = killed_under_load(server, rest, room)
        assert all(outcome.is_whole or outcome.is_cut for outcome in opened)
        # One may have been accepted by the dying, none is refused.
        assert all(outcome.is_whole or outcome.is_cut for outcome in later)
        assert server.metric("vllm:generation_tokens_total") > generated, "what it counted is kept"
        generated = server.metric("vllm:generation_tokens_total")
    rest.check()


def test_what_ran_for_a_dead_frontend_is_given_up_and_its_places_are_free(
    server: RunningServer, rest: Rest, each: dict[str, httpx.Client]
) -> None:
    victim, survivor = FRONTENDS
    rooms = server.children()  # while all of them live: one that has just died has no name

    async def streams_of_the_dead() -> list[Reply]:
        """Every place is taken at the victim while the other stands still."""
        rooms[survivor].suspend()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            bodies = [chat_body(f"Long {n}", max_tokens=3000) for n in range(MAX_CONCURRENT)]
            streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
            await asyncio.to_thread(wait_until, is_running_all, 20)
            rooms[victim].kill()
            rooms[survivor].resume()
            return await asyncio.gather(*streams)

    def is_running_all() -> bool:
        page = each[victim].get("/metrics").text
        return f'{RUNNING}{{engine="0",model_name="demo"}} {MAX_CONCURRENT}.0' in page

    replies = asyncio.run(streams_of_the_dead())
    assert all(reply.was_cut for reply in replies)
    answer = each[survivor].post(CHAT, json=chat_body("n", n=MAX_CONCURRENT, max_tokens=4))
    assert answer.status_code == 200
    rest.wait_mended(victim)
    rest.check()


def test_connections_that_nobody_has_accepted_outlive_a_frontend(
    server: RunningServer, rest: Rest
) -> None:
    """They wait at the socket, which is the launcher's: the other frontend takes them."""
    victim, survivor = (server.children()[room] for room in FRONTENDS)

    async def ask_while_all_stand_still() -> list[Outcome]:
        victim.suspend(), survivor.suspend()
        asked = asyncio.create_task(gathered(server, 8))
        await asyncio.to_thread(wait_until, lambda: num_unaccepted(server) == 8, 10)
        victim.kill()
        survivor.resume()
        return await asked

    for outcome in asyncio.run(ask_while_all_stand_still()):
        assert outcome.text == reference(outcome), outcome
    rest.wait_mended("frontend-0")
    rest.check()


def num_unaccepted(server: RunningServer) -> int:
    """Connections that wait at the listening socket; see /proc/net/tcp in proc(5)."""
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123
        rows = [line.split() for line in table.readlines()[1:]]
    local = f"{server.port:04X}"
    queues = [row[4] for row in rows if row[1].endswith(f":{local}") and row[3] == "0A"]
    return int(queues[0].partition(":")[2], 16)


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_drains_all_frontends() -> None:
    settings = FormulaSettings(step_ms=20)

    async def streams_at_a_signal(server: RunningServer) -> list[Reply]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            bodies = [chat_body(f"Story {n}", max_tokens=60 + n) for n in range(8)]
            streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
            metric = "vllm:time_to_first_token_seconds_count"
            await asyncio.to_thread(wait_until, lambda: server.metric(metric) == 8, 20.0)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_until, partial(refuses_everywhere, server), 2.0)
            return await asyncio.gather(*streams)

    with running_formula(*COUNTS, settings=settings) as server:
        replies = asyncio.run(streams_at_a_signal(server))
        assert [reply.finish_reason for reply in replies] == ["length"] * 8
        assert not any(reply.was_cut or reply.error for reply in replies)
        assert server.process.wait(20) == 0


def test_a_frontend_that_comes_back_in_the_middle_drains_too() -> None:
    async def streams_at_a_death_and_a_signal(server: RunningServer) -> list[Reply]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            bodies = [chat_body(f"Story {n}", max_tokens=400) for n in range(8)]
            streams = [asyncio.create_task(stream_chat(client, body)) for body in bodies]
            await asyncio.to_thread(wait_until, lambda: server.metric(RUNNING) == 8, 20.0)
            server.children()["frontend-1"].kill()
            await asyncio.to_thread(wait_until, lambda: says(server, "restarting frontend-1"), 5.0)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*streams)

    flags = (*COUNTS, "--drain-timeout", "100")
    with running_formula(*flags, settings=FormulaSettings(step_ms=20)) as server:
        replies = asyncio.run(streams_at_a_death_and_a_signal(server))
        assert all(reply.was_cut or reply.finish_reason == "length" for reply in replies)
        assert server.process.wait(30) == 0
        assert not says(server, "requests still run after --drain-timeout")


def says(server: RunningServer, sentence: str) -> bool:
    """True once the log has this sentence."""
    return any(sentence in line for line in server.log)


def refuses_everywhere(server: RunningServer) -> bool:
    """True when several callers in a row, at whichever frontend, are turned away."""
    is_over: Callable[[], bool] = lambda: (  # noqa: E731
        httpx.post(f"{server.url}{CHAT}", json=chat_body("late", max_tokens=1)).status_code == 503
    )
    return all(is_over() for _ in range(8))
