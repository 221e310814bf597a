"""torch.profiler around steps: where their time goes, for people and for a trace viewer.

Recording is switched on and off while the worker runs. At most so many steps are recorded at a
time, because each takes memory until the report is made: as soon as they are done, when recording
is switched off, or when the worker ends. The trace is written at once; torch makes the table in
Python, event by event, which takes as long as half a minute, and steps go on meanwhile.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gpu_worker.runner import Flight, Runner, launch
from scheduler.plan import StepPlan, StepResult
from shared.config import WorkerConfig

logger = logging.getLogger(__name__)

TABLE_ROWS = 25


class ProfilingRunner:
    """Runs plans on another runner and records up to `num_steps` of them when it is switched on."""

    def __init__(self, runner: Runner, num_steps: int, directory: str = "") -> None:
        self._runner = runner
        self._num_steps = num_steps
        self._directory = directory or tempfile.gettempdir()
        self._num_left = 0  # steps to record; 0: recording is off
        self._profiler: profile | None = None  # from the first step that is recorded
        self._newest: _RecordedFlight | None = None  # what was recorded last, while it is under way
        self._report: threading.Thread | None = None  # the last table
        self.trace: Path | None = None  # the newest, once it is written

    @property
    def is_recording(self) -> bool:
        """True when the next step will be recorded, or the last one is under way."""
        return self._num_left > 0 or self._profiler is not None

    def switch(self) -> None:
        """Records from the next step on; if it does, ends that and reports."""
        if self._report is not None and self._report.is_alive():
            logger.warning("the last table is not ready yet: send SIGUSR2 again after it")
        elif self.is_recording:
            if self._profiler is None:
                logger.info("recording ends, and there was no step")
            self._num_left = 0
            self._close_if_over()
        else:
            self._num_left = self._num_steps
            logger.info("up to %d steps will be recorded; SIGUSR2 ends it", self._num_steps)

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; while steps are recorded, under the name of its kind."""
        profiler = self._begin_step()
        if profiler is None:
            return self._runner.execute(plan)
        try:
            with record_function(kind_of(plan)):
                return self._runner.execute(plan)
        finally:
            self._close_if_over()

    def launch(self, plan: StepPlan) -> Flight:
        """See `LaunchingRunner`; the name of its kind is on what comes before the sampling.

        What is launched while the last of the recorded steps is under way is in the trace, too,
        without a name.
        """
        profiler = self._begin_step()
        if profiler is None:
            return launch(self._runner, plan)
        with record_function(kind_of(plan)):
            flight = launch(self._runner, plan)
        self._newest = _RecordedFlight(flight, self._end_flight)
        return self._newest

    def _begin_step(self) -> profile | None:
        """What records the step that begins, if anything does."""
        if self._num_left == 0:
            # One step may be launched beside the last. If another is, the last was given up.
            is_beside, self._newest = self._newest is not None, None
            if not is_beside:
                self.close()
            return None
        if self._profiler is None:
            self._profiler = self._start()
        self._num_left -= self._profiler is not None
        return self._profiler

    def _start(self) -> profile | None:
        """A profiler that records; without one, which is no fault of the step's, none will."""
        profiler = _new_profiler()
        try:
            profiler.start()
        except Exception:  # another tool may have the device's counters
            logger.warning("steps cannot be recorded", exc_info=True)
            self._num_left = 0
            return None
        return profiler

    def _end_flight(self, flight: "_RecordedFlight") -> None:
        """The flight is over, or broke."""
        if self._newest is flight:
            self._newest = None
        self._close_if_over()

    def _close_if_over(self) -> None:
        """Reports once all steps to record are begun, and none of them is under way."""
        if self._num_left == 0 and self._newest is None:
            self.close()

    def close(self) -> None:
        """Writes the trace and has the table made, if a step was recorded; later steps run bare.

        It raises nothing: neither serving nor what has ended it is to suffer by a report.
        """
        self._num_left, self._newest = 0, None
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        try:
            profiler.stop()  # waits for the device, which may be lost
            self._write(profiler)
        except Exception:
            logger.warning("the recorded steps are lost", exc_info=True)
            return
        self._report = threading.Thread(target=_log_table, args=(profiler,), name="table")
        self._report.start()

    def wait(self) -> None:
        """Waits for the table, if one is being made."""
        if self._report is not None:
            self._report.join()

    def _write(self, profiler: profile) -> None:
        try:
            self.trace = _write_trace(profiler, Path(self._directory).expanduser())
        except OSError as error:  # a trace is not worth the server
            logger.warning("--torch-profiling-directory: no trace was written: %s", error)
        else:
            logger.info("Chrome trace, for https://ui.perfetto.dev: %s", self.trace)


class _RecordedFlight:
    """A flight that says when its results have been read, or that it broke."""

    def __init__(self, flight: Flight, end: Callable[["_RecordedFlight"], None]) -> None:
        self._flight = flight
        self._end = end

    def sample(self, fed: Mapping[int, int]) -> None:
        try:
            self._flight.sample(fed)
        except Exception:
            self._end(self)
            raise

    def result(self) -> StepResult:
        try:
            return self._flight.result()
        finally:
            self._end(self)


@contextmanager
def profiled(runner: Runner, config: WorkerConfig) -> Iterator[ProfilingRunner]:
    """The runner as one that can record, and that reports at the latest here.

    Under `--torch-profiling` it records from its first step on.
    """
    recording = ProfilingRunner(
        runner, config.torch_profiling_steps, config.torch_profiling_directory
    )
    if config.torch_profiling:
        recording.switch()
    try:
        yield recording
    finally:
        recording.close()
        recording.wait()


def kind_of(plan: StepPlan) -> str:
    """The name under which a step is recorded."""
    if plan.is_mixed:
        return "mixed"
    return "decode" if plan.num_decodes else "prefill"


def _new_profiler() -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities)


def _log_table(profiler: profile) -> None:
    device = "device" if ProfilerActivity.CUDA in profiler.activities else "cpu"
    averages = profiler.key_averages()
    table = averages.table(sort_by=f"self_{device}_time_total", row_limit=TABLE_ROWS)
    logger.info("the recorded steps, by time:\n%s", table)


def _write_trace(profiler: profile, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=directory, prefix="steps-", suffix=".json", delete=False
    ) as file:
        profiler.export_chrome_trace(file.name)
    return Path(file.name)
