"""How much sound is held at a time: uploads that arrive, wait, or are put into words."""

from collections.abc import Iterator
from contextlib import contextmanager

from frontend.sheet import Sheet
from shared.errors import ErrorCode, RequestError

MAX_SOUND_BYTES = 25 * 1024 * 1024 + 64 * 1024  # a file of 25 MiB (OpenAI), and what is around it
MAX_HELD_BYTES = 10 * MAX_SOUND_BYTES


class SoundBudget:
    """Bytes of uploads that all frontends hold together.

    Two or three copies of each exist in a frontend and in a tokenizer.
    """

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._column = sheet.claim_held(1)

    @property
    def num_bytes(self) -> int:
        """How much is held now."""
        return int(self._sheet.own[self._column] + self._sheet.elsewhere(self._column))

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Keeps so much for one upload; RequestError where too much is held already."""
        own, column = self._sheet.own, self._column
        self._sheet.show(column, own[column] + num_bytes)
        try:
            if num_bytes < self.num_bytes > MAX_HELD_BYTES:
                sentence = "The server holds as much sound as it can; try again later."
                raise RequestError(ErrorCode.QUEUE_FULL, sentence)
            yield
        finally:
            own[column] -= num_bytes


def upload_bytes(content_length: str | None) -> int:
    """What an upload says that it has; the most that it may have, where it does not say."""
    is_said = content_length is not None and content_length.isdecimal()
    return min(int(content_length or 0), MAX_SOUND_BYTES) if is_said else MAX_SOUND_BYTES
