"""A decoder as the tokenizer starts it, and a look at its children."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import psutil

from tokenizer_proc.decoding import PROGRAM, Decoder

ROOT = Path(__file__).resolve().parents[2]
NAME = "decoder-7"


@contextmanager
def found_on_the_path() -> Iterator[None]:
    """Lets a child find the project, as the launcher lets its rooms."""
    with patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        yield


@contextmanager
def running_decoder(program: str = PROGRAM) -> Iterator[Decoder]:
    """One that takes orders."""
    with found_on_the_path(), closing(Decoder(NAME, program)) as decoder:
        decoder.wait_started()
        yield decoder


def children_of(decoder: Decoder) -> list[psutil.Process]:
    """The processes that decode now, dead ones that nobody has buried included."""
    found: list[psutil.Process] = psutil.Process(decoder._process.pid).children(recursive=True)
    return found
