"""torch.profiler around the first steps: where their time goes, for people and for a trace viewer.

Only so many steps are recorded, because every step takes memory until the trace is written. The
report is made as soon as they are done, or when the worker ends before.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gpu_worker.runner import Runner
from scheduler.plan import StepPlan, StepResult
from shared.config import WorkerConfig

logger = logging.getLogger(__name__)

TABLE_ROWS = 25


class ProfilingRunner:
    """Runs plans on another runner and records the first `num_steps` of them."""

    def __init__(self, runner: Runner, num_steps: int, directory: str = "") -> None:
        self._runner = runner
        self._num_left = num_steps
        self._directory = directory or tempfile.gettempdir()
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler: profile | None = profile(activities=activities)
        self._is_recording = False
        self.trace: Path | None = None  # once it is written

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step; as long as steps are recorded, under the name of its kind."""
        if self._profiler is None:
            return self._runner.execute(plan)
        if not self._is_recording:
            self._profiler.start()
            self._is_recording = True
        with record_function(kind_of(plan)):
            result = self._runner.execute(plan)
        self._num_left -= 1
        if self._num_left == 0:
            self.close()
        return result

    def close(self) -> None:
        """Logs the table and writes the trace, unless that has been done; later steps run bare."""
        profiler, self._profiler = self._profiler, None
        if profiler is None or not self._is_recording:
            return
        profiler.stop()
        logger.info("the recorded steps, by time:\n%s", _table(profiler))
        try:
            self.trace = _write_trace(profiler, Path(self._directory).expanduser())
        except OSError as error:  # a trace is not worth the server
            logger.warning("--torch-profiling-directory: no trace was written: %s", error)
        else:
            logger.info("Chrome trace, for https://ui.perfetto.dev: %s", self.trace)


@contextmanager
def profiled(runner: Runner, config: WorkerConfig) -> Iterator[Runner]:
    """The runner, under `--torch-profiling` as one that records and reports at the latest here."""
    if not config.torch_profiling:
        yield runner
        return
    recording = ProfilingRunner(
        runner, config.torch_profiling_steps, config.torch_profiling_directory
    )
    try:
        yield recording
    finally:
        recording.close()


def kind_of(plan: StepPlan) -> str:
    """The name under which a step is recorded."""
    if plan.is_mixed:
        return "mixed"
    return "decode" if plan.num_decodes else "prefill"


def _table(profiler: profile) -> str:
    device = "device" if ProfilerActivity.CUDA in profiler.activities else "cpu"
    averages = profiler.key_averages()
    return str(averages.table(sort_by=f"self_{device}_time_total", row_limit=TABLE_ROWS))


def _write_trace(profiler: profile, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=directory, prefix="steps-", suffix=".json", delete=False
    ) as file:
        profiler.export_chrome_trace(file.name)
    return Path(file.name)
