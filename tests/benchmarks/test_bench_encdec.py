"""The comparison of encoder-decoders: turns, the peer's protocol, and answers of equal length."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.encdec import decode_steps, turns, whisper
from benchmarks.encdec.turns import median_rates
from benchmarks.encdec.whisper import NUM_TOKENS, Answers, Settings, Theirs, compare
from scheduler.plan import StepPlan, StepResult
from tests.gpu_worker.encoder_decoders import make_t5, requests, served

ENGINE = """
class StorageView:
    from_array = staticmethod(lambda array: array)

class Result:
    def __init__(self, tokens):
        self.sequences_ids = [tokens]

class models:
    class Whisper:
        def __init__(self, path, compute_type, intra_threads):
            self.compute_type = compute_type

        def generate(self, features, prompts, *, max_length, **_):
            assert len(features) == len(prompts)
            return [Result(prompt + [7] * (max_length // 2)) for prompt in prompts]
"""
WITHOUT_PEER = Settings(1, 1, (1, 2), ("float32",), ("float32",), None)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theirs]:
    """A peer whose engine says its prompt and sevens."""
    (tmp_path / "ctranslate2.py").write_text(ENGINE)
    np.save(tmp_path / "features.npy", np.zeros((4, 2, 2)))
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = {
        "checkpoint": "",
        "model": str(tmp_path / "model"),
        "features": str(tmp_path / "features.npy"),
        "compute_type": "float32",
        "threads": 1,
        "prompt": [1, 2],
        "suppressed": [],
        "num_tokens": 3,
        "max_first_time": 50,
    }
    theirs = Theirs(Path(sys.executable), asked)
    yield theirs
    theirs.close()


class Said:
    """A side that answers at once."""

    def __init__(self, num_tokens: int = NUM_TOKENS) -> None:
        self._num_tokens = num_tokens

    def __call__(self, num_windows: int) -> tuple[float, Answers]:
        return 0.5, [[7] * self._num_tokens] * num_windows


def test_sides_take_turns_and_have_their_medians() -> None:
    order: list[str] = []
    values = iter([1.0, 10.0, 5.0, 30.0, 3.0, 20.0])

    def side(name: str) -> float:
        order.append(name)
        return next(values)

    sides = {"a": lambda: side("a"), "b": lambda: side("b")}
    assert median_rates(sides, 3) == {"a": 3.0, "b": 20.0}
    assert order == ["a", "b"] * 3


def test_the_peer_answers_as_many_windows_as_each_line_asks(peer: Theirs) -> None:
    for num_windows in (1, 4):
        seconds, answers = peer(num_windows)
        assert seconds > 0
        assert answers == [[1, 2, 7, 7, 7]] * num_windows


def test_without_a_peer_ours_is_measured_alone_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whisper, "Ours", lambda *_: Said())
    found = compare(WITHOUT_PEER)
    assert found["audio_seconds_per_second"] == {
        "1": {"ours, float32": 60.0},
        "2": {"ours, float32": 120.0},
    }
    assert "faster-whisper is left out" in capsys.readouterr().out


def test_compiled_ours_are_a_side_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper, "Ours", lambda *_, torch_compile=False: Said())
    found = compare(replace(WITHOUT_PEER, torch_compile=True))
    assert [*found["audio_seconds_per_second"]["1"]] == ["ours, float32", "ours, float32, compiled"]


def test_steps_of_two_sides_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Iterator[float]:
        for _ in range(3):
            order.append(name)
            yield seconds

    found = decode_steps.compare(lambda _: side("a", 0.002), lambda _: side("b", 0.001), (4,))
    assert found == {"4": {"uncompiled_ms": 2.0, "compiled_ms": 1.0, "ratio": 0.5}}
    assert order == ["a", "b"] * 6, "once to warm up"
    assert "  4 rows" in capsys.readouterr().out


def test_what_is_timed_are_the_steps_that_only_decode() -> None:
    runner, scheduler = served(make_t5("t5"))
    for sequence in requests(2, longest_start=4):
        scheduler.add(sequence)
    executed: list[StepPlan] = []

    def execute(plan: StepPlan) -> StepResult:
        executed.append(plan)
        return runner.execute(plan)

    loaded: Any = SimpleNamespace(runner=SimpleNamespace(execute=execute))
    times = list(decode_steps.served(loaded, scheduler))
    assert scheduler.is_idle
    assert [bool(plan.admissions) for plan in executed] == [True] + [False] * len(times)
    assert len(times) > 1


def test_answers_of_another_length_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper, "Ours", lambda *_: Said(NUM_TOKENS - 1))
    with pytest.raises(AssertionError):
        compare(WITHOUT_PEER)
