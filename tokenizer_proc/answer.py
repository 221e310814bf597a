"""The text of one answer as its tokens come in: pure, without sockets."""

from tokenizers import Tokenizer as Vocabulary

from shared.messages import SequenceEnded, TextStart
from tokenizer_proc.incremental import IncrementalDetokenizer
from tokenizer_proc.stopping import StopMatcher


class Answer:
    """What is certain of the text goes out, the rest is held back.

    It ends at a stop string, which it decides itself, or with the worker's last token. `num_tokens`
    counts up to the token that ended it: nothing after a stop string counts. None is looked for in
    the text of the first `min_tokens` tokens.
    """

    def __init__(self, start: TextStart, vocabulary: Vocabulary, cached_tokens: int) -> None:
        self.frontend_id = start.frontend_id
        self.cached_tokens = cached_tokens
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._detokenizer = IncrementalDetokenizer(vocabulary, start.prompt_tail)
        self._min_tokens = start.min_tokens
        self._stops = StopMatcher(start.options.stop)

    def add(self, token_id: int, end: SequenceEnded | None) -> str:
        """Counts one token and returns the text that has become certain; `end` marks the last."""
        self.num_tokens += 1
        text = ""
        if end is None or not end.hides_last_token:
            text = self._search(self._detokenizer.add(token_id))
        if end is not None and self._stops.matched is None:
            text += self._release()
            self.finish_reason = end.finish_reason
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        return text

    def _release(self) -> str:
        """Returns what was held back, now that no token follows."""
        text = self._search(self._detokenizer.flush())
        return text if self._stops.matched is not None else text + self._stops.flush()

    def _search(self, text: str) -> str:
        """The part of the newest token's text that no stop string can take back."""
        return text if self.num_tokens <= self._min_tokens else self._stops.add(text)
