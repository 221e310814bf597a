"""Layers of 8-bit numbers: the native kernel equals its plain twin, and a row needs nobody else."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gpu_worker.cpu_kernels.linear import load_linears
from gpu_worker.linears import int8
from gpu_worker.linears.choice import settle_linears
from gpu_worker.linears.fused import SharedProduct
from gpu_worker.linears.int8 import Int8, TorchInt8Linear
from gpu_worker.linears.native import NativeLinear
from gpu_worker.linears.opaque_linear import OpaqueLinear
from gpu_worker.linears.replacing import replace_linears
from shared.config import WorkerConfig
from tests.builders import make_model
from tests.gpu_worker.encoder_decoders import make_t5, requests, serve_all, served
from tests.gpu_worker.engine import SETTINGS, Request, run

INT8 = WorkerConfig(quantization="int8")
PLAIN_INT8 = replace(INT8, cpu_kernels=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def native(weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeLinear:
    """A layer of the native kernel; the test is skipped where there is none."""
    library = load_linears()
    if library is None:
        pytest.skip("needs a C++ compiler and AVX-512 VNNI")
    parts = Int8(None).quantize(weight)
    return NativeLinear(library, parts["weight"], bias, scales=parts["scales"], dtype=weight.dtype)


def plain(weight: torch.Tensor, bias: torch.Tensor | None = None) -> TorchInt8Linear:
    """Its twin."""
    return TorchInt8Linear(Int8(None).quantize(weight), weight.dtype, bias)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers, of whatever kind."""
    kinds = (nn.Linear, Conv1D, OpaqueLinear)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 12, 13, 16, 17, 33, 100])
@pytest.mark.parametrize("sizes", [(5, 3), (96, 64), (130, 577), (33, 2), (40, 4300)])
def test_the_kernel_equals_its_twin(sizes: tuple[int, int], num_rows: int) -> None:
    weight, bias = torch.randn(*sizes), torch.randn(sizes[0])
    x = torch.randn(num_rows, sizes[1])
    ours, theirs = native(weight, bias).compute(x), plain(weight, bias).compute(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [native, plain])
def test_inputs_of_any_precision_shape_and_strides(kind: Any, dtype: torch.dtype) -> None:
    weight = torch.randn(40, 24).to(dtype)
    layer, dense = kind(weight), weight.float()
    for x in (torch.randn(24), torch.randn(2, 3, 24), torch.randn(24, 6).t()):
        output = layer.compute(x.to(dtype))
        assert output.dtype == dtype
        expected = x.to(dtype).float() @ dense.t()
        torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.2)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [native, plain])
def test_a_product_is_within_a_hundredth_of_the_dense_one(kind: Any) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(256, 512), torch.randn(64, 512)
    error = kind(weight).compute(x) - x @ weight.t()
    assert error.norm() < 0.015 * (x @ weight.t()).norm()


@torch.inference_mode()
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_the_same_bit_for_bit_in_any_company(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        layer = native(torch.randn(200, 192))
        x = torch.randn(70, 192) * torch.logspace(-3, 3, 70)[:, None]
        alone = torch.cat([layer.compute(row[None]) for row in x])
        for size in (2, 7, 13, 16, 32, 70):
            assert torch.equal(torch.cat([layer.compute(part) for part in x.split(size)]), alone)
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [native, plain])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_without_numbers_harms_itself_alone(kind: Any, bad: float) -> None:
    layer, x = kind(torch.randn(40, 80)), torch.randn(6, 80)
    expected = layer.compute(x)
    x[2, 33] = bad
    output = layer.compute(x)
    assert not output[2].isfinite().any()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(output[others], expected[others])


@torch.inference_mode()
@pytest.mark.parametrize("kind", [native, plain])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-37, 1e-36, 1e30])
def test_a_row_of_any_size_is_quantised_or_counts_for_nothing(kind: Any, size: float) -> None:
    """127 over its largest number must be one, too."""
    torch.manual_seed(0)
    weight, x = torch.randn(40, 80), torch.randn(1, 80)
    expected = (size * (x @ weight.t())).double()
    output = kind(weight).compute(size * x).double()
    if size < 1e-36:
        assert not output.any()
    else:
        assert (output - expected).norm() < 0.03 * expected.norm()


def test_weights_of_nothing_stay_nothing() -> None:
    weight = torch.randn(8, 16)
    weight[3] = 0
    for layer in (native(weight), plain(weight)):
        assert torch.equal(layer.unpack()[3], torch.zeros(16))
        assert torch.equal(layer.compute(torch.randn(2, 16))[:, 3], torch.zeros(2))
        assert torch.equal(layer.compute(torch.zeros(2, 16)), torch.zeros(2, 8))


@pytest.mark.parametrize("kind", [native, plain])
def test_stock_code_may_read_the_weight(kind: Any) -> None:
    weight = torch.randn(40, 24)
    layer = kind(weight)
    assert (layer.weight.dtype, layer.weight.shape) == (torch.float32, (40, 24))
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.weight * 1 - weight).abs() <= step / 2 + 1e-6).all()


@torch.inference_mode()
def test_compiled_code_calls_the_layer() -> None:
    layer, x = native(torch.randn(40, 24)), torch.randn(3, 24)
    compiled = torch.compile(lambda x: layer(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x) + 1)


@pytest.mark.parametrize("shape", [(40, 24), (1, 300), (7, 5)])
def test_a_weight_is_quantised_the_same_in_blocks(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(shape).bfloat16()
    whole = Int8(None).quantize(weight)
    monkeypatch.setattr(int8, "_BLOCK", 100)
    parts = Int8(None).quantize(weight)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], part) for name, part in whole.items())


# ── whole models ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [INT8, PLAIN_INT8], ids=["native", "plain torch"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "gemma2", "opt"])
def test_no_layer_of_a_model_stays_dense(model_type: str, settings: WorkerConfig) -> None:
    model = make_model(model_type)
    dense = copy.deepcopy(model)
    assert settle_linears(model, settings) == "int8, others float32"
    kinds = (NativeLinear,) if load_linears() and settings.cpu_kernels else (TorchInt8Linear,)
    assert all(isinstance(layer, kinds) for layer in layers_of(model).values())
    assert layers_of(model).keys() == layers_of(dense).keys()
    token_ids = torch.randint(3, 190, (2, 17))
    with torch.inference_mode():
        expected, logits = dense(token_ids).logits, model(token_ids).logits
    assert (logits - expected).norm() < 0.1 * expected.norm()


def prompts() -> list[Request]:
    """Of mixed lengths, so that steps hold prompts and single tokens together."""
    return [Request(tuple(range(5 + n, 10 + 5 * n)), 6 + n) for n in range(8)]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_every_answer_equals_its_solo_run(model_type: str) -> None:
    settings = replace(SETTINGS, quantization="int8")
    model = make_model(model_type)
    together = run(model, prompts(), settings=settings)
    assert any(plan.is_mixed for plan in together.plans)
    alone = [run(model, [request], settings=settings).answers[0] for request in prompts()]
    assert together.answers == alone


def test_every_answer_of_a_t5_equals_its_solo_run() -> None:
    answers: list[list[list[int]]] = []
    for at_once in (6, 1):
        model = make_t5("gated t5")
        settle_linears(model, INT8)
        assert all(isinstance(layer, OpaqueLinear) for layer in layers_of(model).values())
        runner, scheduler = served(model)
        sequences = requests(6)
        for start in range(0, 6, at_once):
            serve_all(runner, scheduler, sequences[start : start + at_once])
        answers.append([sequence.token_ids for sequence in sequences])
    assert answers[0] == answers[1]


def tiny_llama() -> PreTrainedModel:
    """One that has all of the usual siblings."""
    return make_model("llama")


def test_layers_of_the_same_input_are_computed_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    native(torch.randn(8, 8))
    model = tiny_llama()
    settle_linears(model, INT8)
    calls: list[int] = []
    layers: list[Any] = list(layers_of(model).values())
    for product in {layer.shared._product if layer.shared else layer._product for layer in layers}:
        monkeypatch.setattr(product, "_multiply", _counted(product._multiply, calls))
    with torch.inference_mode():
        assert model(torch.randint(3, 190, (1, 9))).logits.isfinite().all()
    num_layers = model.config.num_hidden_layers
    assert sorted(calls) == sorted([3, 1, 2, 1] * num_layers + [1])


def _counted(multiply: Any, calls: list[int]) -> Any:
    def count(layers: int, num_layers: int, given: int) -> None:
        calls.append(num_layers)
        multiply(layers, num_layers, given)

    return count


@torch.inference_mode()
def test_siblings_that_are_given_other_inputs_compute_alone() -> None:
    weights = [torch.randn(8, 16) for _ in range(3)]
    layers = [native(weight) for weight in weights]
    expected = [native(weight) for weight in weights]
    SharedProduct(layers)
    first, second = torch.randn(3, 16), torch.randn(3, 16)
    for order in ((0, 1, 2), (0, 0, 1), (2, 1, 0, 2)):
        for turn, number in enumerate(order):
            x = first if turn % 2 else second
            assert torch.equal(layers[number](x), expected[number](x))
    assert torch.equal(layers[1](first.clone()), expected[1](first))


def test_queries_of_cross_attention_are_not_fused_with_the_encoders_keys() -> None:
    native(torch.randn(8, 8))
    model: Any = make_t5("t5")
    settle_linears(model, INT8)
    layer = model.decoder.block[0].layer
    assert layer[0].SelfAttention.q.shared is layer[0].SelfAttention.v.shared is not None
    assert layer[1].EncDecAttention.q.shared is None


def test_weights_are_quantised_once_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, kept = tmp_path / "model.safetensors", tmp_path / "kept"
    checkpoint.write_bytes(b"weights")
    settings = replace(PLAIN_INT8, cpu_kernels_directory=str(kept))
    model = tiny_llama()
    again, other = copy.deepcopy(model), copy.deepcopy(model)
    settle_linears(model, settings, [checkpoint])

    def quantize_again(self: Int8, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError(weight.shape)

    monkeypatch.setattr(int8.Int8, "quantize", quantize_again)
    settle_linears(again, settings, [checkpoint])
    token_ids = torch.randint(3, 190, (1, 7))
    with torch.inference_mode():
        assert torch.equal(again(token_ids).logits, model(token_ids).logits)
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(AssertionError):
        settle_linears(other, settings, [checkpoint])


def test_weights_of_another_precision_are_quantised_by_themselves(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    settings = replace(PLAIN_INT8, cpu_kernels_directory=str(tmp_path / "kept"))
    model = tiny_llama()
    rounded, alone = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    settle_linears(rounded, settings, [checkpoint])
    settle_linears(model, settings, [checkpoint])
    settle_linears(alone, PLAIN_INT8)
    token_ids = torch.randint(3, 190, (1, 7))
    with torch.inference_mode():
        assert torch.equal(model(token_ids).logits, alone(token_ids).logits)


def test_a_file_of_weights_that_is_broken_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    settings = replace(PLAIN_INT8, cpu_kernels_directory=str(tmp_path))
    model = tiny_llama()
    again = copy.deepcopy(model)
    settle_linears(model, settings, [checkpoint])
    (file,) = tmp_path.glob("weights-*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    settle_linears(again, settings, [checkpoint])
    assert "made anew" in caplog.text
    assert file.read_bytes() == whole


def test_each_layers_kernel_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    with caplog.at_level("INFO"):
        settle_linears(model, PLAIN_INT8)
    num_layers = 7 * model.config.num_hidden_layers + 1
    assert f"int8 weights: int8 in plain torch ({num_layers} layers)" in caplog.text
    assert "dense: none" in caplog.text
    assert replace_linears(model, lambda _, __: None).kept == ()
