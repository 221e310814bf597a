"""A decoder over whose files the worst happens: a file says itself what it does to its child.

Started as `python -P -m tests.tokenizer_proc.planted_decoder NAME PARENT SOCKET`.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenizer_proc import decoder
from tokenizer_proc.samples import Samples

SILENCE = np.zeros(1000, np.float32)


def harm(data: bytes, rate: int, max_seconds: float, param: str) -> Iterator[Samples]:
    """One piece, and then what the file says."""
    yield SILENCE
    match data.decode().split():
        case ["crash"]:
            ctypes.string_at(0)
        case ["exit"]:
            os._exit(0)
        case ["raise"]:
            raise IndexError("planted")
        case ["hang"]:
            signal.pause()
        case ["spin"]:
            while True:
                pass
        case ["eat"]:
            yield np.ones(2**30, np.float32)
        case ["open", path]:
            Path(path).read_bytes()
        case ["connect"]:
            socket.create_connection(("127.0.0.1", 9))
        case _:
            pass
    yield SILENCE


if __name__ == "__main__":
    decoder.CPU_SECONDS, decoder.CPU_SHARE = 1, 0.0
    decoder.read_sound = harm  # type: ignore[attr-defined]  # planted
    decoder.main(sys.argv[1], int(sys.argv[2]), socket.socket(fileno=int(sys.argv[3])))
