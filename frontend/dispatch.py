"""Which tokenizer gets which command: credits given, commands waiting in order. Pure.

A tokenizer is sent no more than it asked for, so a stuck one holds only what it has taken. Prompts
to be answered go first; a lookup, or texts whose vectors are wanted, go only to a tokenizer that
has nothing else of this frontend to do: so those who count tokens delay an answer by one such
command of each frontend at most.
"""

from collections.abc import Collection

from frontend.life import Life
from shared.messages import Decode, Embed, Encode, Tokenize, Transcribe

TokenizerCommand = Tokenize | Embed | Transcribe | Encode | Decode


class Dispatch:
    """The commands that wait for a credit, each kind first come first served."""

    def __init__(self) -> None:
        self._prompts: dict[str, TokenizerCommand] = {}  # by request; a dict keeps the order
        self._lookups: dict[str, TokenizerCommand] = {}
        self._credits: dict[Life, int] = {}
        self._most_credits: dict[Life, int] = {}  # of an idle tokenizer

    def grant(self, tokenizer: Life, count: int) -> None:
        """Takes a tokenizer's word that it has room for `count` more."""
        total = self._credits.get(tokenizer, 0) + count
        self._credits[tokenizer] = total
        self._most_credits[tokenizer] = max(total, self._most_credits.get(tokenizer, 0))

    def forget(self, life: Life) -> None:
        """Drops the credits of a dead life."""
        self._credits.pop(life, None)
        self._most_credits.pop(life, None)

    def add(self, command: TokenizerCommand) -> None:
        """Puts a command at the end of its line."""
        is_prompt = isinstance(command, Tokenize | Transcribe)
        line = self._prompts if is_prompt else self._lookups
        line[command.request_id] = command

    def remove(self, request_id: str) -> None:
        """Takes a command out of its line, if it still waits."""
        self._prompts.pop(request_id, None)
        self._lookups.pop(request_id, None)

    def take(self, living: Collection[Life]) -> tuple[Life, TokenizerCommand] | None:
        """The next command and a living tokenizer for it, at the cost of one of its credits.

        A prompt goes to the tokenizer with most credits.
        """
        if not self._prompts and not self._lookups:
            return None
        able = [life for life, count in self._credits.items() if count > 0 and life in living]
        line = self._prompts
        if not line:
            line = self._lookups
            able = [life for life in able if self._credits[life] == self._most_credits[life]]
        if not able:
            return None
        tokenizer = max(able, key=self._credits.__getitem__)
        self._credits[tokenizer] -= 1
        return tokenizer, line.pop(next(iter(line)))
