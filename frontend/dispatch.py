"""Which tokenizer gets which prompt: credits given, prompts waiting in order. Pure.

A tokenizer is sent no more than it asked for, so a stuck one holds only what it has taken.
"""

from collections.abc import Collection

from frontend.ledger import Life
from shared.messages import Decode, Encode, Tokenize

TokenizerCommand = Tokenize | Encode | Decode


class Dispatch:
    """The prompts that wait for a credit, first come first served."""

    def __init__(self) -> None:
        self._waiting: dict[str, TokenizerCommand] = {}  # by request; a dict keeps the order
        self._credits: dict[Life, int] = {}

    def grant(self, tokenizer: Life, count: int) -> None:
        """Takes a tokenizer's word that it has room for `count` more."""
        self._credits[tokenizer] = self._credits.get(tokenizer, 0) + count

    def forget(self, life: Life) -> None:
        """Drops the credits of a dead life."""
        self._credits.pop(life, None)

    def add(self, command: TokenizerCommand) -> None:
        """Puts a prompt at the end of the line."""
        self._waiting[command.request_id] = command

    def remove(self, request_id: str) -> None:
        """Takes a prompt out of the line, if it still waits."""
        self._waiting.pop(request_id, None)

    def take(self, living: Collection[Life]) -> tuple[Life, TokenizerCommand] | None:
        """The next prompt and the living tokenizer with most credits, at the cost of one credit."""
        if not self._waiting:
            return None
        able = [life for life, count in self._credits.items() if count > 0 and life in living]
        if not able:
            return None
        tokenizer = max(able, key=self._credits.__getitem__)
        self._credits[tokenizer] -= 1
        return tokenizer, self._waiting.pop(next(iter(self._waiting)))
