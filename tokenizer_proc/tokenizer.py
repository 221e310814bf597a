"""The tokenizer process: prompts to token ids. No HTTP; of sampling it checks the ids only.

It is given a command only where it has granted credit, so that a stuck tokenizer holds at most
`CREDIT` requests. The detokenizer's copy of the vocabulary is written here, because only
transformers can read every checkpoint's tokenizer files.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.config import TokenizerConfig
from shared.errors import ErrorCode, RequestError
from shared.mailbox import BEAT_SECONDS, Mailbox, unexpected
from shared.messages import (
    Abort,
    CreditGranted,
    Decode,
    Embed,
    Encode,
    Generate,
    Listen,
    Message,
    Pool,
    PromptAccepted,
    RequestFailed,
    SoundRead,
    Tokenize,
    Transcribe,
    WindowRead,
    WindowTaken,
)
from shared.parts import ModelFacts, Route
from shared.vocabulary import vocabulary_path
from tokenizer_proc.embedding import InputEncoder
from tokenizer_proc.encoder_input import JOINED_CONTENTS, has_encoder
from tokenizer_proc.generation import accept
from tokenizer_proc.loading import load_listener, load_tokenizer
from tokenizer_proc.lookup import decoded, encoded
from tokenizer_proc.prompt import PromptEncoder
from tokenizer_proc.thought_marks import ThoughtFormat, find_thoughts
from tokenizer_proc.transcription import Listener, Transcribing
from tokenizer_proc.turns import LongWork, Turns

logger = logging.getLogger(__name__)

CREDIT = 4  # requests that a frontend may have under way here

_WORKER_GONE = RequestError(ErrorCode.ENGINE_DEAD, "The model's process is gone.")
_NOT_TOKENIZED = RequestError(ErrorCode.INTERNAL, "The tokenizer could not handle this request.")

Command = Tokenize | Embed | Transcribe | Encode | Decode


class Tokenizer:
    """Answers every command once: with what was asked for, or with a RequestFailed.

    A Tokenize becomes a PromptAccepted and a Generate, an Embed a PromptAccepted and a Pool, a
    Transcribe a WindowRead and a Listen for each window and then a SoundRead, an Encode Encoded, a
    Decode Decoded.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        encoder: PromptEncoder,
        thoughts: ThoughtFormat | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._encoder = encoder
        self._thoughts = thoughts
        self._granted: set[tuple[str, int]] = set()  # frontend lives that hold credit
        self._early_aborts: set[str] = set()  # aborts in the same delivery as their command
        self._listener = listener
        self._turns = Turns()

    def run(self) -> None:
        """Serves until the launcher says stop."""
        while self._mailbox.stop is None:
            wait_seconds = 0.0 if self._turns else BEAT_SECONDS
            messages = self._mailbox.receive(wait_seconds, self._turns.descriptors)
            self._mailbox.beat()
            self._grant_first_credit()
            self._drop_what_is_over()
            self._early_aborts = {m.request_id for m in messages if isinstance(m, Abort)}
            for message in messages:
                self._handle(message)
                self._mailbox.beat()
            self._take_a_turn()

    def _grant_first_credit(self) -> None:
        for frontend in self._mailbox.ready_rooms("frontend"):
            life = (frontend.room, frontend.epoch)
            if life not in self._granted:
                self._granted.add(life)
                self._grant(frontend.room, CREDIT)

    def _grant(self, room: str, count: int) -> None:
        identity = self._mailbox.identity
        self._mailbox.send(room, CreditGranted(identity.room, identity.epoch, count))

    def _handle(self, message: Message) -> None:
        match message:
            case Tokenize() | Embed() | Transcribe() if self._is_over(message.route):
                pass  # nobody waits for it, and the frontend's next life has credit of its own
            case Embed():
                if not self._serve(message):
                    self._grant(_frontend(message), 1)
            case Transcribe():  # it waits for others most of the time, and holds no credit
                self._serve(message)
                self._grant(_frontend(message), 1)
            case Tokenize() | Encode() | Decode():
                self._serve(message)
                self._grant(_frontend(message), 1)
            case Abort(request_id):  # one that came with its command has been noted
                self._drop(request_id)
            case WindowTaken():
                self._want_more(message)
            case _:
                unexpected(message)

    def _is_over(self, route: Route) -> bool:
        """True if the frontend's next life is known already."""
        frontend = self._mailbox.peers.get(f"frontend-{route.frontend_id}")
        return frontend is not None and frontend.epoch > route.frontend_epoch

    def _serve(self, message: Command) -> bool:
        """Answers the command or says why not; no caller's text ends the process.

        False if nothing more is to be done for it: it has failed, or nobody wants it.
        """
        if message.request_id in self._early_aborts:
            return False
        return self._guarded(message, lambda: self._answer(message))

    def _guarded(self, message: Command, work: Callable[[], None]) -> bool:
        """Does a part of the work for a command; false if that failed, and its caller was told."""
        try:
            work()
        except RequestError as error:
            self._fail(message, error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of the tokenizers library is no Exception
            logger.exception("request %s could not be tokenized", message.request_id)
            self._fail(message, _NOT_TOKENIZED)
        else:
            return True
        return False

    def _answer(self, message: Command) -> None:
        frontend = _frontend(message)
        match message:
            case Tokenize():
                model = self._worker(message.worker_id)
                self._forward(message, *accept(message, self._encoder, model, self._thoughts))
            case Embed():
                model = self._worker(message.worker_id)
                self._turns.add(InputEncoder(message, self._encoder, model))
            case Transcribe():
                self._turns.add(Transcribing(message, self._require_listener()))
            case Encode():
                self._mailbox.send(frontend, encoded(message, self._encoder))
            case Decode():
                self._mailbox.send(frontend, decoded(message, self._encoder))

    def _require_listener(self) -> Listener:
        if self._listener is None:
            sentence = "This model puts no sound into words."
            raise RequestError(ErrorCode.MODEL_NOT_FOUND, sentence, "model")
        return self._listener

    def _take_a_turn(self) -> None:
        """Goes on with one of the long works; the next turn is another's."""
        work = self._turns.take()
        if work is None:
            return
        is_well = self._guarded(work.message, lambda: self._go_on(work))
        if is_well and not work.is_over:
            self._turns.add(work)
        else:
            self._end(work)

    def _go_on(self, work: LongWork) -> None:
        found = work.go_on()
        if found is not None:
            self._forward(work.message, *found)

    def _drop(self, request_id: str) -> None:
        """Ends a long work that nobody wants any more."""
        work = self._turns.remove(request_id)
        if work is None:
            return
        self._end(work)
        if isinstance(work, Transcribing):  # the frontend may not know of the latest yet
            for name in work.latest_windows:
                self._mailbox.send(f"worker-{work.message.worker_id}", Abort(name))

    def _end(self, work: LongWork) -> None:
        work.close()
        if isinstance(work.message, Embed):
            self._grant(_frontend(work.message), 1)

    def _drop_what_is_over(self) -> None:
        for work in self._turns:
            if self._is_over(work.message.route):
                self._turns.remove(work.message.request_id)
                work.close()

    def _want_more(self, taken: WindowTaken) -> None:
        work = self._turns.get(taken.request_id)
        if isinstance(work, Transcribing):
            work.take(taken)

    def _forward(
        self,
        message: Tokenize | Embed | Transcribe,
        to_frontend: PromptAccepted | WindowRead | SoundRead,
        to_worker: Generate | Pool | Listen | None,
    ) -> None:
        """Answers the frontend first: what follows from the worker must find it accepted."""
        self._mailbox.send(_frontend(message), to_frontend)
        if to_worker is None:
            return
        if not self._mailbox.send(f"worker-{message.worker_id}", to_worker):
            raise _WORKER_GONE

    def _fail(self, message: Command, error: RequestError) -> None:
        failed = RequestFailed(message.request_id, error.code, error.message, error.param)
        self._mailbox.send(_frontend(message), failed)

    def _worker(self, worker_id: int) -> ModelFacts:
        """What the worker told of its model; raises RequestError where there is none."""
        worker = self._mailbox.peers.get(f"worker-{worker_id}")
        if worker is None or worker.model is None:
            raise _WORKER_GONE
        return worker.model


def _frontend(command: Command) -> str:
    """The room that wants the answer."""
    match command:
        case Tokenize() | Embed() | Transcribe():
            route = command.route
            return f"frontend-{route.frontend_id}"
        case Encode(frontend_id=frontend_id) | Decode(frontend_id=frontend_id):
            return f"frontend-{frontend_id}"


def publish_vocabulary(tokenizer: Any, path: Path) -> None:
    """Writes the tokenizer whole or not at all, for the detokenizer to read."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(tokenizer.backend_tokenizer.to_str())
    unfinished.replace(path)


def run(config: TokenizerConfig, mailbox: Mailbox) -> None:
    """Loads the tokenizer, says that it is ready, and serves until the launcher says stop."""
    reads_for_encoder = has_encoder(config.model)
    tokenizer = load_tokenizer(config, JOINED_CONTENTS if reads_for_encoder else None)
    listener = load_listener(config, tokenizer)
    publish_vocabulary(tokenizer, vocabulary_path(config.identity.run_directory))
    if listener is not None:
        listener.decoder.wait_started()
    mailbox.report_ready()
    encoder = PromptEncoder(tokenizer, frames_chats=reads_for_encoder)
    Tokenizer(mailbox, encoder, find_thoughts(tokenizer), listener).run()
    if listener is not None:
        listener.decoder.close()
