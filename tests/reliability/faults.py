"""The fault plan: what goes wrong, where, and for whom. It travels in a file of the run directory.

It is no part of the product: `rooms.py` puts it between the real rooms and what they call.
"""

import ctypes
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

FILE_NAME = "faults.json"
FIRST_CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


class At(StrEnum):
    """Where a fault strikes; `match` is looked for in what is named here."""

    HELLO = "hello"  # before a room's first word; its name
    LOAD = "load"  # before a room is ready; its name
    ENCODE = "encode"  # the tokenizer, before it encodes; the prompt's text
    PASS_ON = "pass_on"  # the tokenizer, before the worker is told; the request's stop strings
    STEP = "step"  # the worker, before a step; the prompt of each sequence in it
    SAMPLE = "sample"  # the worker, after a step; the prompt of each sequence that samples
    TEXT = "text"  # the detokenizer, before a token's text; the request's stop strings


class Do(StrEnum):
    """What happens."""

    RAISE = "raise"
    PANIC = "panic"  # an exception that is no Exception, as of the tokenizers library
    OOM = "oom"
    STICKY = "sticky"  # the error of a GPU that is lost to the process
    NAN = "nan"  # the logits of the sequence are no numbers; only at SAMPLE
    SLOW = "slow"  # it takes `seconds` longer
    HANG = "hang"  # it never ends
    SEGV = "segv"
    EXIT = "exit"  # the process ends with status 0


class PlantedError(Exception):
    """A fault of the plan."""


class PlantedPanic(BaseException):
    """A fault of the plan that a handler of Exception does not catch."""


@dataclass(frozen=True)
class Fault:
    """One line of a plan."""

    at: At
    do: Do
    match: str = ""  # a word; empty: everybody
    step: int | None = None  # number of the answer's token, from 0; None: every one
    times: int | None = None  # in one life of a process; None: always
    life: int | None = None  # only in this one, from 1
    seconds: float = 0.0  # of SLOW


class FaultPlan:
    """The faults of one life of one room."""

    def __init__(self, faults: Sequence[Fault], life: int = 1) -> None:
        self._faults = [fault for fault in faults if fault.life in (None, life)]
        self._num_struck = [0] * len(self._faults)

    def due(self, at: At, text: str, step: int | None = None) -> Fault | None:
        """The first fault that is due here, which counts it."""
        for number, fault in enumerate(self._faults):
            is_here = fault.at is at and fault.match in text and fault.step in (None, step)
            if is_here and (fault.times is None or self._num_struck[number] < fault.times):
                self._num_struck[number] += 1
                return fault
        return None

    def strike(self, at: At, text: str, step: int | None = None) -> None:
        """Does what is due here."""
        fault = self.due(at, text, step)
        if fault is not None:
            perform(fault)


def perform(fault: Fault) -> None:
    """Raises, waits, or ends the process."""
    match fault.do:
        case Do.RAISE:
            raise PlantedError(f"planted at {fault.at}")
        case Do.PANIC:
            raise PlantedPanic(f"planted at {fault.at}")
        case Do.OOM:
            raise MemoryError(f"planted at {fault.at}")
        case Do.STICKY:
            raise RuntimeError(FIRST_CUDA_ERROR)
        case Do.SLOW:
            time.sleep(fault.seconds)
        case Do.HANG | Do.SEGV | Do.EXIT:
            _end(fault.do)
        case Do.NAN:
            raise AssertionError("only a sampled token can be no number")


def _end(how: Do) -> None:
    """Ends the process, or all that it does."""
    if how is Do.EXIT:
        os._exit(0)
    if how is Do.SEGV:
        ctypes.string_at(0)
    while True:
        pass


def save_faults(faults: Sequence[Fault], run_directory: str) -> None:
    """Leaves the plan where the rooms find it."""
    (Path(run_directory) / FILE_NAME).write_bytes(msgspec.json.encode(list(faults)))


def load_faults(run_directory: str) -> list[Fault]:
    """What the server's launcher has saved."""
    return msgspec.json.decode((Path(run_directory) / FILE_NAME).read_bytes(), type=list[Fault])
