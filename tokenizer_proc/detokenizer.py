"""A detokenizer process: token ids to text, stop strings, thoughts, usage. It loads no torch.

One message a step comes in, if the step has something for its own requests, and one goes out to
each frontend that has a stake in it. It decides stop strings and counts usage; the worker decides
end tokens and length.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer as Vocabulary

from shared.config import DetokenizerConfig
from shared.errors import ErrorCode, WireError
from shared.mailbox import BEAT_SECONDS, Mailbox, unexpected
from shared.messages import Abort, RequestFailed, StepsAcknowledged, TextProduced, TokensSampled
from shared.parts import (
    PromptScored,
    RequestStarted,
    ScoredToken,
    SequenceEnded,
    TextEnded,
    TextStart,
    TokenLogprobs,
)
from shared.vocabulary import vocabulary_path
from tokenizer_proc.answer import Answer, Piece
from tokenizer_proc.heard import alignments_of, with_times
from tokenizer_proc.token_texts import TokenTexts, score_prompt

logger = logging.getLogger(__name__)

AnswerKey = tuple[str, int]  # of a request, and which of its answers

_LOST = "A part of the answer was lost."
_BROKEN_OFF = "A process of the server died, or could not be reached, before the answer's end."


@dataclass
class Outgoing:
    """What one frontend hears of one step: a row an answer, then the requests that failed."""

    request_ids: list[str] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    completion_tokens: list[int] = field(default_factory=list)
    scored: list[tuple[ScoredToken, ...]] = field(default_factory=list)
    prompts: list[PromptScored] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    ended: list[TextEnded] = field(default_factory=list)
    failed: list[RequestFailed] = field(default_factory=list)

    def add(self, key: AnswerKey, seq: int, piece: Piece, answer: Answer) -> None:
        """Appends one answer's row, or more to it, and its end if this was the last."""
        request_id, choice = key
        if self.seqs and (self.request_ids[-1], self.choices[-1]) == key:
            self._extend(piece, answer)
        else:
            self.request_ids.append(request_id)
            self.choices.append(choice)
            self.seqs.append(seq)
            self.texts.append(piece.text)
            self.completion_tokens.append(answer.num_tokens)
            self.scored.append(piece.tokens)
            self.thoughts.append(piece.thoughts)
        if answer.finish_reason is not None:
            end = TextEnded(
                request_id,
                choice,
                answer.finish_reason,
                answer.stop_reason,
                answer.cached_tokens,
                answer.reasoning_tokens,
                answer.heard,
            )
            self.ended.append(end)

    def _extend(self, piece: Piece, answer: Answer) -> None:
        """Adds to the last row what more of its answer came in the same step."""
        self.texts[-1] += piece.text
        self.completion_tokens[-1] = answer.num_tokens
        self.scored[-1] += piece.tokens
        self.thoughts[-1] += piece.thoughts

    def messages(self, step: TokensSampled) -> Iterator[TextProduced | RequestFailed]:
        """The text in one message; nothing follows the failure of its request."""
        if self.seqs:
            yield self._text(step)
        yield from self.failed

    def _text(self, step: TokensSampled) -> TextProduced:
        return TextProduced(
            worker_id=step.worker_id,
            epoch=step.epoch,
            request_ids=tuple(self.request_ids),
            choices=tuple(self.choices),
            seqs=tuple(self.seqs),
            texts=tuple(self.texts),
            completion_tokens=tuple(self.completion_tokens),
            scored=tuple(self.scored) if any(self.scored) else (),
            prompts=tuple(self.prompts),
            ended=tuple(self.ended),
            thoughts=tuple(self.thoughts) if any(self.thoughts) else (),
        )


class Detokenizer:
    """Keeps an `Answer` for every sequence from its request's first token to its own end."""

    def __init__(self, mailbox: Mailbox, vocabulary: Vocabulary) -> None:
        self._mailbox = mailbox
        self._vocabulary = vocabulary
        self._texts = TokenTexts(vocabulary)
        self._answers: dict[AnswerKey, Answer] = {}
        self._worker_epochs: dict[int, int] = {}  # of the workers whose answers these are
        self._outbox: defaultdict[int, Outgoing] = defaultdict(Outgoing)  # by frontend, of one step
        self._owed: dict[int, StepsAcknowledged] = {}  # by worker: what has not reached it

    @property
    def num_answers(self) -> int:
        """Answers whose text is under way; 0 at rest."""
        return len(self._answers)

    def run(self) -> None:
        """Serves until the launcher says stop."""
        while self._mailbox.stop is None:
            self.serve_once(BEAT_SECONDS)
            self._mailbox.beat()

    def serve_once(self, timeout_seconds: float | None) -> None:
        """Handles all that has come and acknowledges the newest step of each worker."""
        newest: dict[int, TokensSampled] = {}
        messages = self._mailbox.receive(timeout_seconds)
        self._forget_the_dead()
        for message in messages:
            if not isinstance(message, TokensSampled):
                unexpected(message)
            elif self._is_from_the_living(message):
                self._handle(message)
                newest[message.worker_id] = message
        for worker_id, step in newest.items():
            index = self._mailbox.identity.index
            self._owed[worker_id] = StepsAcknowledged(index, step.epoch, step.step)
        for worker_id, acknowledged in list(self._owed.items()):
            if self._mailbox.send(f"worker-{worker_id}", acknowledged):
                del self._owed[worker_id]  # else once more: the worker may wait for just this

    def _forget_the_dead(self) -> None:
        """Drops the answers of workers that will say no more; who waits is told by the launcher."""
        for worker_id, epoch in list(self._worker_epochs.items()):
            if self._worker_epoch(worker_id) != epoch:
                del self._worker_epochs[worker_id]
                self._owed.pop(worker_id, None)
                for key in [k for k, a in self._answers.items() if a.worker_id == worker_id]:
                    del self._answers[key]

    def _is_from_the_living(self, step: TokensSampled) -> bool:
        is_living = self._worker_epoch(step.worker_id) == step.epoch
        if is_living:
            self._worker_epochs[step.worker_id] = step.epoch
        return is_living

    def _worker_epoch(self, worker_id: int) -> int | None:
        peer = self._mailbox.peers.get(f"worker-{worker_id}")
        return None if peer is None else peer.epoch

    def _handle(self, step: TokensSampled) -> None:
        """One step's tokens, then the ends that came without one, then what never came."""
        for started in step.started:
            self._start(started, step.worker_id)
        ends = {(end.request_id, end.choice): end for end in step.ended}
        matrices = alignments_of(step) if step.alignments else {}
        told = step.logprobs or (None,) * len(step.token_ids)
        keys = list(zip(step.request_ids, step.choices, strict=True))
        columns = zip(keys, (*keys, None)[1:], step.seqs, step.token_ids, told, strict=True)
        for key, next_key, seq, token_id, logprobs in columns:
            end = ends.pop(key, None) if ends and key != next_key else None
            answer = self._answers.get(key)
            if answer is None:
                continue  # it ended here at a stop string; the worker will hear of it
            try:
                piece = _next_piece(answer, seq, token_id, logprobs, end)
                if end is not None and end.heard is not None:
                    answer.heard = with_times(end.heard, matrices.get(key))
            except Exception:  # one answer's text must not end the process
                logger.exception("request %s has no text for its token %d", key[0], seq)
                self._fail(key, _LOST, step.worker_id)
                continue
            self._outbox[answer.frontend_id].add(key, seq, piece, answer)
            if answer.finish_reason is not None:
                self._forget(key, end, step.worker_id)
        for key, end in ends.items():
            self._end_without_token(key, end, step.worker_id)
        for lost in step.lost:
            failed = RequestFailed(lost.request_id, ErrorCode.ENGINE_DEAD, _BROKEN_OFF, None)
            self._outbox[lost.frontend_id].failed.append(failed)
        self._send(step)

    def _send(self, step: TokensSampled) -> None:
        for frontend_id, outgoing in self._outbox.items():
            for message in outgoing.messages(step):
                self._mailbox.send(f"frontend-{frontend_id}", message)
        self._outbox.clear()

    def _start(self, started: RequestStarted, worker_id: int) -> None:
        start = started.text
        for choice in range(started.num_choices):
            key = (start.request_id, choice)
            cached = started.cached_tokens
            self._answers[key] = Answer(start, self._vocabulary, self._texts, cached, worker_id)
        # A sequence that failed within its prompt has no scores; its end says so.
        if len(started.prompt_logprobs) == len(start.scored_token_ids) - 1:
            self._score_prompt(start, started.prompt_logprobs, worker_id)

    def _score_prompt(
        self, start: TextStart, told: tuple[TokenLogprobs, ...], worker_id: int
    ) -> None:
        try:
            tokens = score_prompt(start, told, self._vocabulary, self._texts)
        except Exception:  # as for the text of an answer
            logger.exception("request %s has no text for its prompt", start.request_id)
            self._fail((start.request_id, 0), _LOST, worker_id)
            return
        scored = PromptScored(start.request_id, tokens)
        self._outbox[start.route.frontend_id].prompts.append(scored)

    def _forget(self, key: AnswerKey, end: SequenceEnded | None, worker_id: int) -> None:
        del self._answers[key]
        if end is None:  # a stop string, of which the worker knows nothing
            self._mailbox.send(f"worker-{worker_id}", Abort(*key))

    def _end_without_token(self, key: AnswerKey, end: SequenceEnded, worker_id: int) -> None:
        if key not in self._answers:
            return
        if end.finish_reason == "error":
            self._fail(key, "The model could not compute this answer.", worker_id)
        else:
            del self._answers[key]

    def _fail(self, key: AnswerKey, reason: str, worker_id: int) -> None:
        """One answer that fails ends its request with all the others."""
        frontend_id = self._answers[key].frontend_id
        request_id, _ = key
        failed = RequestFailed(request_id, ErrorCode.INTERNAL, reason, None)
        self._outbox[frontend_id].failed.append(failed)
        self._mailbox.send(f"worker-{worker_id}", Abort(request_id))
        for choice in [choice for other, choice in self._answers if other == request_id]:
            del self._answers[request_id, choice]


def _next_piece(
    answer: Answer, seq: int, token_id: int, told: TokenLogprobs | None, end: SequenceEnded | None
) -> Piece:
    if seq != answer.num_tokens:
        raise WireError(f"token {answer.num_tokens} of the answer was lost on the way")
    return answer.add(token_id, told, end)


def run(config: DetokenizerConfig, mailbox: Mailbox) -> None:
    """Waits for the tokenizer's vocabulary, then serves until the launcher says stop."""
    while mailbox.stop is None and not mailbox.ready_rooms("tokenizer"):
        mailbox.receive(timeout_seconds=None)
    if mailbox.stop is None:
        vocabulary = Vocabulary.from_file(str(vocabulary_path(config.identity.run_directory)))
        mailbox.report_ready()
        Detokenizer(mailbox, vocabulary).run()
