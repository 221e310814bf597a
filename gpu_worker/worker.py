"""The GPU process: owns the model and the scheduler, and turns Generate into TokensSampled.

It knows no text and no HTTP. Each detokenizer receives one message a step that has something for
it, and acknowledges it; the worker plans no further than `MAX_UNACKNOWLEDGED_STEPS` ahead of any
and never blocks in a send.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gpu_worker.audience import Audience, is_over
from gpu_worker.facts import sampling_defaults
from gpu_worker.hearing import WindowSequence
from gpu_worker.intake import IntakeLimits, to_pooled, to_sequences, to_window
from gpu_worker.lines import Line, Lines
from gpu_worker.loaded import LoadedModel
from gpu_worker.loading import load
from gpu_worker.pipeline import Pipeline
from gpu_worker.pooled_requests import PooledRequests
from gpu_worker.pooling import embedding_facts
from gpu_worker.profiling import profiled
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.reporting import IDLE_INTERVAL_SECONDS, LoadReporter
from gpu_worker.runner import Runner
from gpu_worker.step_times import SEND, StepTimes
from scheduler.outcome import SampledToken
from scheduler.plan import NO_TOKEN
from scheduler.scheduler import Scheduler
from scheduler.sequence import FINISH_REASONS, Sequence, State
from shared.config import WorkerConfig
from shared.errors import ErrorCode, RequestError
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    ConfirmHeld,
    Generate,
    Listen,
    Message,
    Pool,
    RequestFailed,
    StepsAcknowledged,
    SwitchProfiling,
    TokensSampled,
)
from shared.parts import (
    ModelFacts,
    Peer,
    RequestLost,
    RequestStarted,
    SequenceEnded,
    TokenLogprobs,
)

logger = logging.getLogger(__name__)

_NEVER_CAME = "A process of the server died before it had passed the request on."

Order = Generate | Pool | Listen


class Worker:
    """The step loop and its bookkeeping of what the detokenizers have been told."""

    def __init__(
        self,
        mailbox: Mailbox,
        scheduler: Scheduler,
        runner: Runner,
        limits: IntakeLimits,
        *,
        microsleep_seconds: float,
        times: StepTimes | None = None,
        switch_profiling: Callable[[], None] = lambda: None,
        overlaps: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`times` is what the runner marks, if it does; with `overlaps` steps are planned ahead."""
        self.mailbox = mailbox
        self.scheduler = scheduler
        self._times = times or StepTimes()
        self._pipeline = Pipeline(scheduler, runner, self._times, overlaps=overlaps)
        self.reporter = LoadReporter(mailbox, scheduler, self._times)
        self._limits = limits
        self._microsleep_seconds = microsleep_seconds
        self._switch_profiling = switch_profiling
        self._clock = clock
        self._pooled = PooledRequests(mailbox.identity.index, mailbox.identity.epoch, mailbox.send)
        # No detokenizer knows anything of them yet.
        self._unheard: dict[str, Generate | Listen] = {}
        self._audience = Audience()
        self._peers: dict[str, Peer] = mailbox.peers
        self._lines = Lines(self._audience, mailbox.peers)

    def run(self) -> None:
        """Steps until the launcher says stop."""
        while True:
            self._receive()
            if self.mailbox.stop is not None:
                return
            finished = self._pipeline.advance(may_plan_ahead=self._lines.may_plan_ahead)
            if finished is not None:
                self.reporter.count(finished)
                self._send(self._take_vectors(finished.outputs))
                self.mailbox.beat()
                self._times.mark(SEND)
                self._times.end()

    def _receive(self) -> None:
        """Takes what has come; waits when there is nothing to do or a detokenizer is behind."""
        self.reporter.report_if_due(self._clock())
        if self.scheduler.is_idle:
            self.mailbox.beat()
            if self._lines.has_news:
                self._send([])  # no step will follow that could carry them
            self.scheduler.check()  # a leak is found here, when it costs nothing
            self._take(IDLE_INTERVAL_SECONDS)
            self._gather_companions()
        else:
            self._take(0.0)
        while self._lines.is_ahead and self.mailbox.stop is None:
            self.mailbox.beat()  # whoever is behind is watched, too
            self._take(IDLE_INTERVAL_SECONDS)
            self.reporter.report_if_due(self._clock())

    def _gather_companions(self) -> None:
        """Waits a moment for requests that come together, so that they share the first step."""
        deadline = self._clock() + self._microsleep_seconds
        while not self.scheduler.is_idle and (left := deadline - self._clock()) > 0:
            self._take(left)

    def _take(self, timeout_seconds: float) -> None:
        messages = self.mailbox.receive(timeout_seconds)
        if self.mailbox.peers is not self._peers:  # the mailbox replaces the book when it changes
            self._compare_lives()
        for message in messages:
            self._handle(message)

    def _compare_lives(self) -> None:
        """Ends what nobody waits for any more, because a room that had a part in it died."""
        self._peers = self.mailbox.peers
        for request_id in self._audience.gone(self._peers):
            self._abort(Abort(request_id))
        self._lines.compare_lives(self._peers)

    def _handle(self, message: Message) -> None:
        match message:
            case Generate() | Pool() | Listen():
                self._admit(message)
            case Abort():
                self._abort(message)
            case ConfirmHeld():
                self._confirm(message)
            case StepsAcknowledged():
                if message.epoch == self.mailbox.identity.epoch:
                    self._lines.acknowledge(message)
            case SwitchProfiling():
                self._switch_profiling()
            case _:
                unexpected(message)

    def _admit(self, message: Order) -> None:
        route = message.route if isinstance(message, Pool) else message.text.route
        try:
            sequences = _to_sequences(message, self._limits)
        except RequestError as error:
            failed = RequestFailed(message.request_id, error.code, error.message, error.param)
            self.mailbox.send(f"frontend-{route.frontend_id}", failed)
            return
        if self.scheduler.holds(message.request_id):
            logger.warning("ignored a second message for %s", message.request_id)
            return
        if is_over(route, self._peers):
            return  # who waited for it has failed it
        self.scheduler.add(*sequences)
        if not self.scheduler.holds(message.request_id):
            return
        self._audience.join(message.request_id, route)
        if isinstance(message, Pool):
            self._pooled.open(message)
        else:
            self._lines.open(route.detokenizer_id)
            self._unheard[message.request_id] = message

    def _confirm(self, question: ConfirmHeld) -> None:
        """What never came, and must not come any more, is lost.

        So is, in name, what has ended: its caller is told that after the answer's own end, which
        went the same way.
        """
        for request_id in question.request_ids:
            if self.scheduler.holds(request_id):
                continue
            self.scheduler.abort(request_id)
            if question.detokenizer_id is None:
                failed = RequestFailed(request_id, ErrorCode.ENGINE_DEAD, _NEVER_CAME, None)
                self.mailbox.send(f"frontend-{question.frontend_id}", failed)
            else:
                lost = RequestLost(request_id, question.frontend_id)
                self._lines.open(question.detokenizer_id).lost.append(lost)

    def _abort(self, message: Abort) -> None:
        sequences = self.scheduler.abort(message.request_id, message.choice)
        if self._pooled.drop(message.request_id):
            pass  # no detokenizer knows anything of it
        elif message.request_id not in self._unheard:
            for sequence in sequences:
                self._lines.line_of(message.request_id).ended.append(_ended(sequence))
        elif not self.scheduler.holds(message.request_id):
            del self._unheard[message.request_id]
        self._forget_if_ended(message.request_id)

    def _take_vectors(self, outputs: list[SampledToken]) -> list[SampledToken]:
        """Answers requests for vectors, and returns the outputs that are for the detokenizers."""
        for output in outputs:
            if output.sequence.is_pooled and self._pooled.take(output):
                request_id = output.sequence.request_id
                if self.scheduler.holds(request_id):  # the others, where one has failed
                    self.scheduler.abort(request_id)
                self._audience.leave(request_id)
        return [output for output in outputs if not output.sequence.is_pooled]

    def _send(self, outputs: list[SampledToken]) -> None:
        """Sends one step to those detokenizers that it has something for."""
        for line, part in self._lines.split(outputs):
            self._send_part(line, part)

    def _send_part(self, line: Line, outputs: list[SampledToken]) -> None:
        """Sends a detokenizer's tokens, the requests that begin with them, and all ends."""
        tokens = [output for output in outputs if output.token_id != NO_TOKEN]
        over = dict.fromkeys(o.sequence for o in outputs if o.sequence.state is not State.RUNNING)
        ended = [_ended(sequence) for sequence in over]
        message = TokensSampled(
            worker_id=self.mailbox.identity.index,
            epoch=self.mailbox.identity.epoch,
            step=line.num_sent + 1,
            started=tuple(self._started(outputs)),
            request_ids=tuple(output.sequence.request_id for output in tokens),
            choices=tuple(output.sequence.choice for output in tokens),
            seqs=tuple(output.number for output in tokens),
            token_ids=tuple(output.token_id for output in tokens),
            logprobs=_logprobs(tokens),
            ended=(*line.ended, *ended),
            lost=tuple(line.lost),
            alignments=b"".join(s.alignment for s in over if isinstance(s, WindowSequence)),
        )
        if self.mailbox.send(line.room, message):
            line.num_sent += 1
            line.ended, line.lost = [], []
        else:
            self._give_up(line, dict.fromkeys(o.sequence.request_id for o in outputs))
        for end in ended:
            self._forget_if_ended(end.request_id)

    def _give_up(self, line: Line, request_ids: Iterable[str]) -> None:
        """Ends requests of whose answers a part was lost; their callers hear of it this way, too.

        Not at once: where the detokenizer has died, it is its death that ends them.
        """
        for request_id in request_ids:
            line.lost.append(RequestLost(request_id, self._audience.frontend_of(request_id)))
            if self.scheduler.holds(request_id):
                self._abort(Abort(request_id))

    def _forget_if_ended(self, request_id: str) -> None:
        if not self.scheduler.holds(request_id):
            self._audience.leave(request_id)

    def _started(self, outputs: list[SampledToken]) -> Iterator[RequestStarted]:
        """The requests of which their detokenizer hears with these outputs."""
        for sequence in (output.sequence for output in outputs):
            message = self._unheard.pop(sequence.request_id, None)
            if message is not None:
                yield RequestStarted(
                    message.text,
                    message.num_choices if isinstance(message, Generate) else 1,
                    sequence.num_cached,
                    tuple(TokenLogprobs(*score) for score in sequence.take_prompt_scores()),
                )


def _to_sequences(message: Order, limits: IntakeLimits) -> list[Sequence]:
    match message:
        case Pool():
            return to_pooled(message, limits)
        case Listen():
            return [to_window(message, limits)]
        case Generate():
            return to_sequences(message, limits)


def _logprobs(tokens: list[SampledToken]) -> tuple[TokenLogprobs | None, ...]:
    """The column of logprobs; empty where nobody asks for any."""
    scores = [token.score for token in tokens]
    if not any(scores):
        return ()
    return tuple(None if score is None else TokenLogprobs(*score) for score in scores)


def _ended(sequence: Sequence) -> SequenceEnded:
    ended = SequenceEnded(
        sequence.request_id,
        sequence.choice,
        FINISH_REASONS[sequence.state],
        hides_last_token=sequence.state is State.STOPPED,
    )
    if isinstance(sequence, WindowSequence):
        shape = sequence.alignment_shape
        return replace(ended, heard=sequence.heard, alignment_shape=shape)
    return ended


def run(config: WorkerConfig, mailbox: Mailbox) -> None:
    """Loads the model, says that it is ready, and serves until the launcher says stop."""
    loaded = load(config, mailbox.report_stage)
    with profiled(loaded.runner, config) as runner:
        worker = Worker(
            mailbox,
            loaded.scheduler(config),
            IsolatingRunner(runner),
            loaded.limits,
            microsleep_seconds=config.continuous_batching_microsleep,
            times=loaded.times,
            switch_profiling=runner.switch,
            overlaps=loaded.overlaps,
        )
        mailbox.report_ready(_facts(loaded, config))
        worker.run()


def _facts(loaded: LoadedModel, config: WorkerConfig) -> ModelFacts:
    defaults = sampling_defaults(
        config.model.path,
        use_checkpoint=config.generation_config == "auto",
        override=json.loads(config.override_generation_config or "{}"),
    )
    return ModelFacts(
        loaded.max_model_len,
        loaded.vocab_size,
        defaults,
        loaded.details,
        loaded.encoder.max_encoder_len if loaded.encoder else 0,
        embedding_facts(loaded.state_size, config.model.path, loaded.pooling),
        loaded.encoder is not None and loaded.encoder.num_feature_bytes > 0,
    )
