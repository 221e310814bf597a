"""The detokenizer process: token ids to text, stop strings, usage. It never loads torch.

One message a step comes in, one a step goes out to each frontend that has a stake in it. It decides
stop strings and counts usage; the worker decides end tokens and length.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby

from tokenizers import Tokenizer as Vocabulary

from shared.config import DetokenizerConfig
from shared.errors import ErrorCode
from shared.mailbox import Mailbox, unexpected
from shared.messages import (
    Abort,
    RequestFailed,
    SequenceEnded,
    StepsAcknowledged,
    TextEnded,
    TextProduced,
    TextStart,
    TokensSampled,
)
from tokenizer_proc.incremental import IncrementalDetokenizer
from tokenizer_proc.stopping import StopMatcher
from tokenizer_proc.vocabulary import vocabulary_path

logger = logging.getLogger(__name__)


class Answer:
    """The text of one request so far: what is certain goes out, the rest is held back."""

    def __init__(self, start: TextStart, vocabulary: Vocabulary) -> None:
        self.frontend_id = start.frontend_id
        self.num_tokens = 0
        self.num_events = 0
        self._detokenizer = IncrementalDetokenizer(vocabulary, start.prompt_tail)
        self._stops = StopMatcher(start.stop)

    @property
    def is_stopped(self) -> bool:
        """True once a stop string has matched; nothing after it counts."""
        return self._stops.matched is not None

    def add(self, token_id: int, *, is_shown: bool) -> str:
        """Counts one token and returns the text that has become certain with it."""
        self.num_tokens += 1
        return self._stops.add(self._detokenizer.add(token_id)) if is_shown else ""

    def finish(self) -> str:
        """Returns what was held back, now that no token follows."""
        text = self._stops.add(self._detokenizer.flush())
        return text if self.is_stopped else text + self._stops.flush()


@dataclass
class Outgoing:
    """The rows of one step for one frontend."""

    request_ids: list[str] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    completion_tokens: list[int] = field(default_factory=list)
    ended: list[TextEnded] = field(default_factory=list)

    def add(self, request_id: str, answer: Answer, text: str) -> None:
        """Appends one request's row and counts the event."""
        self.request_ids.append(request_id)
        self.seqs.append(answer.num_events)
        self.texts.append(text)
        self.completion_tokens.append(answer.num_tokens)
        answer.num_events += 1

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
        steps = []
        for message in self._mailbox.receive(timeout_seconds):
            if isinstance(message, TokensSampled):
                self._handle(message)
                steps.append(message)
            else:
                unexpected(message)
        for worker_id, group in groupby(steps, key=lambda step: step.worker_id):
            newest = list(group)[-1]
            acknowledged = StepsAcknowledged(newest.epoch, newest.step)
            self._mailbox.send(f"worker-{worker_id}", acknowledged)

    def _handle(self, step: TokensSampled) -> None:
        outgoing: defaultdict[int, Outgoing] = defaultdict(Outgoing)
        for start in step.started:
            self._answers[start.request_id] = Answer(start, self._vocabulary)
        ended = {end.request_id: end for end in step.ended}
        for row in zip(step.request_ids, step.seqs, step.token_ids, strict=True):
            self._add_token(*row, ended.pop(row[0], None), outgoing, step.worker_id)
        for end in ended.values():
            self._end_without_token(end)
        for frontend_id, rows in outgoing.items():
            self._mailbox.send(f"frontend-{frontend_id}", rows.message(step))

    def _add_token(
        self,
        request_id: str,
        seq: int,
        token_id: int,
        end: SequenceEnded | None,
        outgoing: dict[int, Outgoing],
        worker_id: int,
    ) -> None:
        answer = self._answers.get(request_id)
        if answer is None:
            return  # stopped here before, or aborted: the worker has not heard of it yet
        if seq != answer.num_tokens:
            self._fail(request_id, "A part of the answer was lost.")
            self._mailbox.send(f"worker-{worker_id}", Abort(request_id))
            return
        is_shown = end is None or not end.hides_last_token
        text = answer.add(token_id, is_shown=is_shown)
        if end is not None and not answer.is_stopped:
            text += answer.finish()
        rows = outgoing[answer.frontend_id]
        rows.add(request_id, answer, text)
        self._end_if_due(request_id, answer, end, rows, worker_id)

    def _end_if_due(
        self,
        request_id: str,
        answer: Answer,
        end: SequenceEnded | None,
        rows: Outgoing,
        worker_id: int,
    ) -> None:
        if end is None and not answer.is_stopped:
            return
        if end is None:
            self._mailbox.send(f"worker-{worker_id}", Abort(request_id))
        reason = "stop" if end is None or answer.is_stopped else end.finish_reason
        rows.ended.append(TextEnded(request_id, reason, answer.num_tokens))
        del self._answers[request_id]

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


def run(config: DetokenizerConfig, mailbox: Mailbox) -> None:
    """Waits for the tokenizer's vocabulary, then serves until the launcher says stop."""
    while mailbox.stop is None and not mailbox.ready_rooms("tokenizer"):
        mailbox.receive(timeout_seconds=None)
    if mailbox.stop is None:
        vocabulary = Vocabulary.from_file(str(vocabulary_path(config.identity.run_directory)))
        mailbox.report_ready()
        Detokenizer(mailbox, vocabulary).run()
