"""Sends prompts or sounds as arrivals, a limit or users ask for it, and keeps every outcome."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import perf_counter, process_time
from typing import Generic

from benchmarks.load.client import Clock, Item
from benchmarks.load.outcome import Completed, Outcome, Run
from benchmarks.load.prompts import Prompt

USER_PAUSE_SECONDS = 1.0  # after a refusal or failure; without it, a full server is asked in a loop

Ask = Callable[[Prompt], Awaitable[Outcome]]


class Traffic(Generic[Item]):
    """One run of requests; `run` is right at any time, also after an interruption."""

    def __init__(
        self,
        ask: Callable[[Item], Awaitable[Outcome]],
        clock: Clock = perf_counter,
        on_change: Callable[["Traffic[Item]"], None] = lambda _: None,
    ) -> None:
        self.num_open = 0
        self.num_users = 0
        self.outcomes: list[Outcome] = []
        self._ask = ask
        self._clock = clock
        self._on_change = on_change
        self._started = clock()
        self._cpu_started = process_time()
        self._max_send_delay = 0.0

    @property
    def run(self) -> Run:
        """What has happened since the start."""
        cpu_seconds = process_time() - self._cpu_started
        return Run(self._started, tuple(self.outcomes), self._max_send_delay, cpu_seconds)

    async def send_arrivals(
        self, items: Iterable[Item], times: Iterator[float], max_concurrency: int | None
    ) -> None:
        """Sends each item at its time, or later while `max_concurrency` requests are open."""
        gate = asyncio.Semaphore(max_concurrency or sys.maxsize)
        async with asyncio.TaskGroup() as group:
            for item, seconds in zip(items, times, strict=False):
                planned = self._started + seconds
                await self._sleep_until(planned)
                await gate.acquire()
                self._max_send_delay = max(self._max_send_delay, self._clock() - planned)
                group.create_task(self._send(item)).add_done_callback(lambda _: gate.release())

    async def send_users(
        self, items: Iterator[Item], joins: Iterable[float], duration: float
    ) -> None:
        """Each user sends one request after the other; at `duration` all finish their last."""
        async with asyncio.TaskGroup() as group:
            for seconds in joins:
                if seconds < duration:
                    group.create_task(self._be_user(items, seconds, duration))

    async def _be_user(self, items: Iterator[Item], joins: float, duration: float) -> None:
        await self._sleep_until(self._started + joins)
        self.num_users += 1
        ends = self._started + duration
        while self._clock() < ends:
            if not isinstance(await self._send(next(items)), Completed):
                await self._sleep_until(min(self._clock() + USER_PAUSE_SECONDS, ends))
        self.num_users -= 1

    async def _send(self, item: Item) -> Outcome:
        self.num_open += 1
        self._on_change(self)
        outcome = await self._ask(item)
        self.num_open -= 1
        self.outcomes.append(outcome)
        self._on_change(self)
        return outcome

    async def _sleep_until(self, seconds: float) -> None:
        if (remaining := seconds - self._clock()) > 0:
            await asyncio.sleep(remaining)
