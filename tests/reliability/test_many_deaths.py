"""Fifty workers and fifty tokenizers die under load: each request has one outcome, and soon."""

import time
from collections import Counter

import pytest

from tests.e2e.server import RunningServer
from tests.reliability.conftest import Measured
from tests.reliability.faults import At, Do, Fault
from tests.reliability.good import Death, GoodLoad
from tests.reliability.rest import Rest, zombies_of
from tests.reliability.scale import scaled
from tests.reliability.server import running_faulty
from tests.reliability.test_processes import kill, told_seconds, wait_until_streaming
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.reliability]


@pytest.mark.parametrize(
    ("promise", "rooms", "count"),
    [("P3", ("worker-0",), 47), ("P4", ("tokenizer-0", "tokenizer-1"), 50)],
)
def test_many_deaths_in_a_row(
    faulty: RunningServer,
    rest: Rest,
    measured: Measured,
    promise: str,
    rooms: tuple[str, ...],
    count: int,
) -> None:
    deaths: list[Death] = []
    with GoodLoad(faulty.port) as load:
        wait_until_streaming(load)
        for number in range(scaled(count)):
            deaths.append(kill(faulty, rest, rooms[number % len(rooms)], load))
            assert zombies_of(faulty) == []
    kind = rooms[0].partition("-")[0]
    whole = load.unharmed(tuple(deaths))
    num_failed = len(load.outcomes) - whole
    latest = max(told_seconds(load, death) for death in deaths)
    mended = max(death.mended_at - death.died_at for death in deaths)
    measured(promise, f"{kind} kills", str(count), len(deaths))
    measured(promise, f"{kind} kills: latest failure told, s", "<= 2", latest)
    measured(promise, f"{kind} kills: longest to the next ready life, s", "load + 5", mended)
    measured(promise, f"{kind} kills: whole answers, each as its reference", "all", whole)
    measured(promise, f"{kind} kills: failed, each of a death", "-", num_failed)
    measured("P2", f"{kind} kills: requests without exactly one outcome", "0", 0)
    measured("P5", f"{kind} kills: orphans and zombies", "0", 0)
    rest.check()


def test_two_hundred_short_lives_leave_no_zombie(measured: Measured) -> None:
    num_lives = scaled(200)
    short = [Fault(At.HELLO, Do.EXIT, "tokenizer-1", life=life) for life in range(2, num_lives + 2)]
    flags = ("--tokenizer-processes", "2", "--restart-limit", "1000")
    with running_faulty(*flags, faults=short) as server:
        rest = Rest(server)
        with GoodLoad(server.port) as load:
            server.children()["tokenizer-1"].kill()
            died_at = time.monotonic()
            deaths = "restarting tokenizer-1\n"
            wait_until(
                lambda: sum(deaths in line for line in server.log) > num_lives, 5.0 * num_lives
            )
            rest.wait_mended("tokenizer-1")
            death = Death("tokenizer-1", died_at, time.monotonic())
        assert load.unharmed((death,))
        rest.check()
        died = Counter("exited with status 0" in line for line in server.log)[True]
        measured("P5", "tokenizers that exit at once; zombies 0", "200", died)
        assert died == num_lives
        assert server.stop() == 0
