"""Native layers of dense weights: as plain ones compute, whatever company a row has."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from gpu_worker.best import best_tokens
from gpu_worker.cpu_kernels.linear import NativeLinears, load_linears
from gpu_worker.linears.choice import settle_linears
from gpu_worker.linears.lazy_logits import LazyLogits
from gpu_worker.linears.native import NativeLinear
from shared.config import WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import GREEDY, make_model
from tests.gpu_worker.encoder_decoders import make_t5, requests, serve_all, served
from tests.gpu_worker.engine import SETTINGS, Request, assert_as_generated, run

DTYPES = (torch.float32, torch.bfloat16)
DEPTHS = (3, 64, 577, 2100)  # the last is longer than the part of a strip that is read at once


def library(dtype: torch.dtype) -> NativeLinears:
    """The test is skipped where this machine cannot multiply such weights."""
    loaded = load_linears()
    if loaded is None or not loaded.has(dtype):
        pytest.skip("needs a C++ compiler and AVX-512 VNNI; for bfloat16, its products or AMX")
    return loaded


def layer_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeLinear:
    """A native layer."""
    return NativeLinear(library(weight.dtype), weight, bias)


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [0, 1, 12, 13, 16, 17, 33, 100])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_native_layer_equals_a_plain_one(dtype: torch.dtype, depth: int, num_rows: int) -> None:
    weight, bias = torch.randn(70, depth).to(dtype), torch.randn(70).to(dtype)
    x = torch.randn(num_rows, depth).to(dtype)
    expected = functional.linear(x.double(), weight.double(), bias.double()).to(dtype)
    torch.testing.assert_close(layer_of(weight, bias)(x), expected, rtol=1.6e-2, atol=1e-4)
    if dtype == torch.float32:
        torch.testing.assert_close(layer_of(weight, bias)(x), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_bit_for_bit_in_any_company(
    dtype: torch.dtype, depth: int, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        layer = layer_of(torch.randn(200, depth).to(dtype))
        x = (torch.randn(70, depth) * torch.logspace(-3, 3, 70)[:, None]).to(dtype)
        alone = torch.cat([layer.compute(row[None]) for row in x])
        for size in (2, 7, 12, 13, 16, 32, 70):
            assert torch.equal(torch.cat([layer.compute(part) for part in x.split(size)]), alone)
            best = [layer.best(part) for part in x.split(size)]
            assert torch.equal(torch.cat([value for value, _ in best]), alone.amax(-1).float())
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_outputs", [1, 31, 1000, 3001])
def test_the_best_is_the_largest_of_all_outputs(dtype: torch.dtype, num_outputs: int) -> None:
    weight, x = torch.randn(num_outputs, 24).to(dtype), torch.randn(40, 24).to(dtype)
    layer = layer_of(weight, torch.randn(num_outputs))
    values, places = layer.best(x)
    expected, first = layer.compute(x).float().max(-1)
    assert torch.equal(values, expected)
    assert torch.equal(places, first)


@torch.inference_mode()
def test_of_equal_outputs_the_first_is_the_best() -> None:
    weight = torch.zeros(3000, 8)
    for places in ([7, 2999], [40, 41, 900], [31, 32]):
        equal = weight.clone()
        equal[places] = 1.0
        values, first = layer_of(equal).best(torch.ones(20, 8))
        assert first.tolist() == [places[0]] * 20
        assert values.tolist() == [8.0] * 20


@torch.inference_mode()
def test_rows_without_numbers_are_seen() -> None:
    layer, x = layer_of(torch.randn(500, 8)), torch.randn(9, 8)
    x[4, 3], x[6, 0] = math.nan, math.inf
    values, _ = layer.best(x)
    assert values.isnan().tolist() == [n == 4 for n in range(9)]
    assert values[6].item() == math.inf
    hopeless = layer_of(torch.randn(500, 8), torch.full((500,), -math.inf))
    assert hopeless.best(x[:2])[0].tolist() == [-math.inf] * 2


# ── logits that nobody looks at ──────────────────────────────────────────────────────────────────


@torch.inference_mode()
def test_logits_are_computed_once_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, states = layer_of(torch.randn(600, 16)), torch.randn(1, 3, 16)
    layer.is_lazy = True
    calls = head_calls(monkeypatch)
    logits = layer(states)
    assert isinstance(logits, LazyLogits)
    assert (logits.shape, logits.dtype) == ((1, 3, 600), torch.float32)
    own = logits.first()
    values, places = best_tokens(own)
    assert calls == ["best"]
    assert torch.equal(own.argmax(-1), places)
    assert torch.equal(own[1:].amax(-1), values[1:])
    assert calls == ["best", "compute"]


@torch.inference_mode()
def test_logits_that_stock_code_changes_in_place_are_the_changed_ones() -> None:
    layer, states = layer_of(torch.randn(600, 16)), torch.randn(1, 3, 16)
    expected = layer.compute(states)[0]
    layer.is_lazy = True
    scaled, without = layer(states), layer(states)
    scaled *= -1
    without[..., expected[0].argmax()] = -1e9
    expected_without = expected.clone()
    expected_without[:, expected[0].argmax()] = -1e9
    for logits, wanted in ((scaled, -expected), (without, expected_without)):
        assert torch.equal(logits.first() + 0, wanted)
        assert torch.equal(best_tokens(logits.first())[1], wanted.argmax(-1))


@torch.inference_mode()
def test_what_is_no_input_is_refused_before_its_address_is_used() -> None:
    layer = layer_of(torch.randn(40, 16))
    for x in (torch.randn(2, 17), torch.randn(2, 15), torch.randn(2, 16).bfloat16()):
        with pytest.raises(ValueError, match="is no input of 16"):
            layer(x)
        with pytest.raises(ValueError, match="is no input of 16"):
            layer.best(x)


def head_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How output layers are asked from now on."""
    calls: list[str] = []
    for name in ("best", "compute"):
        plain = getattr(NativeLinear, name)

        def asked(self: NativeLinear, x: torch.Tensor, name: str = name, plain: Any = plain) -> Any:
            if self.is_lazy:
                calls.append(name)
            return plain(self, x)

        monkeypatch.setattr(NativeLinear, name, asked)
    return calls


PROMPTS = tuple(tuple(range(5 + n, 10 + 5 * n)) for n in range(5))


def test_greedy_steps_compute_no_logits_and_answer_as_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library(torch.float32)
    calls, model = head_calls(monkeypatch), make_model("llama")
    wanted = [Request(prompt, 7) for prompt in PROMPTS]
    done = run(model, wanted)
    assert set(calls) == {"best"}
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        (GREEDY, "best"),
        pytest.param(SamplingParams(seed=3, temperature=1.0), "compute", marks=pytest.mark.slow),
    ],
    ids=["greedy", "drawn"],
)
def test_compiled_steps_leave_the_output_layer_to_whoever_looks(
    sampling: SamplingParams, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(torch.float32)
    calls, model = head_calls(monkeypatch), make_model("llama", num_hidden_layers=1)
    settings = replace(SETTINGS, torch_compile=True)
    wanted = [Request(prompt, 5, sampling) for prompt in PROMPTS]
    answers = run(model, wanted, settings=settings).answers
    assert answers == run(model, wanted).answers
    assert set(calls) == {asked}


def test_a_greedy_answer_is_the_same_beside_those_that_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library(torch.float32)
    model = make_model("llama")
    alone = run(model, [Request(PROMPTS[0], 7)]).answers[0]
    calls = head_calls(monkeypatch)
    drawn = [Request(prompt, 7, SamplingParams(seed=3, temperature=1.0)) for prompt in PROMPTS[1:]]
    assert run(model, [Request(PROMPTS[0], 7), *drawn]).answers[0] == alone
    assert "compute" in calls


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite"])
def test_logits_that_stock_code_changes_are_computed(model_type: str) -> None:
    library(torch.float32)
    model = make_model(model_type)
    wanted = [Request(prompt, 5) for prompt in PROMPTS]
    for request, answer in zip(wanted, run(model, wanted).answers, strict=True):
        assert_as_generated(model, request, answer)


def test_a_row_of_no_numbers_fails_alone() -> None:
    library(torch.float32)
    model = make_model("llama")
    head = model.get_output_embeddings()
    settle_linears(model, WorkerConfig())
    assert model.get_output_embeddings() is not head
    states = torch.randn(1, 3, model.config.hidden_size)
    states[0, 1] = math.nan
    with torch.inference_mode():
        values, _ = best_tokens(model.get_output_embeddings()(states).first())
    assert values.isfinite().tolist() == [True, False, True]


def test_a_t5_answers_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    library(torch.float32)
    calls, answers = head_calls(monkeypatch), []
    for settled in (False, True):
        model = make_t5("gated t5")
        if settled:
            settle_linears(model, WorkerConfig())
        runner, scheduler = served(model)
        sequences = requests(5)
        serve_all(runner, scheduler, sequences)
        answers.append([sequence.token_ids for sequence in sequences])
    assert answers[0] == answers[1]
    assert set(calls) == {"best"}
