"""Decode steps alone, compiled beside uncompiled, by processor time.

The two sides take turns step by step, over the same sequences, so that a busy second hits both.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from gpu_worker.loaded import LoadedModel
from scheduler.scheduler import Scheduler

Steps = Callable[[int], Iterator[float]]  # processor seconds of every decode step of so many rows


def served(loaded: LoadedModel, scheduler: Scheduler) -> Iterator[float]:
    """Serves all that the scheduler holds; the processor seconds of each step that only decodes."""
    while not scheduler.is_idle:
        plan = scheduler.schedule()
        start = time.process_time()
        result = loaded.runner.execute(plan)
        seconds = time.process_time() - start
        scheduler.apply(plan, result)
        if not plan.admissions and all(len(chunk.token_ids) == 1 for chunk in plan.chunks):
            yield seconds


def compare(plain: Steps, compiled: Steps, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Prints a line a batch size; the same for programs, in milliseconds of the median step."""
    found: dict[str, Any] = {}
    for size in batch_sizes:
        for _ in zip(plain(size), compiled(size), strict=True):
            pass  # to warm up
        pairs = list(zip(plain(size), compiled(size), strict=True))
        ours, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        print(
            f"{size:3} rows  decode steps of {ours:.2f} ms of processor time, compiled "
            f"{theirs:.2f}: the median of {len(pairs)} ratios is {ratio:.2f}"
        )
        found[str(size)] = {"uncompiled_ms": ours, "compiled_ms": theirs, "ratio": ratio}
    return found
