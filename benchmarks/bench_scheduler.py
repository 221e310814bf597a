"""Microseconds of `schedule` plus `apply` for one decode step, by number of sequences. No GPU.

The ceiling is the step that it plans: at 256 sequences about 10 ms on a GPU, so planning should
stay under a tenth of it until planning and computing overlap.

    python -m benchmarks.bench_scheduler
"""

import json
import time

from scheduler.plan import StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.sampling import SamplingParams

NUM_STEPS = 200
PROMPT = tuple(range(100))


def decoding_scheduler(num_sequences: int) -> Scheduler:
    """A scheduler whose sequences have all finished their prompts."""
    scheduler = Scheduler(
        num_blocks=num_sequences * 32,
        block_size=16,
        max_sequences=num_sequences,
        max_tokens_per_step=len(PROMPT) * num_sequences,
    )
    for index in range(num_sequences):
        sampling = SamplingParams(seed=index)
        scheduler.add(Sequence(str(index), PROMPT, NUM_STEPS + 2, frozenset(), sampling))
    plan = scheduler.schedule()
    scheduler.apply(plan, StepResult((5,) * len(plan.chunks)))
    return scheduler


def microseconds_per_step(num_sequences: int) -> float:
    """The mean over many steps in which every sequence decodes one token."""
    scheduler = decoding_scheduler(num_sequences)
    result = StepResult((5,) * num_sequences)
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        scheduler.apply(scheduler.schedule(), result)
    return (time.perf_counter() - start) / NUM_STEPS * 1e6


def main() -> None:
    """Prints a table, then one line of JSON."""
    rows = [{"sequences": n, "microseconds": microseconds_per_step(n)} for n in (1, 32, 256)]
    for row in rows:
        print(f"{row['sequences']:4} sequences {row['microseconds']:8.1f} µs a step")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
