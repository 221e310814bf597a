"""Whisper under continuous batching beside faster-whisper's engine, CTranslate2.

The same random weights in Whisper tiny's geometry on both sides, the same windows of 30 seconds, as
log-mel spectrograms that are computed beforehand, and answers of exactly 100 tokens under the rules
of timestamps, with the scores that a transcript is told. What is timed on both sides is the encoder
and the decoder, from the spectrograms to the tokens. Ours says language and task as two tokens
more, as it does when served; the peer takes them as its prompt.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.encdec import decode_steps, faster_whisper_peer
from benchmarks.encdec.turns import median_rates
from benchmarks.encdec.whisper_model import (
    ENGLISH,
    MAX_FIRST_TIME,
    NUM_POSITIONS,
    RULES,
    START,
    SUPPRESSED,
    TRANSCRIBE,
    WINDOW_SECONDS,
    make_features,
    make_model,
    save_checkpoint,
)
from gpu_worker.slot_loading import serve_slots
from scheduler.plan import EncoderInput
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams

NUM_TOKENS = 100  # of a window's answer
NUM_HEADS = len(RULES.heads)
Answers = list[list[int]]


@dataclass(frozen=True)
class Settings:
    """What a comparison is made of."""

    threads: int
    num_rounds: int
    batch_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]  # of our side
    compute_types: tuple[str, ...]  # of the peer, by its own names
    peer_python: Path | None
    torch_compile: bool = False  # ours compiled, too


class Ours:
    """The worker's runner behind its scheduler, under its rules of transcripts."""

    def __init__(self, dtype: str, features: np.ndarray, *, torch_compile: bool = False) -> None:
        num_windows = len(features)
        self._config = WorkerConfig(
            model=ModelConfig("benchmark"),
            continuous_batching_batch_size=num_windows,
            torch_compile=torch_compile,
        )
        self._loaded = serve_slots(
            make_model().to(getattr(torch, dtype)),
            self._config,
            end_token_ids=frozenset(),
            device_name="cpu",
            report=lambda _: None,
        )
        self._sounds = [
            EncoderInput(NUM_POSITIONS, features=window.tobytes()) for window in features
        ]

    def __call__(self, num_windows: int) -> tuple[float, Answers]:
        """Seconds that so many windows took, which come at once, and what was said."""
        start = time.perf_counter()
        scheduler, sequences = self._scheduled(num_windows)
        while not scheduler.is_idle:
            plan = scheduler.schedule()
            scheduler.apply(plan, self._loaded.runner.execute(plan))
        seconds = time.perf_counter() - start
        return seconds, [sequence.token_ids[1 + NUM_HEADS :] for sequence in sequences]

    def steps(self, num_windows: int) -> Iterator[float]:
        """The decode steps of so many windows."""
        return decode_steps.served(self._loaded, self._scheduled(num_windows)[0])

    def _scheduled(self, num_windows: int) -> tuple[Scheduler, list[Sequence]]:
        scheduler = self._loaded.scheduler(self._config)
        sampling = SamplingParams(seed=0, temperature=0.0, transcript=RULES)
        sequences = [
            Sequence(
                str(number),
                (START,),
                NUM_HEADS + NUM_TOKENS,
                frozenset(),
                sampling,
                encoder_input=sound,
            )
            for number, sound in enumerate(self._sounds[:num_windows])
        ]
        for sequence in sequences:
            scheduler.add(sequence)
        return scheduler, sequences


class Theirs:
    """The peer's process."""

    def __init__(self, python: Path, asked: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, faster_whisper_peer.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(json.dumps(asked))

    def __call__(self, num_windows: int) -> tuple[float, Answers]:
        """As `Ours`."""
        answer = self._ask(str(num_windows))
        return answer["seconds"], answer["token_ids"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the peer has ended: see its message above")
        return json.loads(answer)


Side = Callable[[int], tuple[float, Answers]]


def compare(settings: Settings) -> dict[str, Any]:
    """Prints a line a batch size and side; the same for programs."""
    features = make_features(max(settings.batch_sizes))
    sides: dict[str, Side] = {f"ours, {dtype}": Ours(dtype, features) for dtype in settings.dtypes}
    if settings.torch_compile:
        sides |= {
            f"ours, {dtype}, compiled": Ours(dtype, features, torch_compile=True)
            for dtype in settings.dtypes
        }
    if settings.peer_python is None:
        print("faster-whisper is left out: name a Python that has it by --faster-whisper-python")
        return _measure(settings, sides)
    with tempfile.TemporaryDirectory() as directory:
        peers = _peers(settings, features, Path(directory))
        found = _measure(settings, sides | peers)
        for peer in peers.values():
            peer.close()
    return found


def compare_steps(settings: Settings) -> dict[str, Any]:
    """Our decode steps, compiled and not; prints a line a dtype and batch size."""
    features = make_features(max(settings.batch_sizes))
    found = {}
    for dtype in settings.dtypes:
        plain, compiled = Ours(dtype, features), Ours(dtype, features, torch_compile=True)
        found[dtype] = decode_steps.compare(plain.steps, compiled.steps, settings.batch_sizes)
    return {"decode_steps": found}


def _peers(settings: Settings, features: np.ndarray, directory: Path) -> dict[str, Theirs]:
    assert settings.peer_python is not None
    np.save(directory / "features.npy", features)
    save_checkpoint(directory / "checkpoint")
    asked = {
        "checkpoint": str(directory / "checkpoint"),
        "model": str(directory / "converted"),
        "features": str(directory / "features.npy"),
        "threads": settings.threads,
        "prompt": [START, ENGLISH, TRANSCRIBE],
        "suppressed": SUPPRESSED,
        "num_tokens": NUM_TOKENS,
        "max_first_time": MAX_FIRST_TIME,
    }
    return {
        f"faster-whisper, {kind}": Theirs(settings.peer_python, {**asked, "compute_type": kind})
        for kind in settings.compute_types
    }


def _measure(settings: Settings, sides: dict[str, Side]) -> dict[str, Any]:
    equal = _shares_of_equal_tokens(sides, settings.batch_sizes[0])
    rates: dict[str, dict[str, float]] = {}
    for size in settings.batch_sizes:
        turns = {name: partial(_audio_per_second, side, size) for name, side in sides.items()}
        for turn in turns.values():
            turn()  # to warm up
        rates[str(size)] = median_rates(turns, settings.num_rounds)
        _print(size, rates[str(size)])
    print(f"tokens as our first side's: {', '.join(f'{n} {s:.0%}' for n, s in equal.items())}")
    return {"audio_seconds_per_second": rates, "share_of_equal_tokens": equal}


def _audio_per_second(side: Side, num_windows: int) -> float:
    seconds, answers = side(num_windows)
    assert [len(answer) for answer in answers] == [NUM_TOKENS] * num_windows
    return num_windows * WINDOW_SECONDS / seconds


def _shares_of_equal_tokens(sides: dict[str, Side], num_windows: int) -> dict[str, float]:
    """How far each side says what the first one does: sums in another order part at near ties."""
    said = {name: [t for a in side(num_windows)[1] for t in a] for name, side in sides.items()}
    first = next(iter(said.values()))
    return {
        name: sum(a == b for a, b in zip(first, tokens, strict=True)) / len(first)
        for name, tokens in said.items()
    }


def _print(num_windows: int, rates: dict[str, float]) -> None:
    ours = next(iter(rates.values()))
    for name, rate in rates.items():
        print(
            f"{num_windows:3} windows  {name:32} {rate:7.1f} s of audio/s   "
            f"our first side is {ours / rate:.2f} times as fast"
        )
