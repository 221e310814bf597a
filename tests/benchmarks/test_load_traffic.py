"""When the load test sends: arrivals, limits and users, in a time that only passes in the loop."""

import asyncio
import math
import selectors
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from itertools import count, islice, pairwise, repeat
from typing import Any

import pytest

from benchmarks.load.arrivals import arrival_times, join_times
from benchmarks.load.outcome import Completed, Failed, Outcome
from benchmarks.load.prompts import Prompt
from benchmarks.load.traffic import Traffic

PROMPT = Prompt("hello", 5)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Where a loop would wait for a timer, the time of this one jumps to it."""

    def __init__(self) -> None:
        self._seconds = 0.0
        super().__init__(self._Selector(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._seconds

    class _Selector(selectors.SelectSelector):
        def __init__(self, loop: "VirtualTimeLoop") -> None:
            super().__init__()
            self._loop = loop

        def select(self, timeout: float | None = None) -> Any:
            if timeout is None:
                raise RuntimeError("every task waits for another one")
            self._loop._seconds += timeout
            return super().select(0)


def in_virtual_time(
    scenario: Callable[[Callable[[], float]], Coroutine[Any, Any, Traffic[Prompt]]],
) -> Traffic[Prompt]:
    """Runs a scenario, which is given the clock."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        clock = runner.get_loop().time
        return runner.run(scenario(clock))


def answering_after(
    seconds: float, clock: Callable[[], float], *, fails: bool = False
) -> Callable[[Prompt], Awaitable[Outcome]]:
    """A server for which every request takes that long."""

    async def ask(_: Prompt) -> Outcome:
        sent = clock()
        await asyncio.sleep(seconds)
        if fails:
            return Failed(sent, clock(), "timeout", "")
        return Completed(sent, clock(), (clock(),), 1, 1)

    return ask


def send(
    times: Iterator[float], num: int, seconds: float, max_concurrency: int | None = None
) -> Traffic[Prompt]:
    """Sends some prompts at these times to a server that takes that long."""

    async def scenario(clock: Callable[[], float]) -> Traffic[Prompt]:
        traffic = Traffic(answering_after(seconds, clock), clock)
        await traffic.send_arrivals(repeat(PROMPT, num), times, max_concurrency)
        return traffic

    return in_virtual_time(scenario)


def send_users(
    joins: list[float], duration: float, seconds: float, *, fails: bool = False
) -> Traffic[Prompt]:
    """Lets users ask such a server."""

    async def scenario(clock: Callable[[], float]) -> Traffic[Prompt]:
        traffic = Traffic(answering_after(seconds, clock, fails=fails), clock)
        await traffic.send_users(repeat(PROMPT), joins, duration)
        return traffic

    return in_virtual_time(scenario)


def sent(traffic: Traffic[Prompt]) -> list[float]:
    """When each request was sent, in their order."""
    return sorted(outcome.sent for outcome in traffic.outcomes)


# ── times ────────────────────────────────────────────────────────────────────────────────────────


def gaps(rate: float, burstiness: float, seed: int = 0, num: int = 20_000) -> list[float]:
    """Between arrivals."""
    times = islice(arrival_times(rate, burstiness, seed), num)
    return [late - early for early, late in pairwise([0.0, *times])]


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_a_gamma(burstiness: float) -> None:
    found = gaps(8.0, burstiness)
    mean = statistics.mean(found)
    assert mean == pytest.approx(1 / 8, rel=0.03)
    assert statistics.stdev(found) / mean == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps(2.0, 1.0)
    for seconds in (0.1, 0.5, 1.0, 2.0):
        share = sum(gap > seconds for gap in found) / len(found)
        assert share == pytest.approx(math.exp(-2.0 * seconds), abs=0.015)


def test_a_seed_gives_the_same_arrivals_again_and_another_one_does_not() -> None:
    assert gaps(1.0, 1.0, seed=3, num=10) == gaps(1.0, 1.0, seed=3, num=10)
    assert gaps(1.0, 1.0, seed=3, num=10) != gaps(1.0, 1.0, seed=4, num=10)


def test_an_infinite_rate_lets_all_arrive_at_the_start() -> None:
    assert list(islice(arrival_times(math.inf, 1.0, 0), 3)) == [0.0, 0.0, 0.0]


def test_users_join_at_their_rate_the_first_at_once() -> None:
    assert join_times(4, 2.0) == [0.0, 0.5, 1.0, 1.5]


# ── arrivals ─────────────────────────────────────────────────────────────────────────────────────


def test_an_open_loop_sends_at_the_times_whatever_the_server_takes() -> None:
    traffic = send(iter([0.5, 0.75, 4.0]), 3, seconds=10.0)
    assert sent(traffic) == pytest.approx([0.5, 0.75, 4.0])
    assert traffic.run.duration == pytest.approx(14.0)
    assert traffic.run.max_send_delay == pytest.approx(0.0)


def test_a_closed_loop_keeps_the_limit_open_and_no_more() -> None:
    traffic = send(repeat(0.0), 5, seconds=1.0, max_concurrency=2)
    assert sent(traffic) == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0])


def test_a_limit_holds_arrivals_back_and_the_delay_is_told() -> None:
    traffic = send(count(0.0), 3, seconds=2.5, max_concurrency=1)
    assert sent(traffic) == pytest.approx([0.0, 2.5, 5.0])
    assert traffic.run.max_send_delay == pytest.approx(3.0)


# ── users ────────────────────────────────────────────────────────────────────────────────────────


def test_each_user_sends_one_request_after_the_other_from_when_it_joins() -> None:
    traffic = send_users([0.0, 1.5], duration=4.0, seconds=2.0)
    assert sent(traffic) == pytest.approx([0.0, 1.5, 2.0, 3.5])
    assert traffic.run.duration == pytest.approx(5.5)  # what is open at the end is finished
    assert traffic.num_users == 0


def test_users_who_would_join_after_the_end_do_not() -> None:
    assert len(send_users([0.0, 5.0], duration=5.0, seconds=9.0).outcomes) == 1


def test_a_user_who_got_no_answer_pauses_before_asking_again() -> None:
    traffic = send_users([0.0], duration=2.5, seconds=0.0, fails=True)
    assert sent(traffic) == pytest.approx([0.0, 1.0, 2.0])


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def test_every_change_is_told_with_the_number_of_open_requests() -> None:
    seen: list[tuple[int, int]] = []

    async def scenario(clock: Callable[[], float]) -> Traffic[Prompt]:
        traffic = Traffic(
            answering_after(1.0, clock),
            clock,
            on_change=lambda traffic: seen.append((traffic.num_open, len(traffic.outcomes))),
        )
        await traffic.send_arrivals(repeat(PROMPT, 2), iter([0.0, 0.5]), None)
        return traffic

    in_virtual_time(scenario)
    assert seen == [(1, 0), (2, 0), (1, 1), (0, 2)]


def test_an_interrupted_run_keeps_what_has_ended() -> None:
    kept: list[Traffic[Prompt]] = []

    async def scenario(clock: Callable[[], float]) -> Traffic[Prompt]:
        kept.append(Traffic(answering_after(1.0, clock), clock))
        async with asyncio.timeout(2.5):
            await kept[0].send_arrivals(repeat(PROMPT, 9), repeat(0.0), 1)
        raise AssertionError

    with pytest.raises(TimeoutError):
        in_virtual_time(scenario)
    assert sent(kept[0]) == pytest.approx([0.0, 1.0])
