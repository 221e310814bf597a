"""The detokenizer process: token ids to text, stop strings, usage. It never loads torch.

One message a step comes in, one a step goes out to each frontend that has a stake in it. It decides
stop strings and counts usage; the worker decides end tokens and length.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field

from tokenizers import Tokenizer as Vocabulary

from shared.config import DetokenizerConfig
from shared.errors import ErrorCode, WireError
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    RequestFailed,
    SequenceEnded,
    StepsAcknowledged,
    TextEnded,
    TextProduced,
    TokensSampled,
)
from tokenizer_proc.answer import Answer
from tokenizer_proc.vocabulary import vocabulary_path

logger = logging.getLogger(__name__)


@dataclass
class Outgoing:
    """The rows of one step for one frontend."""

    request_ids: list[str] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    completion_tokens: list[int] = field(default_factory=list)
    ended: list[TextEnded] = field(default_factory=list)

    def add(self, request_id: str, seq: int, text: str, answer: Answer) -> None:
        """Appends one request's row, and its end if this was the last."""
        self.request_ids.append(request_id)
        self.seqs.append(seq)
        self.texts.append(text)
        self.completion_tokens.append(answer.num_tokens)
        if answer.finish_reason is not None:
            self.ended.append(TextEnded(request_id, answer.finish_reason, answer.num_tokens))

    def message(self, step: TokensSampled) -> TextProduced:
        """The step's one message to this frontend."""
        return TextProduced(
            step.worker_id,
            step.epoch,
            tuple(self.request_ids),
            tuple(self.seqs),
            tuple(self.texts),
            tuple(self.completion_tokens),
            tuple(self.ended),
        )


class Detokenizer:
    """Keeps an `Answer` for every request from its first token to its end."""

    def __init__(self, mailbox: Mailbox, vocabulary: Vocabulary) -> None:
        self._mailbox = mailbox
        self._vocabulary = vocabulary
        self._answers: dict[str, Answer] = {}

    @property
    def num_answers(self) -> int:
        """Requests whose text is under way; 0 at rest."""
        return len(self._answers)

    def run(self) -> None:
        """Serves until the launcher says stop."""
        while self._mailbox.stop is None:
            self.serve_once(timeout_seconds=None)

    def serve_once(self, timeout_seconds: float | None) -> None:
        """Handles all that has come and acknowledges the newest step of each worker."""
        newest: dict[int, TokensSampled] = {}
        for message in self._mailbox.receive(timeout_seconds):
            if isinstance(message, TokensSampled):
                self._handle(message)
                newest[message.worker_id] = message
            else:
                unexpected(message)
        for worker_id, step in newest.items():
            acknowledged = StepsAcknowledged(step.epoch, step.step)
            self._mailbox.send(f"worker-{worker_id}", acknowledged)

    def _handle(self, step: TokensSampled) -> None:
        """One step's tokens, then the ends that came without one."""
        for start in step.started:
            self._answers[start.request_id] = Answer(start, self._vocabulary)
        ends = {end.request_id: end for end in step.ended}
        outgoing: defaultdict[int, Outgoing] = defaultdict(Outgoing)
        for request_id, seq, token_id in zip(
            step.request_ids, step.seqs, step.token_ids, strict=True
        ):
            end = ends.pop(request_id, None)
            answer = self._answers.get(request_id)
            if answer is None:
                continue  # it ended here at a stop string; the worker will hear of it
            try:
                text = _next_text(answer, seq, token_id, end)
            except Exception:  # one answer's text must not end the process
                logger.exception("request %s has no text for its token %d", request_id, seq)
                self._fail(request_id, "A part of the answer was lost.")
                self._mailbox.send(f"worker-{step.worker_id}", Abort(request_id))
                continue
            outgoing[answer.frontend_id].add(request_id, seq, text, answer)
            self._forget_if_ended(request_id, answer, end, step.worker_id)
        for end in ends.values():
            self._end_without_token(end)
        for frontend_id, rows in outgoing.items():
            self._mailbox.send(f"frontend-{frontend_id}", rows.message(step))

    def _forget_if_ended(
        self, request_id: str, answer: Answer, end: SequenceEnded | None, worker_id: int
    ) -> None:
        if answer.finish_reason is None:
            return
        del self._answers[request_id]
        if end is None:  # a stop string, of which the worker knows nothing
            self._mailbox.send(f"worker-{worker_id}", Abort(request_id))

    def _end_without_token(self, end: SequenceEnded) -> None:
        if end.request_id not in self._answers:
            return
        if end.finish_reason == "error":
            self._fail(end.request_id, "The model produced no valid probabilities.")
        else:
            del self._answers[end.request_id]

    def _fail(self, request_id: str, reason: str) -> None:
        answer = self._answers.pop(request_id)
        failed = RequestFailed(request_id, ErrorCode.INTERNAL, reason, None)
        self._mailbox.send(f"frontend-{answer.frontend_id}", failed)


def _next_text(answer: Answer, seq: int, token_id: int, end: SequenceEnded | None) -> str:
    if seq != answer.num_tokens:
        raise WireError(f"token {answer.num_tokens} of the answer was lost on the way")
    return answer.add(token_id, end)


def run(config: DetokenizerConfig, mailbox: Mailbox) -> None:
    """Waits for the tokenizer's vocabulary, then serves until the launcher says stop."""
    while mailbox.stop is None and not mailbox.ready_rooms("tokenizer"):
        mailbox.receive(timeout_seconds=None)
    if mailbox.stop is None:
        vocabulary = Vocabulary.from_file(str(vocabulary_path(config.identity.run_directory)))
        mailbox.report_ready()
        Detokenizer(mailbox, vocabulary).run()
