"""Turns one request's token ids into text as they arrive, never half a character.

Owns what a stream of ids says so far. Must not know stop strings, messages or the model.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# A UTF-8 character has at most four bytes and a token at least one, so the oldest of four tokens
# that still end in half a character cannot belong to that half.
_MAX_HELD_TOKENS = 3

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Streams what `tokenizer.decode` gives for all ids, less what it gives for `prompt_tail`.

    A few tokens of the prompt are enough: they decide whether the first word keeps its space. Text
    waits only while its end may be half a character, for at most three tokens; bytes that nothing
    can complete any more come out as U+FFFD, except at the very end, where they are dropped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail: Sequence[int],
        skip_special_tokens: bool = True,
        silent: dict[tuple[int, bool], bool] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._silent = {} if silent is None else silent
        spoken = [token_id for token_id in prompt_tail if self._speaks(token_id)]
        num_whole = self._num_whole_tokens(spoken)
        self._context = spoken[:num_whole]  # their text is out and ends in a whole character
        self._held = spoken[num_whole:]  # the tokens since
        self._num_said = len(self._decode(self._held))  # how much of their text is out already
        self._stream = self._new_stream(self._context)
        self._stream.step(tokenizer, self._held)

    def add(self, token_id: int) -> str:
        """Take the next id; return the text that it makes certain."""
        if not self._speaks(token_id):
            return ""
        self._held.append(token_id)
        text = self._step(token_id)
        if text is not None:
            self._context = self._held
            return self._say(text)
        return self._release_oldest() if len(self._held) > _MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        """The ids are over: return the text that waited, without the half character at its end."""
        return self._say(self._decode(self._held)).rstrip(_REPLACEMENT)

    def _step(self, token_id: int) -> str | None:
        try:
            return self._stream.step(self._tokenizer, token_id)
        except Exception as error:  # tokenizers raises nothing narrower
            if not str(error).startswith("Invalid prefix encountered"):
                raise
        # Byte fallback decodes a run of bytes as a whole, so a broken character at its end spoils
        # the good ones before it, which are out already. What is held makes a run of its own.
        self._stream = self._new_stream([])
        return self._stream.step(self._tokenizer, self._held)

    def _release_oldest(self) -> str:
        """Give up waiting for the oldest held token, and hear the younger ones again."""
        oldest, younger = self._held[:1], self._held[1:]
        text, open_text = self._decode(self._held), self._decode(younger)
        if open_text.endswith(_REPLACEMENT):
            num_open = min(_num_broken_at_end(text), _num_broken_at_end(open_text))
        else:  # byte fallback: only the oldest token spoiled the run
            text, num_open = self._decode(oldest) + open_text, len(open_text)
        num_settled = len(text) - num_open
        num_still_said = max(self._num_said - num_settled, 0)
        settled = self._say(text[:num_settled])
        self._num_said = num_still_said + len(open_text) - num_open
        self._stream = self._new_stream(self._context)
        return settled + "".join([self.add(token_id) for token_id in younger])

    def _say(self, text: str) -> str:
        """The part of the held tokens' text that is not out yet; nothing is held after it."""
        num_said, self._num_said, self._held = self._num_said, 0, []
        return text[num_said:]

    def _speaks(self, token_id: int) -> bool:
        key = (token_id, self._skip_special_tokens)
        if key not in self._silent:
            # Twice, because some decoders strip the space of a first token and would leave nothing.
            self._silent[key] = self._decode([token_id, token_id]) == ""
        return not self._silent[key]

    def _num_whole_tokens(self, token_ids: list[int]) -> int:
        """How many of the ids give text that ends in a whole character."""
        num_tokens = len(token_ids)
        while self._decode(token_ids[:num_tokens]).endswith(_REPLACEMENT):
            num_tokens -= 1
        return num_tokens

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _new_stream(self, context: list[int]) -> DecodeStream:
        return DecodeStream(ids=context, skip_special_tokens=self._skip_special_tokens)


def _num_broken_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(_REPLACEMENT))
