"""Tells the frontends how loaded the worker is: a few times a second while it works."""

from gpu_worker.pipeline import Finished
from gpu_worker.step_times import StepTimes
from scheduler.plan import NO_TOKEN
from scheduler.scheduler import Scheduler
from shared.mailbox import Mailbox
from shared.messages import WorkerReported

BUSY_INTERVAL_SECONDS = 0.25
IDLE_INTERVAL_SECONDS = 1.0


class LoadReporter:
    """Counts steps and tokens, and sends `WorkerReported` when it is due. Time comes in."""

    def __init__(self, mailbox: Mailbox, scheduler: Scheduler, times: StepTimes) -> None:
        self._mailbox = mailbox
        self._scheduler = scheduler
        self._times = times
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_mixed_steps = 0
        self._was_idle = False
        self._due = 0.0  # monotonic seconds

    def count(self, finished: Finished) -> None:
        """Records a finished step; what it sampled for sequences that had ended counts nowhere."""
        plan = finished.plan
        self._num_steps += 1
        self._num_prompt_tokens += plan.num_tokens - plan.num_decodes
        self._num_generated_tokens += sum(o.token_id != NO_TOKEN for o in finished.outputs)
        self._num_mixed_steps += plan.is_mixed

    def report_if_due(self, now: float) -> None:
        """Sends a report when one is due, and at once when the worker has become idle."""
        is_idle = self._scheduler.is_idle
        if now < self._due and is_idle == self._was_idle:
            return
        self._was_idle = is_idle
        self._due = now + (IDLE_INTERVAL_SECONDS if is_idle else BUSY_INTERVAL_SECONDS)
        report = self._report()
        for frontend in self._mailbox.ready_rooms("frontend"):
            self._mailbox.send(frontend.room, report)

    def _report(self) -> WorkerReported:
        pool, counters = self._scheduler.pool, self._scheduler.counters
        return WorkerReported(
            worker_id=self._mailbox.identity.index,
            epoch=self._mailbox.identity.epoch,
            step=self._num_steps,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=pool.num_blocks,
            num_used_blocks=pool.num_used,
            num_preemptions=counters.num_preemptions,
            num_queried_tokens=counters.num_queried_tokens,
            num_cached_tokens=counters.num_cached_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_mixed_steps=self._num_mixed_steps,
            part_seconds=self._times.totals.copy(),
        )
