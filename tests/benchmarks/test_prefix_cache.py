"""The benchmark of the prefix cache measures what it says, on a model that takes no time."""

import torch

from benchmarks.bench_prefix_cache import NUM_STREAMS, long_prompt_row, prefix_row
from benchmarks.gpu.machine import Machine
from gpu_worker.paged_attention import ATTENTION

REHEARSAL = Machine(torch.device("cpu"), is_rehearsal=True)


def test_a_shared_prefix_is_computed_once() -> None:
    row = prefix_row(REHEARSAL.model(ATTENTION))
    assert row["times_faster"] > 1.5
    assert row["ceiling"] == 33


def test_a_long_prompt_delays_nobody_by_more_than_a_step() -> None:
    row = long_prompt_row(REHEARSAL.model(ATTENTION))
    assert row["streams"] == NUM_STREAMS
    assert row["chunk_steps"] == -(-6000 // (512 - NUM_STREAMS))
    # A busy machine may double one gap; a prompt in one piece would make it that of all its steps.
    assert row["longest_gap_in_chunk_steps"] < row["chunk_steps"] / 4
