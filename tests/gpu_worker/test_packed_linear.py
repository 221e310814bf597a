"""Packed linear layers compute what plain ones do, and stock code cannot tell them apart."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from gpu_worker.linears.packed import PackedLinear, pack_linears
from tests.builders import make_model

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 32, 130])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("sizes", [(5, 3), (64, 96), (577, 130)])
def test_a_packed_layer_equals_a_plain_one(
    sizes: tuple[int, int], has_bias: bool, num_tokens: int
) -> None:
    plain = nn.Linear(*sizes, bias=has_bias)
    packed = PackedLinear(plain.weight.detach(), plain.bias)
    x = torch.randn(1, num_tokens, sizes[0])
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


def test_inputs_may_have_any_strides_and_number_of_dimensions() -> None:
    plain = nn.Linear(24, 40)
    packed = PackedLinear(plain.weight.detach(), plain.bias)
    with torch.inference_mode():
        for x in (torch.randn(24), torch.randn(2, 3, 24), torch.randn(24, 6).t()):
            torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


def test_bfloat16_layers_are_packed_where_the_processor_can() -> None:
    model = nn.Sequential(nn.Linear(64, 96)).to(torch.bfloat16)
    plain = copy.deepcopy(model)
    pack_linears(model, smallest=0)
    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert isinstance(model[0], PackedLinear if can else nn.Linear)
    x = torch.randn(3, 64).bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x), rtol=2e-2, atol=2e-2)


def test_in_float32_only_large_layers_are_packed() -> None:
    model = nn.Sequential(nn.Linear(256, 511), nn.Linear(512, 256))
    pack_linears(model)
    assert [type(layer) for layer in model] == [nn.Linear, PackedLinear]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_precisions_stay_plain(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).to(dtype)
    assert pack_linears(model, smallest=0) == 0
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "mixtral", "gemma2"])
def test_a_packed_model_equals_the_plain_one(model_type: str) -> None:
    model = make_model(model_type)
    plain = copy.deepcopy(model)
    pack_linears(model, smallest=0)
    assert not [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)]
    token_ids = torch.randint(3, 190, (2, 17))
    with torch.inference_mode():
        expected, logits = plain(token_ids).logits, model(token_ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert model.dtype == plain.dtype


def test_a_layer_of_two_names_is_packed_once_under_both() -> None:
    model = nn.ModuleDict({"first": nn.Linear(24, 40)})
    model["second"] = model["first"]
    model.register_module("none", None)
    plain = copy.deepcopy(model)
    pack_linears(model, smallest=0)
    assert isinstance(model["first"], PackedLinear)
    assert model["second"] is model["first"]
    x = torch.randn(3, 24)
    torch.testing.assert_close(model["second"](x), plain["second"](x), rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_packed_and_what_is_held_twice_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model("llama", tie_word_embeddings=True)
    embedding = model.get_input_embeddings().get_parameter("weight")
    with caplog.at_level(logging.INFO):
        twice_bytes = pack_linears(model, smallest=0)
    assert twice_bytes >= embedding.nbytes
    assert f"{twice_bytes / 2**20:.1f} MiB held twice" in caplog.text
    assert torch.equal(model.get_output_embeddings().weight, embedding)
    assert pack_linears(make_model("llama"), smallest=0) == 0


def test_the_plain_weight_is_freed() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    weight = weakref.ref(model[0].weight)
    pack_linears(model, smallest=0)
    gc.collect()
    assert weight() is None


def test_a_layer_that_is_used_twice_is_packed_once() -> None:
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"first": layer, "later": nn.Sequential(layer)})
    pack_linears(model, smallest=0)
    assert isinstance(model["first"], PackedLinear)
    assert list(model["later"].children()) == [model["first"]]


@torch.inference_mode()
def test_stock_code_may_read_the_weight() -> None:
    plain = nn.Linear(24, 40)
    weight = PackedLinear(plain.weight.detach(), None).weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.dtype, weight.device.type, weight.shape) == (torch.float32, "cpu", (40, 24))
    assert torch.equal(weight, plain.weight)
    x = torch.randn(2, 24)
    expected = functional.linear(x, plain.weight)
    torch.testing.assert_close(functional.linear(x, weight), expected)
    torch.testing.assert_close(x @ weight.t() * 2, expected * 2)


@torch.inference_mode()
def test_the_weight_of_gpt2s_layer_keeps_its_orientation() -> None:
    plain = Conv1D(40, 24)
    packed = PackedLinear(plain.weight.detach().t(), plain.bias, is_conv1d=True)
    assert packed.weight.shape == (24, 40)
    assert torch.equal(packed.weight, plain.weight)
    x = torch.randn(3, 24)
    torch.testing.assert_close(packed(x), plain(x))


class _Doubling(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_layers_that_do_more_than_their_class_says_stay_plain() -> None:
    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda _, __, output: output + 1)
    model = nn.Sequential(_Doubling(8, 8), hooked, nn.Linear(8, 8))
    pack_linears(model, smallest=0)
    assert [type(m) for m in model] == [_Doubling, nn.Linear, PackedLinear]


@torch.inference_mode()
@pytest.mark.parametrize("is_conv1d", [False, True])
def test_compiled_code_calls_the_layer_and_may_read_its_weight(is_conv1d: bool) -> None:
    layer = PackedLinear(torch.randn(40, 24), None, is_conv1d=is_conv1d)

    def forward(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x.to(layer.weight.dtype)) + layer.weight.sum()
        return output

    x = torch.randn(2, layer.in_features)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), forward(x))
