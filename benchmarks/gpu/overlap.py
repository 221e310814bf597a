"""Decode steps in turn and launched ahead, alternately on one engine, by batch size.

First the answers of steps that are launched ahead are compared with `generate()`.

Launched ahead, a turn in which the host waits for the tokens of a step is one in which the device
has had work all the time: the next forward pass is queued by then. `turns_that_waited` is their
share; 1 means that the host costs nothing.
"""

import statistics
import time
from collections.abc import Sequence
from functools import cached_property, partial

from benchmarks.engine import Engine, random_prompt
from benchmarks.gpu import equality
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Unavailable, Values
from gpu_worker.paged_attention import ATTENTION
from gpu_worker.pipeline import Pipeline
from gpu_worker.step_times import WAIT

ROUNDS = 4
WARM_TURNS = 3
TIMED_TURNS = 12
MAX_TOKENS = 600  # more than the steps of all batch sizes together
WAITED_SECONDS = 20e-6  # more than reading tokens takes that are there


def stage(machine: Machine) -> Stage:
    """From the largest batch to the smallest."""
    return Stage("overlap", 120.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    run = _Run(machine)
    compare = partial(equality.compare, machine, "llama", overlaps=True)
    batches = [Row(f"batch {size}", partial(run.measure, size)) for size in run.batch_sizes]
    return [Row("equality, llama", compare), *batches]


class _Run:
    """One engine whose sequences all decode; the batch only ever shrinks."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.batch_sizes = (4, 2, 1) if machine.is_rehearsal else (256, 64, 8, 1)
        self._prompt_tokens = 20 if machine.is_rehearsal else 1000
        self._tokens_per_step = 64 if machine.is_rehearsal else 8192

    def measure(self, batch_size: int) -> Values:
        """Median turns of both kinds at a batch size."""
        scheduler = self._engine.scheduler
        if scheduler.num_running < batch_size:
            raise Unavailable("the prefill did not come so far")
        for number in range(batch_size, self.batch_sizes[0]):
            if scheduler.holds(str(number)):
                scheduler.abort(str(number))
        in_turn: list[float] = []
        ahead: list[float] = []
        waits: list[float] = []
        for _ in range(ROUNDS):
            in_turn += self._turns(overlaps=False)[0]
            seconds, waited = self._turns(overlaps=True)
            ahead += seconds
            waits += waited
        return {
            "in_turn_ms": 1e3 * statistics.median(in_turn),
            "ahead_ms": 1e3 * statistics.median(ahead),
            "ahead_over_in_turn": statistics.median(ahead) / statistics.median(in_turn),
            "ahead_tokens_per_second": batch_size / statistics.median(ahead),
            "turns_that_waited": sum(s > WAITED_SECONDS for s in waits) / len(waits),
        }

    def _turns(self, *, overlaps: bool) -> tuple[list[float], list[float]]:
        """Seconds of turns, and how long the host waited in each; nothing is left under way."""
        pipeline = self._engine.pipeline(overlaps=overlaps)
        for _ in range(WARM_TURNS):
            pipeline.advance()
        turns = [self._turn(pipeline) for _ in range(TIMED_TURNS)]
        if overlaps:
            pipeline.advance(may_plan_ahead=False)
        return [seconds for seconds, _ in turns], [waited for _, waited in turns]

    def _turn(self, pipeline: Pipeline) -> tuple[float, float]:
        times = self._engine.times
        waited = times.totals[WAIT]
        start = time.perf_counter()
        finished = pipeline.advance()
        seconds = time.perf_counter() - start
        times.end()
        assert finished is not None, "every turn ends a step"
        return seconds, times.totals[WAIT] - waited

    @cached_property
    def _engine(self) -> Engine:
        """Made by the first row, with every sequence decoding."""
        engine = Engine(
            self._machine.model(ATTENTION),
            num_rows=self.batch_sizes[0],
            max_model_len=self._prompt_tokens + MAX_TOKENS,
            max_tokens_per_step=self._tokens_per_step,
        )
        for number in range(self.batch_sizes[0]):
            engine.add(str(number), random_prompt(number, self._prompt_tokens, 100), MAX_TOKENS)
        while engine.step().plan.num_decodes < self.batch_sizes[0]:
            pass
        return engine
