"""4-bit layers by Triton equal products with the dense weight; without a GPU it is interpreted."""

import os

import pytest
import torch
from torch.nn import functional

from tests.gpu_worker.linears.int4_layers import random_bias, random_weight

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and Triton was told too late to interpret", allow_module_level=True)

from gpu_worker.linears import triton_int4
from gpu_worker.linears.triton_int4 import TritonInt4Linear, num_shares

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the output
SHAPES = [(33, 64), (130, 96), (64, 65), (70, 1), (128, 1100)]


def make(
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    has_bias: bool = False,
    is_conv1d: bool = False,
) -> tuple[TritonInt4Linear, torch.Tensor]:
    """A layer on the device, and its dense weight."""
    weight = random_weight(*shape)
    bias = random_bias(shape[0], dtype).to(DEVICE) if has_bias else None
    layer = TritonInt4Linear(weight, shape, dtype, bias, is_conv1d=is_conv1d, device=DEVICE)
    return layer, weight.dense(torch.float32, shape[1]).to(DEVICE)


def distance(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over all numbers."""
    return float((output.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("num_rows", [1, 3, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_rows_are_multiplied_by_the_numbers_themselves(
    shape: tuple[int, int], num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, dense = make(shape, has_bias=num_rows % 2 == 1)
    monkeypatch.setattr(layer, "_dense", None)
    x = torch.randn(num_rows, shape[1], device=DEVICE)
    assert distance(layer(x), functional.linear(x, dense, layer.bias)) < 1e-5


@pytest.mark.parametrize("num_rows", [17, 70, 128])
def test_tiles_of_more_rows_are_multiplied_in_half_precision(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, dense = make((130, 200), torch.float16, has_bias=True)
    monkeypatch.setattr(layer, "_dense", None)
    x = torch.randn(num_rows, 200, device=DEVICE).half()
    assert layer.bias is not None
    expected = functional.linear(x.float(), dense, layer.bias.float())
    assert distance(layer(x), expected) < ROUNDING[torch.float16]


@pytest.mark.parametrize("has_bias", [False, True])
def test_many_rows_are_multiplied_by_the_dense_weight(
    has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, dense = make((130, 96), has_bias=has_bias)
    monkeypatch.setattr(layer, "_product", None)
    x = torch.randn(triton_int4.FEW_ROWS + 1, 96, device=DEVICE)
    assert distance(layer(x), functional.linear(x, dense, layer.bias)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_the_dense_weight_is_exact(shape: tuple[int, int]) -> None:
    layer, dense = make(shape)
    assert torch.equal(layer.unpack(), dense)


@pytest.mark.parametrize("num_rows", [2, 130])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_layers_compute_in_the_activations_precision(dtype: torch.dtype, num_rows: int) -> None:
    if DEVICE.type == "cpu" and dtype == torch.bfloat16 and num_rows < triton_int4.FEW_ROWS:
        pytest.skip("Triton's interpreter multiplies bfloat16 as integers")
    layer, dense = make((70, 256), dtype, has_bias=True)
    x = torch.randn(num_rows, 256, device=DEVICE).to(dtype)
    output = layer(x)
    assert output.dtype == dtype
    assert layer.bias is not None
    expected = functional.linear(x.float(), dense, layer.bias.float())
    assert distance(output, expected) < ROUNDING[dtype]


def test_inputs_may_have_any_strides_and_number_of_dimensions() -> None:
    layer, _ = make((40, 64))
    rows = torch.randn(6, 64, device=DEVICE)
    expected = layer(rows)
    assert torch.equal(layer(rows.t().contiguous().t()), expected)
    assert torch.equal(layer(rows.view(2, 3, 64)), expected.view(2, 3, 40))
    torch.testing.assert_close(layer(rows[0]), expected[0])
    assert layer(rows[:0]).shape == (0, 40)


def test_programs_share_a_weights_groups_without_losing_any() -> None:
    for num_outputs in (1, 64, 576, 4096, 28672):
        for num_groups in (1, 4, 9, 64, 448):
            shares = num_shares(num_outputs, num_groups, num_processors=132)
            assert 1 <= shares <= num_groups
            assert shares * -(-num_groups // shares) >= num_groups
    assert num_shares(4096, 64, num_processors=132) == 9


@pytest.mark.parametrize("num_shares", [1, 2, 5])
def test_sums_of_shares_are_added_to_the_whole(
    num_shares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_int4, "num_shares", lambda *_: num_shares)
    layer, dense = make((130, 600), has_bias=True)
    x = torch.randn(5, 600, device=DEVICE)
    assert distance(layer(x), functional.linear(x, dense, layer.bias)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("is_conv1d", [False, True])
def test_compiled_code_calls_the_layer_and_may_read_its_weight(is_conv1d: bool) -> None:
    layer, dense = make((40, 128), is_conv1d=is_conv1d)
    assert torch.equal(layer.weight, dense.t() if is_conv1d else dense)

    def forward(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x.to(layer.weight.dtype)) + layer.weight.sum()
        return output

    x = torch.randn(2, 128, device=DEVICE)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), forward(x))


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_layer() -> None:
    layer, _ = make((256, 512), torch.bfloat16)
    x = torch.randn(8, 512, device=DEVICE, dtype=torch.bfloat16)
    expected = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(x)
    output.zero_()
    graph.replay()
    assert torch.equal(output, expected)
