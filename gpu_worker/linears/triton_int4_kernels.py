"""Triton kernels: products with 4-bit weights for few rows, and the dense weight for many.

A weight is [N, G, 32] bytes, with scales and zeros [N, G] in float16: see `Int4Weight`. Numbers
from 0 to 15 are exact in every precision, so they are multiplied as they are; a group's scale and
zero are applied to its sums in float32. The groups of a weight are shared by several programs,
whose sums a second kernel adds in their order: no atomics, the same result every time.

Arguments in capitals are compiled in.
"""

# ruff: noqa: N803 — in capitals what is compiled in, as is usual in Triton
# mypy: ignore-errors
# The body of a kernel is Triton's language, which has no types for mypy to see.

import triton
import triton.language as tl

GROUP = tl.constexpr(64)  # inputs that share a scale and a zero
HALF = tl.constexpr(32)  # bytes of a group: low halves are its first 32 inputs


@triton.jit(do_not_specialize=["num_rows"])
def product_kernel(
    x,  # [M, K]
    halves,  # [N, G, 32]
    scales, zeros,  # [N, G]
    partial,  # [programs of one weight, M, N] float32
    num_rows, num_outputs, num_inputs, num_groups, share,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Program (n, i, m): outputs of tile n for rows of tile m, of groups i * share and on."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_output, is_row = output < num_outputs, row < num_rows
    byte = tl.arange(0, HALF)
    first = tl.program_id(1) * share
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for group in range(first, tl.minimum(first + share, num_groups)):
        unit = output.to(tl.int64) * num_groups + group  # [OUTPUTS]
        packed = tl.load(
            halves + unit[None, :] * HALF + byte[:, None], mask=is_output[None, :], other=0
        )  # [32, OUTPUTS]
        scale = tl.load(scales + unit, mask=is_output, other=0).to(tl.float32)
        zero = tl.load(zeros + unit, mask=is_output, other=0).to(tl.float32)
        low = _inputs(x, row, is_row, byte + group * GROUP, num_inputs)  # [ROWS, 32]
        high = _inputs(x, row, is_row, byte + group * GROUP + HALF, num_inputs)
        products = tl.dot(low, (packed & 15).to(low.dtype), input_precision="ieee")
        products = tl.dot(high, (packed >> 4).to(low.dtype), products, input_precision="ieee")
        sums = tl.sum(low.to(tl.float32), 1) + tl.sum(high.to(tl.float32), 1)
        total += (products - sums[:, None] * zero[None, :]) * scale[None, :]
    place = (tl.program_id(1) * num_rows + row).to(tl.int64) * num_outputs
    is_own = is_row[:, None] & is_output[None, :]
    tl.store(partial + place[:, None] + output[None, :], total, mask=is_own)


@triton.jit
def _inputs(x, row, is_row, column, num_inputs):
    """x[row, column], 0 outside of it."""
    place = x + row.to(tl.int64)[:, None] * num_inputs + column[None, :]
    return tl.load(place, mask=is_row[:, None] & (column < num_inputs)[None, :], other=0)


@triton.jit(do_not_specialize=["num_rows"])
def sum_kernel(
    partial,  # [SHARES, M, N] float32
    bias,  # [N]
    y,  # [M, N]
    num_rows, num_outputs,
    SHARES: tl.constexpr, HAS_BIAS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (n, m): outputs of tile n for row m."""
    output = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1)
    is_own = output < num_outputs
    total = tl.zeros([TILE], tl.float32)
    for share in tl.static_range(SHARES):
        place = (share * num_rows + row).to(tl.int64) * num_outputs
        total += tl.load(partial + place + output, mask=is_own, other=0)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=is_own, other=0).to(tl.float32)
    tl.store(y + row.to(tl.int64) * num_outputs + output, total.to(y.dtype.element_ty), mask=is_own)


@triton.jit
def dense_kernel(
    halves,  # [N, G, 32]
    scales, zeros,  # [N, G]
    weight,  # [N, K]
    num_units, num_inputs, num_groups,  # a unit is one group of one output
    UNITS: tl.constexpr,
):  # fmt: skip
    """Program i writes units i * UNITS to (i + 1) * UNITS - 1."""
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    is_own = unit < num_units
    byte = tl.arange(0, HALF)
    packed = tl.load(
        halves + unit[:, None] * HALF + byte[None, :], mask=is_own[:, None], other=0
    )  # [UNITS, 32]
    scale = tl.load(scales + unit, mask=is_own, other=0).to(tl.float32)[:, None]
    zero = tl.load(zeros + unit, mask=is_own, other=0).to(tl.float32)[:, None]
    column = (unit % num_groups * GROUP)[:, None] + byte[None, :]
    place = weight + (unit // num_groups * num_inputs)[:, None] + column
    low = ((packed & 15).to(tl.float32) - zero) * scale
    high = ((packed >> 4).to(tl.float32) - zero) * scale
    is_low = is_own[:, None] & (column < num_inputs)
    is_high = is_own[:, None] & (column + HALF < num_inputs)
    tl.store(place, low.to(weight.dtype.element_ty), mask=is_low)
    tl.store(place + HALF, high.to(weight.dtype.element_ty), mask=is_high)
