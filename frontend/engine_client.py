"""Between the HTTP handlers and the rooms: admits, sends to tokenizers, hands events back.

Runs in the event loop and never waits. It knows no HTTP and no sockets, only the mailbox.
"""

import functools
import logging
import math
import uuid
from collections.abc import Callable, Iterable
from typing import assert_never

from frontend import commands
from frontend.admission import Admission, Limits, Waiting
from frontend.dispatch import Dispatch, TokenizerCommand
from frontend.door import Door
from frontend.entries import Entries, numbered
from frontend.entry import Abandoned
from frontend.events import TextFound, TokensFound, VectorsFound
from frontend.generation import Generation
from frontend.health import Health, Problem
from frontend.ledger import Ledger
from frontend.life import Life
from frontend.metrics import Metrics
from frontend.occupancy import Occupancy
from frontend.quarantine import Quarantine, digests_of
from frontend.submission import Embedding, Lookup, Wanted
from frontend.warm_up import WarmUp
from shared.errors import ErrorCode, RequestError, WireError
from shared.mailbox import LAUNCHER, Mailbox, unexpected
from shared.messages import (
    Abort,
    AddressBook,
    ConfirmHeld,
    CreditGranted,
    Decode,
    Decoded,
    Drained,
    Embed,
    Encode,
    Encoded,
    Generate,
    Listen,
    Message,
    PipelineWarm,
    PlacesFreed,
    Pool,
    Pooled,
    PromptAccepted,
    RequestFailed,
    RequestsSuspected,
    RoomGetsOn,
    RoomReady,
    RoomStarted,
    SoundRead,
    StageReached,
    StepsAcknowledged,
    Stop,
    SwitchProfiling,
    TextProduced,
    Tokenize,
    TokensSampled,
    Transcribe,
    WindowRead,
    WindowTaken,
    WorkerReported,
)  # fmt: skip
from shared.parts import ModelFacts, Peer
from shared.windows import sound_of

logger = logging.getLogger(__name__)


class EngineClient:
    """Owns every open request from admission to its outcome."""

    def __init__(
        self,
        mailbox: Mailbox,
        metrics: Metrics,
        health: Health,
        limits: Limits,
        occupancy: Occupancy,
        clock: Callable[[], float],
    ) -> None:
        self._mailbox = mailbox
        self._metrics = metrics
        self._health = health
        self._limits = limits
        self._clock = clock
        self._ledger = Ledger()
        self._occupancy = occupancy
        self._admission = Admission(self._ledger, limits, occupancy)
        self._entries = Entries(mailbox, self._ledger, metrics, limits, clock)
        self._door = Door(mailbox, health, self._ledger, self._admission, occupancy, limits)
        self._dispatch = Dispatch()
        self._quarantine = Quarantine()
        self._warm_up = WarmUp(lambda epochs: mailbox.send(LAUNCHER, PipelineWarm(epochs)))
        self._detokenizer_turn = mailbox.identity.index  # each frontend begins with another
        self._peers: dict[str, Peer] = {}
        self._lives: set[Life] = set()
        metrics.open_requests.set_function(lambda: self._admission.num_open)
        metrics.queued_answers.set_function(lambda: self._admission.num_queued)

    # ── for the handlers ─────────────────────────────────────────────────────────────────────────

    def check_door(self) -> None:
        """Raises RequestError where even one more answer would be refused."""
        self._refuse(self._door.answers_problem(1))

    def check_lookups(self) -> None:
        """Raises RequestError where one more lookup would be refused."""
        self._refuse(self._door.lookup_problem())

    def submit(self, wanted: Wanted, caller_id: str = "") -> Generation:
        """Starts a request or lets it wait, or raises RequestError; use the result in a `with`.

        `caller_id` is how the caller knows the request; the log names it.
        """
        self._refuse(self._door.answers_problem(wanted.total_choices))
        if isinstance(wanted, Embedding):
            self._refuse(self._door.embedding_problem())
        digests = digests_of(wanted)
        self._quarantine.check(digests, self._clock())
        name = f"{wanted.id_prefix}-{uuid.uuid4().hex}"
        ids = numbered(name, len(digests))
        generation = Generation(
            name,
            lambda: self._release(ids),
            num_prompts=len(ids),
            num_choices=wanted.num_choices,
        )
        for number, request_id in enumerate(ids):
            sink = functools.partial(generation.push, prompt=number)
            entry = self._entries.request(request_id, sink, wanted, digests[number], caller_id)
            self._ledger.open(entry)
        self._admission.join(Waiting(ids, wanted, since=self._clock()))
        self._go_on()
        return generation

    @property
    def is_draining(self) -> bool:
        """True once nobody is let in any more."""
        return self._mailbox.is_draining

    @property
    def is_empty(self) -> bool:
        """True when no request is open."""
        return not len(self._ledger)

    def look_up(self, wanted: Lookup) -> Generation:
        """Starts a request that a tokenizer alone answers, or raises RequestError.

        It takes no place, because it takes no time of the model; there is a limit all the same.
        """
        self.check_lookups()
        name = f"tok-{uuid.uuid4().hex}"
        generation = Generation(name, lambda: self._release((name,)))
        self._ledger.open(self._entries.lookup(name, generation.push))
        self._ledger.admit(name, None, None)
        self._dispatch.add(commands.look_up(name, wanted, self._mailbox.identity.index))
        self._go_on()
        return generation

    def engine_problem(self) -> Problem | None:
        """Why the rooms behind cannot answer, if they cannot: what `/health` says."""
        return self._health.problem(self._clock())

    def readiness_problem(self) -> Problem | None:
        """Why a new request would not do well, if so: what `/ready` says."""
        return self.engine_problem() or self._door.answers_problem(1)

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
        self._warm_up.check()
        self._go_on()
        stop = self._mailbox.stop
        if stop is not None:
            self._let_go(self._ledger.fail_all(RequestError(stop.code, stop.reason)))

    def sweep(self) -> None:
        """Ends what is past its deadline; called about once a second."""
        self.receive()
        self._warm_up_if_due()
        self._let_go(self._ledger.expire(self._clock()))
        while (late := self._admission.take_late(self._clock())) is not None:
            self._turn_away(*late)
        self._go_on()
        self._metrics.publish()

    # ── admission and dispatch ───────────────────────────────────────────────────────────────────

    def _refuse(self, problem: Problem | None) -> None:
        if problem is not None:
            self._metrics.refused(problem.error.code).inc()
            raise problem.error

    def _turn_away(self, late: Waiting, error: RequestError) -> None:
        self._metrics.refused(error.code).inc()
        for request_id in late.request_ids:
            self._ledger.fail(request_id, error)

    def _go_on(self) -> None:
        """Gives free places to those who wait, and prompts to tokenizers with credit."""
        now = self._clock()
        self._admission.observe(now)
        while self._health.missing() is None and (first := self._admission.take(now)) is not None:
            self._start(first)
        frontend_id = self._admission.show(now)
        if frontend_id is not None:
            self._mailbox.send(f"frontend-{frontend_id}", PlacesFreed())
        self._send_waiting()

    def _start(self, waiting: Waiting) -> None:
        self._metrics.queue_time.observe(self._clock() - waiting.since)
        wanted, worker = waiting.wanted, self._ready_lives("worker")[0]
        first_token_deadline = math.inf
        if not isinstance(wanted, Embedding):
            first_token_deadline = self._clock() + self._limits.first_token_timeout_seconds
        for number, request_id in enumerate(waiting.request_ids):
            detokenizer = self._next_detokenizer()
            reader = None if isinstance(wanted, Embedding) else detokenizer
            if self._ledger.admit(request_id, worker, reader, first_token_deadline):
                route = commands.route(self._mailbox.identity, detokenizer)
                self._dispatch.add(commands.command(request_id, wanted, number, route, worker))

    def _next_detokenizer(self) -> Life:
        """In turn: all answers of a request go through one, and its whole text."""
        self._detokenizer_turn += 1
        ready = self._ready_lives("detokenizer")
        return ready[self._detokenizer_turn % len(ready)]

    def _ready_lives(self, kind: str) -> list[Life]:
        return [Life(peer.room, peer.epoch) for peer in self._mailbox.ready_rooms(kind)]

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

    # ── warm-up ──────────────────────────────────────────────────────────────────────────────────

    def _warm_up_if_due(self) -> None:
        """Lets one token come through rooms that none has come through yet; they let callers in."""
        if not self._health.is_complete or self.is_draining:
            return
        (worker, *_), detokenizers = map(self._ready_lives, ("worker", "detokenizer"))
        facts = self.model()
        hears = facts is not None and facts.hears
        is_warm = self._mailbox.is_warm
        for request_id, detokenizer in self._warm_up.due(worker, detokenizers, is_warm=is_warm):
            sink = self._warm_up.sink(worker, detokenizer)
            self._ledger.open(self._entries.warm_up(request_id, sink, hears=hears))
            self._ledger.admit(request_id, worker, detokenizer)
            route = commands.route(self._mailbox.identity, detokenizer)
            self._dispatch.add(commands.warm_up(request_id, route, worker, hears=hears))

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────

    def _handle(self, message: Message) -> None:
        match message:
            case TextProduced():
                self._let_go(self._ledger.add_text(message))
            case PromptAccepted():
                self._let_go(self._ledger.accept(message))
            case Encoded() | Decoded() | Pooled():
                self._answer_at_once(message)
            case WindowRead() | SoundRead():
                self._let_go(self._ledger.read_sound(message))
            case RequestFailed():
                error = RequestError(message.code, message.message, message.param)
                request_id, _ = sound_of(message.request_id)
                self._let_go(self._ledger.fail(request_id, error))
                self._dispatch.remove(request_id)
            case CreditGranted():
                self._dispatch.grant(Life(message.room, message.epoch), message.count)
            case WorkerReported():
                self._metrics.worker.show(message, self._clock())
                self._health.note_report(message, self._clock())
            case RequestsSuspected() | PlacesFreed():
                self._hear_frontend(message)
            case (
                RoomStarted() | StageReached() | RoomReady() | RoomGetsOn() | AddressBook()
                | PipelineWarm() | Drained() | Stop() | Tokenize() | Embed() | Encode() | Decode()
                | Transcribe() | WindowTaken() | Generate() | Pool() | Listen() | Abort()
                | ConfirmHeld() | TokensSampled() | StepsAcknowledged() | SwitchProfiling()
            ):  # fmt: skip
                unexpected(message)
            case _:
                assert_never(message)

    def _hear_frontend(self, message: RequestsSuspected | PlacesFreed) -> None:
        match message:
            case RequestsSuspected(room, epoch, digests):
                octets = [bytes.fromhex(digest) for digest in digests]
                self._quarantine.note_death(Life(room, epoch), octets, self._clock())
            case PlacesFreed():
                pass  # whatever has come, `_go_on` follows

    def _answer_at_once(self, message: Encoded | Decoded | Pooled) -> None:
        match message:
            case Encoded(request_id, token_ids, strings):
                self._ledger.answer_lookup(request_id, TokensFound(token_ids, strings))
            case Decoded(request_id, text):
                self._ledger.answer_lookup(request_id, TextFound(text))
            case Pooled(request_id, worker_id, epoch, vectors):
                worker = Life(f"worker-{worker_id}", epoch)
                self._let_go(self._ledger.add_vectors(request_id, worker, VectorsFound(vectors)))

    def _compare_lives(self) -> None:
        """Fails what the dead owned; a room with another epoch is another life."""
        peers = self._mailbox.peers
        if peers is self._peers:  # the mailbox replaces the book when it changes
            return
        self._peers = peers
        self._health.note_peers(peers, self._clock(), is_warm=self._mailbox.is_warm)
        lives = {Life(peer.room, peer.epoch) for peer in peers.values()}
        for life in self._lives - lives:
            self._bury(life)
        for life in lives - self._lives:
            if life.room.startswith("frontend-"):  # one before it may have been in no book of ours
                self._occupancy.note_over(life.number, life.epoch - 1)
        self._lives = lives
        self._warm_up_if_due()

    def _bury(self, life: Life) -> None:
        logger.debug("%s (epoch %d) is gone", life.room, life.epoch)  # the launcher tells why
        self._dispatch.forget(life)
        if life.room.startswith("worker-"):
            self._metrics.worker.show_none(self._clock())
        elif life.room.startswith("frontend-"):
            self._occupancy.note_over(life.number, life.epoch)
        self._suspect(life)
        self._let_go(self._ledger.fail_owned_by(life, _engine_dead(life.room)))
        if life.room.startswith("tokenizer-"):
            self._confirm_what_it_passed_on(life)

    def _suspect(self, life: Life) -> None:
        """Notes what the dead was working on, here and in the other frontends."""
        digests = self._ledger.digests_in(life)
        self._quarantine.note_death(life, digests, self._clock())
        if digests:
            suspected = RequestsSuspected(life.room, life.epoch, tuple(d.hex() for d in digests))
            for peer in self._mailbox.ready_rooms("frontend"):
                if peer.room != self._mailbox.identity.room:
                    self._mailbox.send(peer.room, suspected)

    def _confirm_what_it_passed_on(self, tokenizer: Life) -> None:
        """Its last words to the worker may be lost; the worker says which."""
        for (worker, detokenizer), request_ids in self._ledger.silent_from(tokenizer).items():
            question = ConfirmHeld(
                self._mailbox.identity.index,
                detokenizer.number if detokenizer is not None else None,
                tuple(request_ids),
            )
            self._mailbox.send(worker.room, question)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────

    def _release(self, request_ids: Iterable[str]) -> None:
        """The consumer has gone; whatever still runs for it is aborted."""
        for request_id in request_ids:
            self._let_go(self._ledger.abort(request_id))
        self._go_on()

    def _let_go(self, orphans: Iterable[Abandoned]) -> None:
        for orphan in orphans:
            self._admission.remove(orphan.request_id)
            self._dispatch.remove(orphan.request_id)
            for room in orphan.rooms:
                self._mailbox.send(room, Abort(orphan.request_id))


def _engine_dead(room: str) -> RequestError:
    return RequestError(ErrorCode.ENGINE_DEAD, f"{room} died or cannot be reached.")
