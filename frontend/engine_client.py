"""Between the HTTP handlers and the rooms: admits, sends to tokenizers, hands events back.

Runs in the event loop and never waits. It knows no HTTP and no sockets, only the mailbox.
"""

import functools
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import assert_never

from frontend.dispatch import Dispatch, TokenizerCommand
from frontend.events import Event, TextFound, TokensFound
from frontend.generation import Generation
from frontend.health import Health, Problem
from frontend.ledger import Abandoned, Entry, Ledger, Life
from frontend.meter import Meter
from frontend.metrics import Metrics
from frontend.submission import Lookup, Submission
from shared.errors import ErrorCode, RequestError, WireError
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    AddressBook,
    CreditGranted,
    Decode,
    Decoded,
    Encode,
    Encoded,
    Generate,
    Message,
    ModelFacts,
    Peer,
    Prompt,
    PromptAccepted,
    RequestFailed,
    RoomReady,
    RoomStarted,
    StepsAcknowledged,
    Stop,
    TextProduced,
    Tokenize,
    TokensSampled,
    WorkerReported,
)
from shared.sampling import NUM_SEEDS

logger = logging.getLogger(__name__)


class EngineClient:
    """Owns every open request from admission to its outcome."""

    def __init__(
        self,
        mailbox: Mailbox,
        metrics: Metrics,
        health: Health,
        *,
        max_concurrent: int,
        request_timeout_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._mailbox = mailbox
        self._metrics = metrics
        self._health = health
        self._max_concurrent = max_concurrent
        self._request_timeout_seconds = request_timeout_seconds
        self._clock = clock
        self._ledger = Ledger()
        self._dispatch = Dispatch()
        self._peers: dict[str, Peer] = {}
        self._lives: set[Life] = set()
        metrics.open_requests.set_function(lambda: len(self._ledger))

    # ── for the handlers ─────────────────────────────────────────────────────────────────────────

    def submit(self, wanted: Submission) -> Generation:
        """Admits a request and starts it, or raises RequestError; use the result in a `with`."""
        self._refuse_or_admit(wanted.total_choices)
        name = f"{wanted.id_prefix}-{uuid.uuid4().hex}"
        ids = _numbered(name, len(wanted.prompts))
        generation = Generation(
            name,
            lambda: self._release(ids),
            num_prompts=len(ids),
            num_choices=wanted.num_choices,
        )
        worker = self._ready_life("worker")
        for number, (request_id, prompt) in enumerate(zip(ids, wanted.prompts, strict=True)):
            sink = self._metered(request_id, functools.partial(generation.push, prompt=number))
            self._ledger.open(self._entry(request_id, sink, worker, wanted.num_choices))
            self._dispatch.add(self._tokenize(request_id, worker, prompt, number, wanted))
        self._send_waiting()
        return generation

    def look_up(self, wanted: Lookup) -> Generation:
        """Admits a request that a tokenizer alone answers, or raises RequestError."""
        self._refuse_or_admit(1)
        name = f"tok-{uuid.uuid4().hex}"
        generation = Generation(name, lambda: self._release((name,)))
        self._ledger.open(self._entry(name, generation.push, None, 1))
        self._dispatch.add(self._lookup(name, wanted))
        self._send_waiting()
        return generation

    def engine_problem(self) -> Problem | None:
        """Why the rooms behind cannot answer, if they cannot: what `/health` says."""
        return self._health.problem(self._clock())

    def readiness_problem(self) -> Problem | None:
        """Why a new request would not do well, if so: what `/ready` says."""
        return self.engine_problem() or self._admission_problem()

    def model(self) -> ModelFacts | None:
        """What a worker has told of its model, once it has loaded it."""
        models = [peer.model for peer in self._mailbox.ready_rooms("worker")]
        return models[0] if models else None

    # ── for the event loop ───────────────────────────────────────────────────────────────────────

    def receive(self) -> None:
        """Takes all that has arrived, then notices deaths and the order to stop."""
        for message in self._mailbox.receive(0.0):
            self._handle(message)
        self._compare_lives()
        self._send_waiting()
        stop = self._mailbox.stop
        if stop is not None:
            self._let_go(self._ledger.fail_all(RequestError(stop.code, stop.reason)))

    def sweep(self) -> None:
        """Ends what is past its deadline; called about once a second."""
        self.receive()
        self._let_go(self._ledger.expire(self._clock()))

    # ── admission and dispatch ───────────────────────────────────────────────────────────────────

    def _admission_problem(self, num_choices: int = 1) -> Problem | None:
        if self._mailbox.stop is not None:
            error = RequestError(ErrorCode.SHUTTING_DOWN, "The server is shutting down.")
            return Problem("stopping", error)
        if self._ledger.num_choices + num_choices > self._max_concurrent:
            sentence = (
                f"The server makes at most {self._max_concurrent} answers at a time and has"
                f" {self._ledger.num_choices} under way; try again soon."
            )
            return Problem("full", RequestError(ErrorCode.QUEUE_FULL, sentence))
        return self._health.missing()

    def _refuse_or_admit(self, num_choices: int) -> None:
        problem = self._admission_problem(num_choices)
        if problem is not None:
            self._metrics.refused(problem.error.code).inc()
            raise problem.error

    def _metered(self, request_id: str, sink: Callable[[Event], None]) -> Callable[[Event], None]:
        meter = Meter(self._metrics.requests, request_id, self._clock())

        def metered(event: Event) -> None:
            meter.observe(event, self._clock())
            sink(event)

        return metered

    def _entry(
        self, request_id: str, sink: Callable[[Event], None], worker: Life | None, choices: int
    ) -> Entry:
        return Entry(
            request_id=request_id,
            sink=sink,
            deadline=self._clock() + self._request_timeout_seconds,
            worker=worker,
            detokenizer=None if worker is None else self._ready_life("detokenizer"),
            num_choices=choices,
        )

    def _tokenize(
        self, request_id: str, worker: Life, prompt: Prompt, number: int, wanted: Submission
    ) -> Tokenize:
        seed = (wanted.sampling.seed + number * wanted.num_choices) % NUM_SEEDS
        return Tokenize(
            request_id=request_id,
            frontend_id=self._mailbox.identity.index,
            worker_id=int(worker.room.rpartition("-")[2]),
            prompt=prompt,
            max_tokens=wanted.max_tokens,
            is_strict=wanted.is_strict,
            echo=wanted.echo,
            text=wanted.text,
            sampling=replace(wanted.sampling, seed=seed),
            num_choices=wanted.num_choices,
            cache_salt=wanted.cache_salt,
        )

    def _lookup(self, request_id: str, wanted: Lookup) -> Encode | Decode:
        frontend_id = self._mailbox.identity.index
        if wanted.prompt is None:
            return Decode(request_id, frontend_id, wanted.token_ids)
        return Encode(request_id, frontend_id, wanted.prompt, wanted.wants_strings)

    def _ready_life(self, kind: str) -> Life:
        peer = self._mailbox.ready_rooms(kind)[0]
        return Life(peer.room, peer.epoch)

    def _send_waiting(self) -> None:
        while (taken := self._dispatch.take(self._lives)) is not None:
            tokenizer, command = taken
            self._ledger.start_tokenising(command.request_id, tokenizer)
            error = self._send_prompt(tokenizer, command)
            if error is not None:
                self._ledger.fail(command.request_id, error)

    def _send_prompt(self, tokenizer: Life, command: TokenizerCommand) -> RequestError | None:
        """Why the prompt could not be sent, if so."""
        try:
            is_sent = self._mailbox.send(tokenizer.room, command)
        except WireError as error:
            logger.error("%s cannot be sent", command.request_id, exc_info=error)  # noqa: TRY400
            self._dispatch.grant(tokenizer, 1)  # nothing arrived that would give the credit back
            return RequestError(ErrorCode.INTERNAL, "The server could not pass the request on.")
        return None if is_sent else _engine_dead(tokenizer.room)

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────

    def _handle(self, message: Message) -> None:
        match message:
            case TextProduced():
                self._let_go(self._ledger.add_text(message))
            case PromptAccepted():
                self._let_go(self._ledger.accept(message))
            case Encoded(request_id, token_ids, strings):
                self._ledger.answer_lookup(request_id, TokensFound(token_ids, strings))
            case Decoded(request_id, text):
                self._ledger.answer_lookup(request_id, TextFound(text))
            case RequestFailed():
                error = RequestError(message.code, message.message, message.param)
                self._ledger.fail(message.request_id, error)
                self._dispatch.remove(message.request_id)
            case CreditGranted():
                self._dispatch.grant(Life(message.room, message.epoch), message.count)
            case WorkerReported():
                self._metrics.worker.show(message)
                self._health.note_report(message, self._clock())
            case (
                RoomStarted() | RoomReady() | AddressBook() | Stop() | Tokenize() | Encode()
                | Decode() | Generate() | Abort() | TokensSampled() | StepsAcknowledged()
            ):  # fmt: skip
                unexpected(message)
            case _:
                assert_never(message)

    def _compare_lives(self) -> None:
        """Fails what the dead owned; a room with another epoch is another life."""
        peers = self._mailbox.peers
        if peers is self._peers:  # the mailbox replaces the book when it changes
            return
        self._peers = peers
        self._health.note_peers(peers, self._clock())
        lives = {Life(peer.room, peer.epoch) for peer in peers.values()}
        for life in self._lives - lives:
            self._bury(life)
        self._lives = lives

    def _bury(self, life: Life) -> None:
        logger.warning("%s (epoch %d) is gone", life.room, life.epoch)
        self._dispatch.forget(life)
        if life.room.startswith("worker-"):
            self._metrics.worker.show_none()
        self._let_go(self._ledger.fail_owned_by(life, _engine_dead(life.room)))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    def _release(self, request_ids: Iterable[str]) -> None:
        """The consumer has gone; whatever still runs for it is aborted."""
        for request_id in request_ids:
            self._let_go(self._ledger.abort(request_id))

    def _let_go(self, orphans: Iterable[Abandoned]) -> None:
        for orphan in orphans:
            self._dispatch.remove(orphan.request_id)
            for room in orphan.rooms:
                self._mailbox.send(room, Abort(orphan.request_id))


def _numbered(name: str, count: int) -> tuple[str, ...]:
    """A name for each prompt of a request; with one prompt, the request's own."""
    return (name,) if count == 1 else tuple(f"{name}-{number}" for number in range(count))


def _engine_dead(room: str) -> RequestError:
    return RequestError(ErrorCode.ENGINE_DEAD, f"{room} died or cannot be reached.")
