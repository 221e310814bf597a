"""Measures one request from arrival to outcome: its metrics and its one line in the log."""

import logging
from dataclasses import dataclass
from typing import assert_never

from frontend.events import (
    Aborted,
    Accepted,
    Event,
    Failed,
    Finished,
    PromptRead,
    TextAdded,
    TextFound,
    TokensFound,
    VectorsFound,
    WindowStarted,
)
from frontend.metrics import RequestTimes

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Progress:
    """How far one answer is."""

    num_tokens: int
    last_token_at: float


class Meter:
    """Sees every event of one request, with the time at which it came."""

    def __init__(
        self, times: RequestTimes, request_id: str, now: float, caller_id: str = ""
    ) -> None:
        self._times = times
        self._name = f"{request_id} ({caller_id})" if caller_id else request_id
        self._started_at = now
        self._first_token_at: float | None = None
        self._prompt_tokens = 0
        self._sound_seconds = 0.0
        self._answers: dict[int, _Progress] = {}  # that have a token
        self._finish_reason = ""  # of the answer that ended last

    def observe(self, event: Event, now: float) -> None:
        """Takes the next event."""
        match event:
            case TextAdded():  # first, as there is one for every token
                self._count_tokens(event.choice, event.completion_tokens, now)
                self._finish_reason = event.finish_reason or self._finish_reason
            case Accepted():
                self._prompt_tokens = event.prompt_tokens
                self._times.prompt_tokens.inc(event.prompt_tokens)
            case WindowStarted(start_seconds=start, seconds=seconds):  # they may overlap
                self._sound_seconds = max(self._sound_seconds, start + seconds)
            case PromptRead() | TokensFound() | TextFound():
                pass  # costs no answer any time
            case VectorsFound():
                self._end("stop", "stop", now)
            case Finished(_, cached_tokens):
                self._times.cached_tokens.inc(cached_tokens)
                self._times.sound_seconds.inc(self._sound_seconds)
                self._end(self._finish_reason, self._finish_reason, now)
            case Failed(error):
                self._end("error", f"error ({error.code})", now)
            case Aborted():
                self._end("abort", "abort", now)
            case _:
                assert_never(event)

    def _count_tokens(self, choice: int, completion_tokens: int, now: float) -> None:
        answer = self._answers.get(choice)
        if answer is None:
            if completion_tokens:
                self._begin(choice, completion_tokens, now)
            return
        num_new = completion_tokens - answer.num_tokens
        if num_new > 0:
            self._times.tokens.observe(num_new, now - answer.last_token_at)
            answer.num_tokens, answer.last_token_at = completion_tokens, now

    def _begin(self, choice: int, completion_tokens: int, now: float) -> None:
        if self._first_token_at is None:
            self._first_token_at = now
            self._times.first_token.observe(now - self._started_at)
        self._answers[choice] = _Progress(completion_tokens, now)
        self._times.tokens.num_tokens += completion_tokens

    @property
    def _num_completion_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self._answers.values())

    def _end(self, finished_reason: str, shown_reason: str, now: float) -> None:
        self._times.ended(finished_reason).inc()
        self._times.whole.observe(now - self._started_at)
        self._times.num_prompt_tokens.observe(self._prompt_tokens)
        self._times.num_generation_tokens.observe(self._num_completion_tokens)
        self._times.tokens.write()
        first = self._first_token_at
        logger.info(
            "%s prompt=%d completion=%d ttft=%s total=%.3fs finish=%s",
            self._name,
            self._prompt_tokens,
            self._num_completion_tokens,
            "-" if first is None else f"{first - self._started_at:.3f}s",
            now - self._started_at,
            shown_reason + self._pace(now),
        )

    def _pace(self, now: float) -> str:
        """How much sound was put into words a second, if any was."""
        if not self._sound_seconds:
            return ""
        rate = self._sound_seconds / max(now - self._started_at, 1e-3)
        return f" sound={self._sound_seconds:.1f}s rate={rate:.1f}x"
