"""The GPU process: owns the model and the scheduler, and turns Generate into TokensSampled.

It knows no text and no HTTP. One detokenizer receives one message a step and acknowledges it; the
worker plans no further than `MAX_UNACKNOWLEDGED_STEPS` ahead of it and never blocks in a send.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from gpu_worker.intake import IntakeLimits, to_sequence
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import load
from gpu_worker.reporting import IDLE_INTERVAL_SECONDS, LoadReporter
from scheduler.plan import NO_TOKEN, StepPlan, StepResult
from scheduler.scheduler import SampledToken, Scheduler
from scheduler.sequence import FINISH_REASONS, Sequence, State
from shared.config import WorkerConfig
from shared.errors import RequestError
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    Generate,
    Message,
    RequestFailed,
    SequenceEnded,
    StepsAcknowledged,
    TextStart,
    TokensSampled,
)

logger = logging.getLogger(__name__)

DETOKENIZER = "detokenizer-0"
MAX_UNACKNOWLEDGED_STEPS = 64


class Runner(Protocol):
    """Whoever runs the model: a family of models, or a formula in tests."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Computes one step."""


class Worker:
    """The step loop and its bookkeeping of what the detokenizer has been told."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        runner: Runner,
        limits: IntakeLimits,
        *,
        microsleep_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mailbox = mailbox
        self.scheduler = scheduler
        self.runner = runner
        self.reporter = LoadReporter(mailbox, scheduler)
        self._limits = limits
        self._microsleep_seconds = microsleep_seconds
        self._clock = clock
        self._texts: dict[str, TextStart] = {}  # of requests that the detokenizer has not heard of
        self._ended: list[SequenceEnded] = []  # ends to be told with the next message
        self._num_sent = 0
        self._num_acknowledged = 0

    def run(self) -> None:
        """Steps until the launcher says stop."""
        while True:
            self._receive()
            if self.mailbox.stop is not None:
                return
            plan = self.scheduler.schedule()
            if not plan.is_empty:
                result = self.runner.execute(plan)
                outputs = self.scheduler.apply(plan, result)
                self.reporter.count(plan)
                self._send(outputs)

    def _receive(self) -> None:
        """Takes what has come; waits when there is nothing to do or the detokenizer is behind."""
        self.reporter.report_if_due(self._clock())
        if self.scheduler.is_idle:
            if self._ended:
                self._send([])  # no step will follow that could carry them
            self.scheduler.check()  # a leak is found here, when it costs nothing
            self._take(IDLE_INTERVAL_SECONDS)
            self._gather_companions()
        else:
            self._take(0.0)
        while self._is_ahead and self.mailbox.stop is None:
            self._take(IDLE_INTERVAL_SECONDS)
            self.reporter.report_if_due(self._clock())

    @property
    def _is_ahead(self) -> bool:
        return self._num_sent - self._num_acknowledged >= MAX_UNACKNOWLEDGED_STEPS

    def _gather_companions(self) -> None:
        """Waits a moment for requests that come together, so that they share the first step."""
        deadline = self._clock() + self._microsleep_seconds
        while not self.scheduler.is_idle and (left := deadline - self._clock()) > 0:
            self._take(left)

    def _take(self, timeout_seconds: float) -> None:
        for message in self.mailbox.receive(timeout_seconds):
            self._handle(message)

    def _handle(self, message: Message) -> None:
        match message:
            case Generate():
                self._admit(message)
            case Abort():
                self._abort(message.request_id)
            case StepsAcknowledged():
                if message.epoch == self.mailbox.identity.epoch:
                    self._num_acknowledged = max(self._num_acknowledged, message.step)
            case _:
                unexpected(message)

    def _admit(self, message: Generate) -> None:
        try:
            sequence = to_sequence(message, self._limits)
        except RequestError as error:
            failed = RequestFailed(message.request_id, error.code, error.message, error.param)
            self.mailbox.send(f"frontend-{message.text.frontend_id}", failed)
            return
        if self.scheduler.holds(sequence.request_id):
            logger.warning("ignored a second Generate of %s", sequence.request_id)
            return
        self.scheduler.add(sequence)
        if sequence.state is State.WAITING:
            self._texts[sequence.request_id] = message.text

    def _abort(self, request_id: str) -> None:
        sequence = self.scheduler.abort(request_id)
        if sequence is not None and self._texts.pop(request_id, None) is None:
            self._ended.append(_ended(sequence))

    def _send(self, outputs: list[SampledToken]) -> None:
        """Sends one step: its tokens, the requests that begin with it, and all that has ended."""
        tokens = [output for output in outputs if output.token_id != NO_TOKEN]
        started = [self._texts.pop(output.sequence.request_id, None) for output in outputs]
        ended = [_ended(o.sequence) for o in outputs if o.sequence.state is not State.RUNNING]
        self._num_sent += 1
        message = TokensSampled(
            worker_id=self.mailbox.identity.index,
            epoch=self.mailbox.identity.epoch,
            step=self._num_sent,
            started=tuple(text for text in started if text is not None),
            request_ids=tuple(output.sequence.request_id for output in tokens),
            seqs=tuple(output.sequence.num_output_tokens - 1 for output in tokens),
            token_ids=tuple(output.token_id for output in tokens),
            ended=(*self._ended, *ended),
        )
        self._ended = []
        self.mailbox.send(DETOKENIZER, message)


def _ended(sequence: Sequence) -> SequenceEnded:
    return SequenceEnded(
        sequence.request_id,
        FINISH_REASONS[sequence.state],
        hides_last_token=sequence.state is State.STOPPED,
    )


def run(config: WorkerConfig, mailbox: Mailbox) -> None:
    """Loads the model, says that it is ready, and serves until the launcher says stop."""
    loaded = load(config)
    scheduler = Scheduler(
        num_blocks=loaded.num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=config.continuous_batching_batch_size,
        max_tokens_per_step=config.max_num_batched_tokens,
        max_early_aborts=2 * config.max_concurrent,
    )
    worker = Worker(
        mailbox,
        scheduler,
        loaded.runner,
        IntakeLimits(loaded.max_model_len, loaded.vocab_size, loaded.end_token_ids),
        microsleep_seconds=config.continuous_batching_microsleep,
    )
    mailbox.report_ready(loaded.max_model_len)
    worker.run()
