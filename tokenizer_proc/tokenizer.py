"""The tokenizer process: chat messages to token ids. No HTTP; of sampling it checks the ids only.

It is given a `Tokenize` only where it has granted credit, so that a stuck tokenizer holds at most
`CREDIT` requests. The detokenizer's copy of the vocabulary is written here, because only
transformers can read every checkpoint's tokenizer files.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from shared.config import TokenizerConfig
from shared.errors import BadRequest, ErrorCode, RequestError, unloadable
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    CreditGranted,
    Generate,
    Message,
    ModelFacts,
    PromptAccepted,
    RequestFailed,
    TextStart,
    ThoughtMarks,
    Tokenize,
)
from shared.sampling import SamplingParams
from tokenizer_proc.prompt import PromptEncoder, too_long
from tokenizer_proc.thought_marks import ThoughtFormat, find_thoughts
from tokenizer_proc.vocabulary import vocabulary_path

logger = logging.getLogger(__name__)

CREDIT = 4  # requests that a frontend may have under way here
PROMPT_TAIL = 8  # tokens of the prompt that give the answer's first piece of text its context

_WORKER_GONE = RequestError(ErrorCode.ENGINE_DEAD, "The model's process is gone.")
_NOT_TOKENIZED = RequestError(ErrorCode.INTERNAL, "The prompt could not be tokenized.")


class Tokenizer:
    """Turns each Tokenize into a PromptAccepted and a Generate, or into a RequestFailed."""

    def __init__(
        self, mailbox: Mailbox, encoder: PromptEncoder, thoughts: ThoughtFormat | None = None
    ) -> None:
        self._mailbox = mailbox
        self._encoder = encoder
        self._thoughts = thoughts
        self._granted: set[tuple[str, int]] = set()  # frontend lives that hold credit
        self._early_aborts: set[str] = set()  # aborts in the same delivery as their Tokenize

    def run(self) -> None:
        """Serves until the launcher says stop."""
        while self._mailbox.stop is None:
            messages = self._mailbox.receive(timeout_seconds=None)
            self._grant_first_credit()
            self._early_aborts = {m.request_id for m in messages if isinstance(m, Abort)}
            for message in messages:
                self._handle(message)

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
            case Tokenize():
                self._tokenize(message)
                self._grant(f"frontend-{message.frontend_id}", 1)
            case Abort():
                pass  # one that came with its Tokenize has been noted; any other came too late
            case _:
                unexpected(message)

    def _tokenize(self, message: Tokenize) -> None:
        """Answers the frontend first: what follows from the worker must find it accepted."""
        if message.request_id in self._early_aborts:
            return
        frontend = f"frontend-{message.frontend_id}"
        try:
            generate = self._to_generate(message)
        except RequestError as error:
            self._fail(frontend, message.request_id, error)
            return
        except Exception:  # one request's text must not end the process
            logger.exception("request %s could not be tokenized", message.request_id)
            self._fail(frontend, message.request_id, _NOT_TOKENIZED)
            return
        accepted = PromptAccepted(message.request_id, len(generate.prompt_token_ids), None)
        self._mailbox.send(frontend, accepted)
        if not self._mailbox.send(f"worker-{message.worker_id}", generate):
            self._fail(frontend, message.request_id, _WORKER_GONE)

    def _fail(self, frontend: str, request_id: str, error: RequestError) -> None:
        failed = RequestFailed(request_id, error.code, error.message, error.param)
        self._mailbox.send(frontend, failed)

    def _to_generate(self, message: Tokenize) -> Generate:
        most_tokens = self._worker(message.worker_id).max_model_len
        chat = message.prompt.chat
        assert chat is not None
        prompt = self._encoder.encode_chat(
            list(chat.messages),
            template_kwargs=chat.template_kwargs,
            most_tokens=most_tokens,
        )
        room = _room_for_answer(len(prompt), most_tokens)
        max_tokens = min(message.max_tokens or room, room)
        sampling = _fitted(message.sampling, max_tokens, self._encoder.vocab_size)
        text = TextStart(
            request_id=message.request_id,
            frontend_id=message.frontend_id,
            prompt_tail=tuple(prompt[-PROMPT_TAIL:]),
            options=message.text,
            min_tokens=sampling.min_tokens,
            stop_token_ids=sampling.stop_token_ids,
            thoughts=self._thought_marks(message, prompt),
        )
        return Generate(
            request_id=message.request_id,
            prompt_token_ids=tuple(prompt),
            max_tokens=max_tokens,
            sampling=sampling,
            num_choices=message.num_choices,
            cache_salt=message.cache_salt,
            text=text,
        )

    def _thought_marks(self, message: Tokenize, prompt: list[int]) -> ThoughtMarks | None:
        chat = message.prompt.chat
        if self._thoughts is None or chat is None or not message.text.splits_thoughts:
            return None
        return self._thoughts.marks(prompt, chat)

    def _worker(self, worker_id: int) -> ModelFacts:
        """What the worker told of its model; raises RequestError where there is none."""
        worker = self._mailbox.peers.get(f"worker-{worker_id}")
        if worker is None or worker.model is None:
            raise _WORKER_GONE
        return worker.model


def _room_for_answer(num_tokens: int, most_tokens: int) -> int:
    """Tokens that the context leaves, or BadRequest."""
    if num_tokens == 0:
        raise BadRequest("Your messages make an empty prompt.", "messages")
    if num_tokens >= most_tokens:
        raise too_long(most_tokens, str(num_tokens))
    return most_tokens - num_tokens


def _fitted(sampling: SamplingParams, max_tokens: int, vocab_size: int) -> SamplingParams:
    """The settings within the answer's length, or BadRequest for a token that does not exist."""
    named = {
        "logit_bias": [token_id for token_id, _ in sampling.logit_bias],
        "stop_token_ids": sampling.stop_token_ids,
    }
    for param, token_ids in named.items():
        if max(token_ids, default=0) >= vocab_size:
            sentence = f"'{param}' names token {max(token_ids)}; this model has {vocab_size}."
            raise BadRequest(sentence, param)
    return replace(sampling, min_tokens=min(sampling.min_tokens, max_tokens))


def load_tokenizer(name: str, path: str) -> Any:
    """The checkpoint's tokenizer, or FatalError."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise unloadable(name, error) from error


def publish_vocabulary(tokenizer: Any, path: Path) -> None:
    """Writes the tokenizer whole or not at all, for the detokenizer to read."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(tokenizer.backend_tokenizer.to_str())
    unfinished.replace(path)


def run(config: TokenizerConfig, mailbox: Mailbox) -> None:
    """Loads the tokenizer, says that it is ready, and serves until the launcher says stop."""
    tokenizer = load_tokenizer(config.model.hf_model, config.model.path)
    publish_vocabulary(tokenizer, vocabulary_path(config.identity.run_directory))
    mailbox.report_ready()
    Tokenizer(mailbox, PromptEncoder(tokenizer), find_thoughts(tokenizer)).run()
