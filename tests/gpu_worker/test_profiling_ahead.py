"""Recording where steps are launched ahead: it ends with its last step, whatever befalls that."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_worker import profiling
from gpu_worker.profiling import ProfilingRunner
from gpu_worker.recovery import STICKY_ERRORS
from gpu_worker.runner import Runner
from shared.config import WorkerConfig
from shared.errors import FatalError
from tests.fakes import FormulaRunner
from tests.gpu_worker.test_pipeline import PHASES, SIZES, Bench, Fragile, of_row
from tests.gpu_worker.test_profiling import labels

MANY = 1000  # steps: more than there are


class FakeProfile:
    """Notes when it begins and ends."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def start(self) -> None:
        self._events.append("start")

    def stop(self) -> None:
        self._events.append("stop")

    def export_chrome_trace(self, path: str) -> None:
        Path(path).touch()


class BrokenProfile(FakeProfile):
    """The device is lost to it."""

    def stop(self) -> None:
        raise RuntimeError(f"CUDA error: {STICKY_ERRORS[0]}")


class BusyProfile(FakeProfile):
    """Another tool has the device's counters."""

    def start(self) -> None:
        raise RuntimeError("CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED")


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_log_table", lambda _: None)


class RecordedBench(Bench):
    """A pipeline with overlap whose steps can be recorded, on a device that notes its work."""

    recording: ProfilingRunner

    def __init__(
        self, directory: Path, num_steps: int, wrap: Callable[[Runner], Runner] = lambda r: r
    ) -> None:
        """Its runner is wrapped first, then recorded, and switched on."""

        def recorded(runner: Runner) -> Runner:
            self.recording = ProfilingRunner(wrap(runner), num_steps, str(directory))
            return self.recording

        super().__init__(recorded)
        self.recording.switch()


MakeBench = Callable[..., RecordedBench]


@pytest.fixture
def bench_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Makes one whose profiler is a fake of this kind."""

    def make(
        num_steps: int,
        wrap: Callable[[Runner], Runner] = lambda runner: runner,
        kind: type[FakeProfile] = FakeProfile,
    ) -> RecordedBench:
        bench = RecordedBench(tmp_path, num_steps, wrap)
        monkeypatch.setattr(profiling, "_new_profiler", lambda: kind(bench.stream.events))
        return bench

    return make


def recorded(bench: Bench) -> list[str]:
    """What happened between the beginning and the end of a recording."""
    events = bench.stream.events
    return events[events.index("start") + 1 : events.index("stop")]


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_last_step_is_recorded_until_its_tokens_are_read(
    bench_of: MakeBench, num_steps: int
) -> None:
    bench = bench_of(num_steps)
    bench.add(5, 6, max_tokens=6)
    bench.run()
    assert recorded(bench)[-1] == f"read {num_steps}"
    assert bench.stream.events.count("stop") == 1
    bench.assert_right()


def test_switched_off_it_ends_with_the_step_under_way(bench_of: MakeBench) -> None:
    bench = bench_of(MANY)
    bench.add(5, 6, max_tokens=6)
    for _ in range(3):
        bench.turn()
    bench.recording.switch()
    bench.run()
    assert recorded(bench)[-1] == "read 3"
    assert not bench.recording.is_recording
    bench.assert_right()


def test_switched_off_between_answers_it_ends_at_once(bench_of: MakeBench) -> None:
    bench = bench_of(MANY)
    bench.add(5, 6, max_tokens=3)
    bench.run()
    bench.recording.switch()
    assert recorded(bench)[-1] == "read 3"
    assert not bench.recording.is_recording


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("num_steps", range(1, 6))
def test_it_ends_also_where_steps_break_or_are_given_up(
    bench_of: MakeBench, phase: str, num_steps: int
) -> None:
    error = ValueError("this row breaks the model")
    bench = bench_of(num_steps, lambda runner: Fragile(runner, phase, of_row(1, 2), error))
    bad = [bench.add(n, 20 + n, max_tokens=8) for n in range(3)][1]
    bench.run()
    bench.assert_right(bad)
    assert not bench.recording.is_recording
    assert bench.stream.events.count("stop") == 1


def test_the_trace_has_as_many_named_steps_as_were_asked_for(tmp_path: Path) -> None:
    bench = RecordedBench(tmp_path, 3)
    bench.add(5, 6, max_tokens=9)
    bench.run()
    bench.recording.wait()
    assert bench.recording.trace is not None
    assert labels(bench.recording.trace) == {"prefill": 1, "decode": 2}


# ── a profiler that fails ────────────────────────────────────────────────────────────────────────


def test_a_profiler_that_does_not_begin_harms_no_request(
    bench_of: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_of(MANY, kind=BusyProfile)
    bench.add(5, 6)
    bench.run()
    bench.assert_right()
    assert not bench.recording.is_recording
    assert caplog.text.count("steps cannot be recorded") == 1


def test_a_profiler_that_does_not_end_harms_no_request(
    bench_of: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = bench_of(2, kind=BrokenProfile)
    bench.add(5, 6)
    bench.run()
    bench.assert_right()
    assert bench.recording.trace is None
    assert "the recorded steps are lost" in caplog.text


def test_what_has_ended_the_worker_comes_out_of_the_recording(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(profiling, "_new_profiler", lambda: BrokenProfile([]))
    error = FatalError("the GPU is lost to this process")
    runner = Fragile(FormulaRunner(**SIZES), "launch", lambda _: True, error)
    bench = Bench()
    bench.add(5, 6)
    with (
        pytest.raises(FatalError) as raised,
        profiling.profiled(runner, WorkerConfig(torch_profiling=True)) as recording,
    ):
        recording.execute(bench.scheduler.schedule())
    assert raised.value is error
    assert STICKY_ERRORS[0] in caplog.text, "why there is no trace"
