"""The text of one answer as its tokens come in: pure, without sockets."""

from collections import deque
from dataclasses import replace

from msgspec import Struct
from tokenizers import Tokenizer as Vocabulary

from shared.parts import Heard, ScoredToken, SequenceEnded, TextStart, ThoughtMarks, TokenLogprobs
from tokenizer_proc.incremental import IncrementalDetokenizer
from tokenizer_proc.stopping import StopMatcher
from tokenizer_proc.thoughts import Parts, ThoughtSplitter
from tokenizer_proc.token_texts import TokenTexts


class Piece(Struct, frozen=True, gc=False):
    """What has become certain of an answer: text, and the tokens that it is made of."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()  # () unless their logprobs are wanted
    thoughts: str = ""  # what was thought before the text


class Answer:
    """What is certain of the text goes out, the rest is held back.

    It ends at a stop string, which it decides itself, or with the worker's last token. `num_tokens`
    counts up to the token that ended it: nothing after a stop string counts. None is looked for in
    the text of the first `min_tokens` tokens. Stop strings are looked for in thoughts as well, and
    in their marks.
    """

    def __init__(
        self,
        start: TextStart,
        vocabulary: Vocabulary,
        texts: TokenTexts,
        cached_tokens: int,
        worker_id: int = 0,
    ) -> None:
        self.frontend_id = start.route.frontend_id
        self.worker_id = worker_id
        self.cached_tokens = cached_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.heard: Heard | None = None  # of a window of sound, once it has ended
        self._start = start
        self._detokenizer = IncrementalDetokenizer(
            vocabulary, start.prompt_tail, start.options.skips_special_tokens, texts.silent
        )
        self._stops = StopMatcher(start.options.stop)
        self._scores = _Scores(texts)
        self._begun = ""  # certain text of a scored token whose rest is not
        self._thoughts = _Thoughts(start, start.thoughts, vocabulary) if start.thoughts else None

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens are known to belong to thoughts."""
        return self._thoughts.num_tokens if self._thoughts is not None else 0

    def add(self, token_id: int, told: TokenLogprobs | None, end: SequenceEnded | None) -> Piece:
        """Counts one token and returns what has become certain; `end` marks the last."""
        if self._start.options.only_scores_prompt:
            self.finish_reason = "length"
            return Piece("")
        self.num_tokens += 1
        is_hidden = end is not None and end.hides_last_token
        text = "" if is_hidden else self._search(self._produce(token_id, told))
        if end is not None and self._stops.matched is None:
            text += self._release()
            self._end(end.finish_reason, token_id)
        if self._stops.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stops.matched
            text += self._stops.matched if self._start.options.includes_stop else ""
        tokens = self._scores.take(len(text))
        if self.finish_reason is not None:
            tokens += self._scores.last(is_cut=self._stops.matched is not None)
        if told is not None or self._begun:
            text = self._at_border(text, tokens)
        if self._thoughts is not None:
            return self._thoughts.split(text, tokens, is_last=self.finish_reason is not None)
        return Piece(text, tokens)

    def _at_border(self, text: str, tokens: tuple[ScoredToken, ...]) -> str:
        """Text that goes with these tokens exactly; what a token has begun waits for its end."""
        text = self._begun + text
        num_covered = sum(len(token.text) for token in tokens)
        if self.finish_reason is not None:
            num_covered = len(text)
        self._begun = text[num_covered:]
        return text[:num_covered]

    def _produce(self, token_id: int, told: TokenLogprobs | None) -> str:
        """The text that the token completes."""
        text = self._detokenizer.add(token_id)
        if self._thoughts is not None:
            text = text or self._thoughts.hidden_mark(token_id)
        if told is not None:
            self._scores.add(token_id, text, told)
        return text

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
        if not self._start.options.stop or self.num_tokens <= self._start.min_tokens:
            return text
        return self._stops.add(text)


class _Thoughts:
    """The thoughts of an answer, and how many of its tokens went into them."""

    def __init__(self, start: TextStart, marks: ThoughtMarks, vocabulary: Vocabulary) -> None:
        self.num_tokens = 0
        self._splitter = ThoughtSplitter(marks)
        hidden = marks.special_ids if start.options.skips_special_tokens else ()
        self._hidden = {token_id: vocabulary.id_to_token(token_id) or "" for token_id in hidden}
        self._num_undecided = 0  # tokens since the last that is known to be one or the other
        self._waiting: tuple[ScoredToken, ...] = ()

    def hidden_mark(self, token_id: int) -> str:
        """The text of a token that is not shown, if a mark is made of it."""
        return self._hidden.get(token_id, "")

    def split(self, certain: str, tokens: tuple[ScoredToken, ...], *, is_last: bool) -> Piece:
        """What one more token made certain; scored tokens wait for text that they can go with."""
        parts = self._splitter.add(certain, is_last=is_last)
        self._count(parts)
        self._waiting += tokens
        if not (parts.thoughts or parts.content or is_last):
            return Piece("")
        tokens, self._waiting = self._waiting, ()
        return Piece(parts.content, tokens, parts.thoughts)

    def _count(self, parts: Parts) -> None:
        """Where a stop string is looked for in the last mark, a token behind it may count too."""
        self._num_undecided += 1
        if parts.is_thought:
            self.num_tokens += self._num_undecided
        if parts.is_thought or parts.content:
            self._num_undecided = 0


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
        if not self._waiting:  # as always where no logprobs are wanted
            return ()
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
