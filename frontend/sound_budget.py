"""How much sound is held at a time: uploads that arrive, wait, or are put into words."""

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import ErrorCode, RequestError

MAX_SOUND_BYTES = 25 * 1024 * 1024 + 64 * 1024  # a file of 25 MiB (OpenAI), and what is around it
MAX_HELD_BYTES = 10 * MAX_SOUND_BYTES


class SoundBudget:
    """Bytes of uploads; two or three copies of each exist in the frontend and in a tokenizer."""

    def __init__(self) -> None:
        self.num_bytes = 0

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Keeps so much for one upload; RequestError where too much is held already."""
        if self.num_bytes and self.num_bytes + num_bytes > MAX_HELD_BYTES:
            sentence = "The server holds as much sound as it can; try again later."
            raise RequestError(ErrorCode.QUEUE_FULL, sentence)
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes


def upload_bytes(content_length: str | None) -> int:
    """What an upload says that it has; the most that it may have, where it does not say."""
    is_said = content_length is not None and content_length.isdecimal()
    return min(int(content_length or 0), MAX_SOUND_BYTES) if is_said else MAX_SOUND_BYTES
