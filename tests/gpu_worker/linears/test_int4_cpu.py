"""4-bit layers on the CPU: what they compute, and the native one's rows independent to the bit."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from gpu_worker.cpu_kernels.int4 import pack_blocks, unpack_blocks
from gpu_worker.linears.opaque_linear import OpaqueLinear
from tests.gpu_worker.linears.int4_layers import (
    expected_output,
    in_torch,
    native,
    random_bias,
    random_weight,
)

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of the output
LOSS = 0.02  # of 8 bits for activations, or of bfloat16 for them, scales and zeros
MAKERS = [native, in_torch]


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """A sum that happens to be near 0 has no relative error worth a name."""
    torch.manual_seed(0)


def distance(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over all numbers."""
    return float((output.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("num_rows", [1, 2, 3, 12, 13, 100, 193])
@pytest.mark.parametrize("shape", [(32, 64), (33, 128), (1, 192), (80, 96), (577, 1), (96, 130)])
def test_the_native_layer_equals_plain_torch(shape: tuple[int, int], num_rows: int) -> None:
    weight, bias = random_weight(*shape), random_bias(shape[0], torch.float32)
    x = torch.randn(num_rows, shape[1])
    output = native(weight, shape, bias=bias)(x)
    assert distance(output, expected_output(weight, x, bias)) < 1e-6


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_the_native_layer_rounds_its_output_alone(dtype: torch.dtype) -> None:
    shape = (70, 256)
    weight, bias = random_weight(*shape), random_bias(70, dtype)
    x = torch.randn(5, 256).to(dtype)
    output = native(weight, shape, dtype, bias)(x)
    assert output.dtype == dtype
    assert distance(output, expected_output(weight, x, bias)) < ROUNDING[dtype]


@pytest.mark.parametrize("num_rows", [1, 9, 100])
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("shape", [(96, 512), (45, 96), (33, 1), (130, 130)])
@pytest.mark.parametrize("make", MAKERS)
def test_activations_of_fewer_bits_lose_less_than_a_fiftieth(
    make: Callable[..., OpaqueLinear], shape: tuple[int, int], dtype: torch.dtype, num_rows: int
) -> None:
    weight, bias = random_weight(*shape), random_bias(shape[0], dtype)
    x = torch.randn(num_rows, shape[1]).to(dtype)
    output = make(weight, shape, dtype, bias)(x)
    assert output.dtype == dtype
    dense = weight.dense(torch.float32, shape[1])
    assert distance(output, functional.linear(x.float(), dense, bias.float())) < LOSS


def test_a_row_is_the_same_to_the_bit_whatever_rows_are_beside_it() -> None:
    layer = native(random_weight(70, 192), (70, 192), bias=random_bias(70, torch.float32))
    x = torch.randn(100, 192) * torch.logspace(-3, 3, 100)[:, None]
    alone = torch.cat([layer(row) for row in x.split(1)])
    for num_rows in (2, 3, 5, 11, 12, 13, 25, 97, 100):
        assert torch.equal(layer(x[:num_rows]), alone[:num_rows])
        assert torch.equal(layer(x[-num_rows:]), alone[-num_rows:])


def test_a_result_is_the_same_to_the_bit_with_any_number_of_threads() -> None:
    layer = native(random_weight(300, 512), (300, 512))
    x = torch.randn(50, 512)
    expected = layer(x)
    before = torch.get_num_threads()
    try:
        for num_threads in (2, 3):
            torch.set_num_threads(num_threads)
            assert torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("make", MAKERS)
def test_inputs_may_have_any_strides_and_number_of_dimensions(
    make: Callable[..., OpaqueLinear],
) -> None:
    layer = make(random_weight(40, 64), (40, 64))
    rows = torch.randn(6, 64)
    expected = layer(rows)
    assert torch.equal(layer(rows.t().contiguous().t()), expected)
    assert torch.equal(layer(rows.view(2, 3, 64)), expected.view(2, 3, 40))
    torch.testing.assert_close(layer(rows[0]), expected[0])
    assert layer(rows[:0]).shape == (0, 40)


@pytest.mark.parametrize("make", MAKERS)
def test_rows_of_zeros_give_the_bias(make: Callable[..., OpaqueLinear]) -> None:
    bias = random_bias(40, torch.float32)
    layer = make(random_weight(40, 64), (40, 64), bias=bias)
    assert torch.equal(layer(torch.zeros(2, 64)), bias.expand(2, 40))


@pytest.mark.parametrize("make", MAKERS)
def test_a_row_with_a_nan_is_nan_and_no_other_is(make: Callable[..., OpaqueLinear]) -> None:
    layer = make(random_weight(40, 130), (40, 130))
    x = torch.randn(3, 130)
    x[1, 129] = torch.nan
    output = layer(x)
    assert output[1].isnan().all()
    assert not output[[0, 2]].isnan().any()


@pytest.mark.parametrize("make", MAKERS)
def test_the_weight_unpacks_to_what_it_was_made_of(make: Callable[..., OpaqueLinear]) -> None:
    weight = random_weight(45, 130)
    expected = weight.dense(torch.float32, 130)
    layer, turned = (make(weight, (45, 130), is_conv1d=turn) for turn in (False, True))
    assert distance(layer.unpack(), expected) < (0 if make is native else LOSS) + 1e-9
    assert torch.equal(turned.weight, layer.weight.t())


@pytest.mark.parametrize("num_outputs", [1, 31, 32, 65])
def test_blocks_unpack_to_what_was_packed(num_outputs: int) -> None:
    weight = random_weight(num_outputs, 192)
    parts = weight.numbers(), weight.scales, weight.zeros
    unpacked = unpack_blocks(pack_blocks(*parts), num_outputs)
    assert all(torch.equal(new, old) for new, old in zip(unpacked, parts, strict=True))


@pytest.mark.parametrize("make", MAKERS)
def test_a_weight_takes_little_more_than_half_a_byte(make: Callable[..., OpaqueLinear]) -> None:
    assert make(random_weight(256, 512), (256, 512)).num_bytes == 256 * 512 * 0.5625


@torch.inference_mode()
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("is_conv1d", [False, True])
def test_compiled_code_calls_the_layer_and_may_read_its_weight(
    make: Callable[..., OpaqueLinear], is_conv1d: bool
) -> None:
    layer = make(random_weight(40, 128), (40, 128), is_conv1d=is_conv1d)

    def forward(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layer(x.to(layer.weight.dtype)) + layer.weight.sum()
        return output

    x = torch.randn(2, 128)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), forward(x))
