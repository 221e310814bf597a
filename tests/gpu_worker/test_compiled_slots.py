"""Compiled, encoder-decoders answer as before, by two graphs of a decode step and no more."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from gpu_worker.families import compiled_adapter
from gpu_worker.families.compiled_adapter import CompiledAdapter
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.hearing import WindowSequence
from gpu_worker.linears.packed import pack_linears
from gpu_worker.slot_loading import serve_slots
from scheduler.plan import StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.config import ModelConfig, WorkerConfig
from tests.gpu_worker import encoder_decoders as t5s
from tests.gpu_worker import test_alignment, test_whisper

pytestmark = pytest.mark.usefixtures("fresh_compiler")

TWO_LAYERS = {"num_layers": 2, "num_decoder_layers": 2}
NUM_GRAPHS = 2


@dataclass
class Served:
    """A compiled model's answers, and what they took."""

    sequences: list[Sequence]
    plans: list[StepPlan] = field(default_factory=list)
    stock_shapes: list[tuple[int, ...]] = field(default_factory=list)  # tokens of stock passes
    compiled_rows: list[int] = field(default_factory=list)  # of each call of compiled code

    @property
    def decodes(self) -> list[int]:
        """The highest row of each step's single tokens, and one more."""
        return [
            max(rows) + 1
            for plan in self.plans
            if (rows := [c.row for c in plan.chunks if len(c.token_ids) == 1 and not c.num_aligned])
        ]


class _Recording:
    """A runner that keeps every plan."""

    def __init__(self, runner: EncoderDecoder, plans: list[StepPlan]) -> None:
        self._runner = runner
        self._plans = plans

    def execute(self, plan: StepPlan) -> StepResult:
        self._plans.append(plan)
        return self._runner.execute(plan)


def serve_compiled(
    model: Any, runner: EncoderDecoder, scheduler: Scheduler, sequences: list[Sequence]
) -> Served:
    """Compiles, then serves; a graph that were made later would be an error."""
    stages: list[str] = []
    runner.compile("reduce-overhead", stages.append)
    assert stages == [
        "compiling the decode step of one row (1 of 2)",
        "compiling the decode step of any number of rows (2 of 2)",
    ]
    assert counters["stats"]["unique_graphs"] == NUM_GRAPHS
    adapter: Any = runner._adapter
    assert isinstance(adapter, CompiledAdapter)
    done = Served(sequences)
    decode = adapter._decode

    def counted(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        done.compiled_rows.append(len(token_ids))
        states: torch.Tensor = decode(token_ids, positions)
        return states

    adapter._decode = counted
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: done.stock_shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    recording: Any = _Recording(runner, done.plans)
    with torch._dynamo.config.patch(error_on_recompile=True):
        t5s.serve_all(recording, scheduler, sequences)
    return done


def assert_compiled(done: Served) -> None:
    """Every decode step was a compiled call, and all graphs had been made before."""
    assert done.compiled_rows == done.decodes
    assert {1, 2, 5} <= set(done.decodes)
    assert all(num_tokens > 1 for _, num_tokens in done.stock_shapes)
    assert counters["stats"]["unique_graphs"] == NUM_GRAPHS
    assert not counters["graph_break"]


def serve_t5(name: str, **sizes: Any) -> None:
    """Texts whose answers are what they are uncompiled, and what `generate()` says."""
    make: Callable[[], Any] = lambda: t5s.make_t5(name, **sizes)  # noqa: E731 — the same model anew
    plain, compiled = t5s.requests(20, longest_start=4), t5s.requests(20, longest_start=4)
    t5s.serve_all(*t5s.served(make()), plain)
    model = make()
    done = serve_compiled(model, *t5s.served(model), compiled)
    assert_compiled(done)
    assert done.stock_shapes, "prompts of several tokens are stock"
    assert {c.start > 16 for plan in done.plans for c in plan.chunks} == {True, False}
    assert [s.token_ids for s in compiled] == [s.token_ids for s in plain]
    assert [found for s in compiled if (found := t5s.difference(make(), s))] == []


@pytest.mark.slow
def test_every_decode_step_of_a_t5_is_compiled() -> None:
    serve_t5("t5", **TWO_LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated t5", "mt5", "umt5"])
def test_its_kin_compile_too(name: str) -> None:
    serve_t5(name)


def test_every_decode_step_of_a_whisper_is_compiled_and_alignment_is_not() -> None:
    def windows() -> list[Sequence]:
        aligned = (test_alignment.window(number, number - 5) for number in range(12, 16))
        return [*test_whisper.windows(12), *aligned]

    def served(model: Any) -> tuple[EncoderDecoder, Scheduler]:
        pack_linears(model, smallest=1000)
        return test_whisper.served(model)

    plain, compiled = windows(), windows()
    t5s.serve_all(*served(test_alignment.model()), plain)
    model = test_alignment.model()
    done = serve_compiled(model, *served(model), compiled)
    assert_compiled(done)
    assert [s.token_ids for s in compiled] == [s.token_ids for s in plain]
    for ours, stock in zip(compiled, plain, strict=True):
        if isinstance(ours, WindowSequence) and isinstance(stock, WindowSequence):
            heard, expected = (np.frombuffer(s.alignment, "<f4") for s in (ours, stock))
            assert len(heard) > 0
            assert np.allclose(heard, expected, rtol=1e-3, atol=1e-3)
    reference = test_whisper.make_whisper("turbo")
    alone = [s for s in compiled if not isinstance(s, WindowSequence)]
    assert [found for s in alone if (found := test_whisper.difference(reference, s))] == []


def test_a_model_that_resists_is_served_uncompiled_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model: Any = t5s.make_t5("t5", **TWO_LAYERS)
    norm = model.decoder.final_layer_norm
    stock = type(norm).forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()  # as code that asks what a tensor holds
        normed: torch.Tensor = stock(norm, hidden)
        return normed

    norm.forward = forward
    runner, scheduler = t5s.served(model)
    with caplog.at_level(logging.WARNING, "gpu_worker"):
        runner.compile("default", lambda _: None)
    (warning,) = [m for m in caplog.messages if "--torch-compile" in m]
    assert "uncompiled" in warning
    assert not isinstance(runner._adapter, CompiledAdapter)
    sequences = t5s.requests(4)
    t5s.serve_all(runner, scheduler, sequences)
    reference = t5s.make_t5("t5", **TWO_LAYERS)
    assert [found for s in sequences if (found := t5s.difference(reference, s))] == []


@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_settings_mode_is_compiled_with_before_the_model_is_ready(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, torch.device]] = []
    monkeypatch.setattr(compiled_adapter, "compiled", lambda function, _: function)
    monkeypatch.setattr(compiled_adapter, "options_of", lambda *asks: asked.append(asks))
    stages: list[str] = []
    loaded = serve_slots(
        t5s.make_t5("t5", **TWO_LAYERS),
        WorkerConfig(
            continuous_batching_batch_size=num_rows,
            model=ModelConfig("-"),
            torch_compile=True,
            torch_compile_mode="max-autotune",
        ),
        end_token_ids=frozenset(),
        device_name="cpu",
        report=stages.append,
    )
    assert isinstance(loaded.runner, EncoderDecoder)
    assert isinstance(loaded.runner._adapter, CompiledAdapter)
    assert asked == [("max-autotune", torch.device("cpu"))]
    assert [stage.partition(" (")[0] for stage in stages[1:]] == [
        "compiling the decode step of one row",
        "compiling the decode step of any number of rows",
    ][:num_rows]
