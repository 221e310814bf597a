"""Each moment of a step belongs to one part; totals add up, and the log is told medians."""

import logging
import time

import pytest

from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import serve
from gpu_worker.pipeline import Pipeline
from gpu_worker.step_times import FORWARD, LOG_SECONDS, PARTS, PLAN, PREPARE, SAMPLE, StepTimes
from scheduler.plan import StepPlan
from shared.messages import WorkerReported
from tests.builders import make_model, make_scheduler, make_sequence
from tests.fakes import FormulaRunner, ManualClock
from tests.gpu_worker.encoder_decoders import make_t5, requests, served
from tests.gpu_worker.engine import SETTINGS
from tests.gpu_worker.stage import STEP_SECONDS, generate, make_stage

COST_SECONDS = 50e-6  # of processor time a step; it is some 3 µs
NUM_STEPS = 2_000


def timed_step(times: StepTimes, clock: ManualClock, *milliseconds: float) -> None:
    """A step whose parts take so long."""
    times.begin()
    for part, duration in zip(PARTS, milliseconds, strict=True):
        clock.advance(duration / 1e3)
        times.mark(part)
    times.end()


def test_each_part_is_summed_and_what_lies_between_steps_is_part_of_none() -> None:
    clock = ManualClock()
    times = StepTimes(clock)
    for _ in range(2):
        clock.advance(5.0)
        timed_step(times, clock, 1, 2, 3, 4, 5, 6)
    expected = dict(zip(PARTS, (0.002, 0.004, 0.006, 0.008, 0.010, 0.012), strict=True))
    assert times.totals == pytest.approx(expected)


def test_a_part_may_come_in_pieces() -> None:
    clock = ManualClock()
    times = StepTimes(clock)
    times.begin()
    for part in (PREPARE, FORWARD, PREPARE, FORWARD):
        clock.advance(1.0)
        times.mark(part)
    times.end()
    assert (times.totals[PREPARE], times.totals[FORWARD]) == (2.0, 2.0)


def test_a_plan_of_nothing_is_no_step() -> None:
    clock = ManualClock()
    times = StepTimes(clock)
    times.begin()
    clock.advance(1.0)
    timed_step(times, clock, 1, 0, 0, 0, 0, 0)
    assert times.totals[PLAN] == pytest.approx(0.001)


def test_the_log_is_told_the_medians_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gpu_worker.step_times")
    clock = ManualClock()
    clock.now = 100.0
    times = StepTimes(clock)
    timed_step(times, clock, 1, 1, 1, 1, 1, 1)
    assert len(caplog.messages) == 1, "the first step is told at once"
    for duration in (1, 5, 900):
        timed_step(times, clock, duration, 2, 3, 4, 5, 100)
    assert caplog.messages[1:] == [
        "median ms of 3 steps: plan 5.000, prepare 2.000, forward 3.000, sample 4.000, "
        "wait 5.000, send 100.000"
    ]
    timed_step(times, clock, 1e3 * LOG_SECONDS, 0, 0, 0, 0, 0)
    assert caplog.messages[-1].startswith("median ms of 1 steps: plan 1000.000")


def test_without_debug_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gpu_worker.step_times")
    clock = ManualClock()
    times = StepTimes(clock)
    for _ in range(3):
        timed_step(times, clock, 1, 2, 3, 4, 5, 6)
    assert caplog.messages == []
    assert times._recent == []


def test_a_step_costs_microseconds() -> None:
    times, watch = StepTimes(), StepTimes(time.process_time)
    watch.begin()
    for _ in range(NUM_STEPS):
        times.begin()
        for part in PARTS:
            times.mark(part)
        times.end()
    watch.mark(PLAN)
    watch.end()
    assert watch.totals[PLAN] / NUM_STEPS < COST_SECONDS


def test_the_worker_reports_every_second_of_its_steps() -> None:
    stage = make_stage()
    stage.run(generate("r", max_tokens=5))
    (*_, report) = stage.mailbox.of_type(WorkerReported)
    num_steps = len(stage.runner.plans)
    assert sum(report.part_seconds.values()) == pytest.approx(num_steps * STEP_SECONDS)
    assert list(report.part_seconds) == list(PARTS)


def test_to_say_that_nothing_is_planned_ahead_is_part_of_planning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, scheduler = ManualClock(), make_scheduler()
    times = StepTimes(clock)
    scheduler.add(make_sequence("r", 3, 3))
    monkeypatch.setattr(scheduler, "schedule_ahead", lambda: clock.advance(2.0))
    runner = FormulaRunner(num_blocks=64, block_size=4, max_sequences=4)
    pipeline = Pipeline(scheduler, runner, times, overlaps=True)
    assert pipeline.advance() is None
    assert pipeline.advance() is not None
    times.end()
    assert times.totals == {**dict.fromkeys(PARTS, 0.0), PLAN: 2.0}


def assert_marks_its_parts(runner: CausalLM | EncoderDecoder, plan: StepPlan) -> None:
    """All but what the step loop does itself."""
    runner.times.begin()
    runner.execute(plan)
    runner.times.end()
    marked = {part for part, seconds in runner.times.totals.items() if seconds > 0}
    assert marked == {PREPARE, FORWARD, SAMPLE}


def test_a_decoder_marks_its_parts() -> None:
    loaded = serve(make_model("llama", num_hidden_layers=1), SETTINGS)
    scheduler = make_scheduler(block_size=BLOCK_SIZE)
    scheduler.add(make_sequence("r", 3, 3))
    assert isinstance(loaded.runner, CausalLM)
    assert loaded.runner.times is loaded.times
    assert_marks_its_parts(loaded.runner, scheduler.schedule())


def test_an_encoder_decoder_marks_its_parts() -> None:
    runner, scheduler = served(make_t5("t5"))
    scheduler.add(*requests(1))
    assert_marks_its_parts(runner, scheduler.schedule())
