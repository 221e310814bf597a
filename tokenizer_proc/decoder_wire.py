"""What a tokenizer and its decoder say to each other, over sockets that keep messages apart.

With an `Order` go two descriptors: the file, and the sending end of a socket for the answer. That
is STARTED with a descriptor of the process that decodes, any number of PIECEs, and one last word:
ENDED, REFUSED or FAILED. Each is a word, and what belongs to it.
"""

from dataclasses import dataclass

STARTED = b"STRT"
PIECE = b"PIEC"  # float32 samples in the machine's order
ENDED = b"ENDD"
REFUSED = b"RFSD"  # a sentence for the caller
FAILED = b"FAIL"  # a line for the log
WORD_BYTES = 4
MAX_SAMPLES = 16_384  # of a piece: less than a socket's buffer, which a message must fit
MAX_MESSAGE_BYTES = WORD_BYTES + 4 * MAX_SAMPLES


@dataclass(frozen=True)
class Order:
    """How a file is to be decoded; see `read_sound`."""

    rate: int  # Hz
    max_seconds: float
    param: str
