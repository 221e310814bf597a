"""The text of one answer as its tokens come in: pure, without sockets."""

from collections import deque
from dataclasses import replace
from typing import NamedTuple

from tokenizers import Tokenizer as Vocabulary

from shared.messages import ScoredToken, SequenceEnded, TextStart, TokenLogprobs
from tokenizer_proc.incremental import IncrementalDetokenizer
from tokenizer_proc.stopping import StopMatcher
from tokenizer_proc.token_texts import TokenTexts


class Piece(NamedTuple):
    """What has become certain of an answer: text, and the tokens that it is made of."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()  # () unless their logprobs are wanted


class Answer:
    """What is certain of the text goes out, the rest is held back.

    It ends at a stop string, which it decides itself, or with the worker's last token. `num_tokens`
    counts up to the token that ended it: nothing after a stop string counts. None is looked for in
    the text of the first `min_tokens` tokens.
    """

    def __init__(
        self, start: TextStart, vocabulary: Vocabulary, texts: TokenTexts, cached_tokens: int
    ) -> None:
        self.frontend_id = start.frontend_id
        self.cached_tokens = cached_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._start = start
        self._detokenizer = IncrementalDetokenizer(
            vocabulary, start.prompt_tail, start.options.skips_special_tokens
        )
        self._stops = StopMatcher(start.options.stop)
        self._scores = _Scores(texts)

    def add(self, token_id: int, told: TokenLogprobs | None, end: SequenceEnded | None) -> Piece:
        """Counts one token and returns what has become certain; `end` marks the last."""
        if self._start.options.only_scores_prompt:
            self.finish_reason = "length"
            return Piece("")
        self.num_tokens += 1
        text = ""
        if end is None or not end.hides_last_token:
            produced = self._detokenizer.add(token_id)
            if told is not None:
                self._scores.add(token_id, produced, told)
            text = self._search(produced)
        if end is not None and self._stops.matched is None:
            text += self._release()
            self._end(end.finish_reason, token_id)
        if self._stops.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stops.matched
            text += self._stops.matched if self._start.options.includes_stop else ""
        tokens = self._scores.take(len(text))
        if self.finish_reason is not None:
            tokens += self._scores.last(is_cut=self._stops.matched is not None)
        return Piece(text, tokens)

    def _end(self, reason: str, last_token_id: int) -> None:
        self.finish_reason = reason
        if reason == "stop" and last_token_id in self._start.stop_token_ids:
            self.stop_reason = last_token_id

    def _release(self) -> str:
        """Returns what was held back, now that no token follows."""
        flushed = self._detokenizer.flush()
        self._scores.extend_last(flushed)
        text = self._search(flushed)
        return text if self._stops.matched is not None else text + self._stops.flush()

    def _search(self, text: str) -> str:
        """The part of the newest token's text that no stop string can take back."""
        return text if self.num_tokens <= self._start.min_tokens else self._stops.add(text)


class _Scores:
    """The scored tokens whose text is not out yet."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._waiting: deque[ScoredToken] = deque()
        self._num_out = 0  # characters of the first waiting token that are out

    def add(self, token_id: int, text: str, told: TokenLogprobs) -> None:
        """Takes the newest token and the text that it produced."""
        self._waiting.append(self._texts.scored(token_id, text, told))

    def extend_last(self, text: str) -> None:
        """Gives the newest token what the end of the answer made certain."""
        if self._waiting and text:
            self._waiting[-1] = replace(self._waiting[-1], text=self._waiting[-1].text + text)

    def take(self, num_characters: int) -> tuple[ScoredToken, ...]:
        """The tokens whose text is out with so many characters more.

        A token without text goes with the next that has some.
        """
        taken: list[ScoredToken] = []
        self._num_out += num_characters
        while self._waiting and len(self._waiting[0].text) <= self._num_out > 0:
            self._num_out -= len(self._waiting[0].text)
            taken.append(self._waiting.popleft())
        return tuple(taken)

    def last(self, *, is_cut: bool) -> tuple[ScoredToken, ...]:
        """What still waits at the end: tokens without text, or what a stop string left of one."""
        if not is_cut:
            return tuple(self._waiting)
        if not self._waiting or not self._num_out:
            return ()
        return (replace(self._waiting[0], text=self._waiting[0].text[: self._num_out]),)
