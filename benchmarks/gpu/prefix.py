"""Seconds to the first token of the 8-billion model with and without the prefix cache."""

from collections.abc import Sequence
from functools import partial

from benchmarks.bench_prefix_cache import prefix_row
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Values
from gpu_worker.paged_attention import ATTENTION

TOKENS_PER_STEP = 4096


def stage(machine: Machine) -> Stage:
    """One row."""
    return Stage("prefix", 60.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    return [Row("32 requests, 1024 shared tokens", partial(measure, machine))]


def measure(machine: Machine) -> Values:
    """Mean of 32 requests that arrive together after the prefix is in the cache."""
    return prefix_row(machine.model(ATTENTION), TOKENS_PER_STEP)
