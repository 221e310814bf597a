"""Microseconds to encode and decode the messages of one step, by number of sequences. No GPU.

The ceiling is the step itself: at 256 sequences a fast decode step takes about 10 ms, and the wire
runs three times a step (worker, detokenizer, frontend), so it should stay under 1 % of it.

    python -m benchmarks.bench_wire
"""

import json
import timeit

from shared import wire
from shared.messages import Message, TextProduced, TokensSampled

ROUNDS = 5
REPEATS = 200


def step_messages(num_sequences: int) -> list[Message]:
    """What one decode step of so many sequences sends."""
    ids = tuple(f"chatcmpl-{index:032x}" for index in range(num_sequences))
    numbers = tuple(range(num_sequences))
    first = (0,) * num_sequences  # everybody asked for one answer
    texts = (" word",) * num_sequences
    return [
        TokensSampled(0, 1, 7, (), ids, first, numbers, numbers, (), ()),
        TextProduced(0, 1, ids, first, numbers, texts, numbers, (), (), ()),
    ]


def microseconds(message: Message) -> float:
    """The best of several rounds, which is the least disturbed one."""
    rounds = timeit.repeat(lambda: wire.decode(wire.encode(message)), number=REPEATS, repeat=ROUNDS)
    return min(rounds) / REPEATS * 1e6


def main() -> None:
    """Prints a table, then one line of JSON."""
    rows = [
        {"message": type(message).__name__, "sequences": n, "microseconds": microseconds(message)}
        for n in (1, 32, 256)
        for message in step_messages(n)
    ]
    for row in rows:
        print(f"{row['message']:15} {row['sequences']:4} sequences {row['microseconds']:8.1f} µs")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
