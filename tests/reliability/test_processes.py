"""A process dies or stands still under load: who is told, who goes on, and what is left."""

import asyncio
import random
import time
from contextlib import suppress

import openai
import psutil
import pytest

from benchmarks.raw_http import connect, post
from tests.e2e.server import RunningServer
from tests.reliability.client import Outcome, ask
from tests.reliability.conftest import Measured
from tests.reliability.good import Death, GoodLoad
from tests.reliability.planted import STALL_SECONDS, saying
from tests.reliability.rest import Rest
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SLOW = (pytest.mark.slow, pytest.mark.reliability)
GIVEN_UP_SECONDS = 3.0
STEPS = "transformers_openai_api:worker_steps"
MAX_STEPS_FOR_THE_DEAD = 60  # of 10 ms: a report is 250 ms old, a new frontend takes over a second
ROOMS = ("worker-0", "tokenizer-1", "detokenizer-0", "frontend-0")


def wait_until_streaming(load: GoodLoad) -> None:
    """Every client is within an answer, which is so when all have been through one."""
    wait_until(lambda: load.num_whole >= load.num_streams, 30)
    wait_until(lambda: load.num_open == load.num_streams, 30)


def kill(server: RunningServer, rest: Rest, room: str, load: GoodLoad) -> Death:
    """Kills a room, and waits for its next life and for answers through it."""
    victim = server.children()[room]
    died_at = time.monotonic()
    victim.kill()
    rest.wait_mended(room)
    mended_at = time.monotonic()
    wait_for_answers(load)
    return Death(room, died_at, mended_at)


def wait_for_answers(load: GoodLoad) -> None:
    """Returns once every client may have had an answer that was begun after this call."""
    num_whole = load.num_whole
    wait_until(lambda: load.num_whole >= num_whole + 2 * load.num_streams, 30)


def told_seconds(load: GoodLoad, death: Death) -> float:
    """How long after the death the last request that failed of it had its outcome."""
    failed = [o for o in load.outcomes if not o.is_whole and o.started < death.died_at < o.ended]
    return max((outcome.ended - death.died_at for outcome in failed), default=0.0)


@pytest.mark.parametrize("room", ROOMS)
def test_a_killed_room_is_replaced_and_harms_only_what_was_in_it(
    faulty: RunningServer, rest: Rest, room: str
) -> None:
    with GoodLoad(faulty.port) as load:
        wait_until_streaming(load)
        death = kill(faulty, rest, room, load)
    assert load.unharmed((death,))
    rest.check()
    assert any(f"{room} (pid" in line and "SIGKILL" in line for line in faulty.log)


def test_rooms_that_stand_still_for_a_moment_lose_nothing(
    faulty: RunningServer, rest: Rest
) -> None:
    with GoodLoad(faulty.port) as load:
        wait_until_streaming(load)
        for room in ROOMS:
            process = faulty.children()[room]
            process.suspend()
            time.sleep(0.2 * STALL_SECONDS)  # this is what is tested
            process.resume()
        wait_for_answers(load)
    assert load.unharmed()
    rest.check()


@pytest.mark.parametrize("room", [pytest.param(room, marks=SLOW) for room in ROOMS])
def test_a_room_that_stands_still_is_found_and_replaced(
    impatient: RunningServer, impatient_rest: Rest, measured: Measured, room: str
) -> None:
    with GoodLoad(impatient.port) as load:
        wait_until_streaming(load)
        process = impatient.children()[room]
        stopped_at = time.monotonic()
        process.suspend()
        wait_until(lambda: not process.is_running(), 4 * STALL_SECONDS)
        died_at = time.monotonic()
        impatient_rest.wait_mended(room)
        death = Death(room, died_at, time.monotonic(), stopped_at)
        wait_for_answers(load)
    assert load.unharmed((death,))
    measured(
        "P25", f"{room} stopped, s to its end", f"<= {STALL_SECONDS + 3}", died_at - stopped_at
    )
    impatient_rest.check()


@pytest.mark.slow
@pytest.mark.reliability
def test_a_server_that_is_halted_as_a_whole_loses_nothing(
    impatient: RunningServer, impatient_rest: Rest
) -> None:
    """As by Ctrl-Z or `docker pause`: nobody has got on, and nobody is stuck."""
    with GoodLoad(impatient.port) as load:
        wait_until_streaming(load)
        launcher = psutil.Process(impatient.process.pid)
        halted = [launcher, *impatient.children().values()]
        for process in halted:
            process.suspend()
        time.sleep(2 * STALL_SECONDS)  # this is what is tested
        for process in halted:
            process.resume()
        wait_for_answers(load)
    assert load.unharmed()
    impatient_rest.check()


@pytest.mark.slow
@pytest.mark.reliability
def test_clients_that_leave_during_a_restart_leave_nothing(
    faulty: RunningServer, rest: Rest
) -> None:
    """Some leave as the worker dies, some while the next life loads."""

    async def leave_after(seconds: float) -> None:
        connection = await connect(faulty.port)
        path, body = saying("fine", random.Random(seconds), stream=True, max_tokens=3000)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await connection.ask(post(path, body))
        connection.close()

    async def leave_one_after_the_other() -> None:
        leaving = [asyncio.create_task(leave_after(0.5 + 0.02 * n)) for n in range(50)]
        await asyncio.sleep(0.6)
        faulty.children()["worker-0"].kill()
        await asyncio.gather(*leaving)

    asyncio.run(leave_one_after_the_other())
    rest.check("worker-0")


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("room", ["frontend-0", "detokenizer-0"])
def test_what_ran_for_the_dead_is_given_up(faulty: RunningServer, rest: Rest, room: str) -> None:
    """Answers that would run for half a minute more hold no block when the next life is ready."""

    async def ask_for_long_answers() -> tuple[float, list[Outcome]]:
        chance = random.Random(room)
        bodies = [saying("fine", chance, stream=True, max_tokens=3000) for _ in range(8)]
        asked = [asyncio.create_task(ask(faulty.port, *body)) for body in bodies]
        await asyncio.to_thread(wait_until, lambda: has_running(faulty, len(asked)), 20)
        num_steps = faulty.metric(STEPS)
        faulty.children()[room].kill()
        return num_steps, await asyncio.gather(*asked)

    num_steps, outcomes = asyncio.run(ask_for_long_answers())
    assert all(outcome.code == "engine_dead" or outcome.is_cut for outcome in outcomes)
    rest.wait_mended(room)
    wait_until(lambda: faulty.metric(STEPS) >= num_steps, GIVEN_UP_SECONDS)
    wait_until(faulty.is_at_rest, GIVEN_UP_SECONDS)
    assert faulty.metric(STEPS) - num_steps < MAX_STEPS_FOR_THE_DEAD
    rest.check()


def has_running(server: RunningServer, count: int) -> bool:
    """True when so many requests run in the worker."""
    return server.metric("vllm:num_requests_running") == count


# ── requests that kill ───────────────────────────────────────────────────────────────────────────


def died_since(server: RunningServer, before: dict[str, int]) -> list[str]:
    """The rooms that have another process than before, or none."""
    now = {room: process.pid for room, process in server.children().items()}
    return [room for room, pid in before.items() if now.get(room) != pid]


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize(
    ("word", "kind", "cause"),
    [
        ("killprefill", "worker", "was killed by SIGSEGV"),
        ("killdecode", "worker", "was killed by SIGSEGV"),
        ("lostgpu", "worker", "failed: the GPU is lost"),
        ("quitstep", "worker", "exited with status 0"),
        ("hangstep", "worker", "was killed by SIG"),
        ("killtext", "detokenizer", "was killed by SIGSEGV"),
        ("killencode", "tokenizer", "was killed by SIGSEGV"),
        ("hangencode", "tokenizer", "was killed by SIG"),
        ("losttext", "tokenizer", "exited with status 0"),
    ],
)
def test_a_request_that_ends_a_process_is_told_and_the_process_replaced(
    impatient: RunningServer, impatient_rest: Rest, word: str, kind: str, cause: str
) -> None:
    before = {room: process.pid for room, process in impatient.children().items()}
    num_lines = len(impatient.log)
    with GoodLoad(impatient.port) as load:
        wait_until_streaming(load)
        path, body = saying(word, random.Random(time.monotonic_ns()), stream=True)
        sent_at = time.monotonic()
        killer = asyncio.run(ask(impatient.port, path, body))
        (room,) = died_since(impatient, before)
        impatient_rest.wait_mended(room)
        # It died at some time between the request and its outcome.
        death = Death(room, killer.ended, time.monotonic(), stood_still_at=sent_at)
        wait_for_answers(load)
    assert room.startswith(kind)
    assert killer.code == "engine_dead"
    assert killer.num_ends == 1
    assert load.unharmed((death,))
    log = "".join(impatient.log[num_lines:])
    assert cause in log
    assert ("in perform" in log) == (word.startswith(("hang", "kill"))), "its stack"
    impatient_rest.check()


@pytest.mark.slow
@pytest.mark.reliability
def test_a_request_that_kills_is_refused_after_two_deaths(
    faulty: RunningServer, rest: Rest
) -> None:
    with (
        openai.OpenAI(base_url=f"{faulty.url}/v1", api_key="-", max_retries=20) as client,
        pytest.raises(openai.BadRequestError, match="died 2 times"),
    ):
        client.completions.create(model="demo", prompt="killdecode, again", max_tokens=12)
    rest.check("worker-0", "worker-0")
