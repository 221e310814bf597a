"""Microseconds of `schedule` plus `apply`: a decode step, and the step that admits a long prompt.

The ceiling is the step that it plans: at 256 sequences about 10 ms on a GPU, so planning should
stay under a tenth of it until planning and computing overlap. The prefix cache is on, and in every
step one sequence in sixteen fills a block, which is hashed, and takes a new one. No GPU.

    python -m benchmarks.bench_scheduler
"""

import json
import time
from itertools import count

from scheduler.plan import StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.sampling import SamplingParams

BLOCK_SIZE = 16
NUM_STEPS = 160  # so that everybody crosses ten borders of blocks
NUM_LONG_TOKENS = 6_000
ROUNDS = 5
REQUEST_IDS = count()


def new_scheduler(num_sequences: int) -> Scheduler:
    """Room for all of them to their ends, in one step if need be."""
    return Scheduler(
        num_blocks=num_sequences * 32 + 2 * NUM_LONG_TOKENS // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        max_sequences=num_sequences,
        max_tokens_per_step=num_sequences * 128 + NUM_LONG_TOKENS,
    )


def add(scheduler: Scheduler, first_token_id: int, length: int) -> None:
    """Queues a prompt of consecutive tokens."""
    prompt = tuple(range(first_token_id, first_token_id + length))
    request_id, sampling = str(next(REQUEST_IDS)), SamplingParams(seed=0)
    scheduler.add(Sequence(request_id, prompt, NUM_STEPS + 2, frozenset(), sampling))


def microseconds_per_step(scheduler: Scheduler, num_steps: int) -> float:
    """The mean over so many steps in which everybody samples a token."""
    result = StepResult((5,) * (scheduler.num_running + scheduler.num_waiting))
    start = time.process_time()
    for _ in range(num_steps):
        scheduler.apply(scheduler.schedule(), result)
    return (time.process_time() - start) / num_steps * 1e6


def decode(num_sequences: int) -> float:
    """One step in which every sequence decodes one token."""
    scheduler = new_scheduler(num_sequences)
    for number in range(num_sequences):
        add(scheduler, 1_000 * number, 100 + number % BLOCK_SIZE)
    microseconds_per_step(scheduler, num_steps=1)
    return microseconds_per_step(scheduler, NUM_STEPS)


def admission(*, is_known: bool) -> float:
    """The one step in which an idle scheduler admits, plans and records a long prompt."""
    scheduler = new_scheduler(2)
    if is_known:
        add(scheduler, 0, NUM_LONG_TOKENS)
        microseconds_per_step(scheduler, num_steps=1)
        scheduler.abort(str(next(REQUEST_IDS) - 1))
    add(scheduler, 0, NUM_LONG_TOKENS)
    return microseconds_per_step(scheduler, num_steps=1)


def main() -> None:
    """Prints two tables, then one line of JSON. Each number is the least disturbed of a few."""
    sizes = (1, 32, 64, 128, 256)
    decodes = {n: min(decode(n) for _ in range(ROUNDS)) for n in sizes}
    admissions = {
        name: min(admission(is_known=is_known) for _ in range(ROUNDS))
        for name, is_known in (("new", False), ("known", True))
    }
    for n, microseconds in decodes.items():
        print(f"{n:4} sequences {microseconds:8.1f} µs a step {microseconds / n:6.2f} µs each")
    for name, microseconds in admissions.items():
        print(f"{NUM_LONG_TOKENS} tokens, {name:5} {microseconds:8.1f} µs to admit")
    print(json.dumps({"decode": decodes, "admission": admissions}))


if __name__ == "__main__":
    main()
