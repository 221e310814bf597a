"""Linear layers of 8-bit integers on the CPU: int8 weights and, for each token, int8 activations.

A weight is symmetric with a scale for each output, an activation symmetric with a scale for each
token. So what a token becomes depends on itself alone, not on the tokens beside it. The native
kernel and its plain twin sum the same integers, exactly.
"""

from pathlib import Path

import torch

from gpu_worker.cpu_kernels.attention import TYPES
from gpu_worker.cpu_kernels.linear import load_linears
from gpu_worker.linears.native import NativeLinear
from gpu_worker.linears.opaque_linear import OpaqueLinear
from gpu_worker.linears.quantization import Parts, is_router

_LARGEST = 127
# The kernel's sums are 32 bits wide, and a product of bytes is below 2^15.
_LONGEST_INPUT = 2**16
_BLOCK = 2**20  # numbers that are quantised together: they are copied in float32 a few times


class Int8:
    """The quantization of that name: see `Quantization`."""

    name = "int8"
    flag = "--quantization int8"
    settings = "int8: symmetric, a scale for each output"

    def __init__(self, cache_directory: Path | None, *, is_native: bool = True) -> None:
        """Compiles the kernel if need be; without it, or where it is not wanted, plain torch."""
        self._library = load_linears(cache_directory) if is_native else None

    def reason_to_keep(self, name: str, weight: torch.Tensor) -> str:
        """See `Quantization`."""
        if is_router(name):
            return "router of experts"
        if weight.shape[1] == 1:
            return "an input of one number"  # for which torch 2.13 multiplies integers wrongly
        if weight.shape[1] >= _LONGEST_INPUT:
            return "inputs too long for exact sums"
        return "" if weight.dtype in TYPES else f"{weight.dtype} is computed as it is"

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Quantization`."""
        blocks = weight.split(max(1, _BLOCK // weight.shape[1]))
        parts = zip(*map(_quantised, blocks), strict=True)
        integers, scales = (torch.cat(tensors) for tensors in parts)
        return {"weight": integers, "scales": scales}

    def layer(
        self,
        parts: Parts,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool,
        device: torch.device,
    ) -> OpaqueLinear:
        """See `Quantization`."""
        assert device.type == "cpu", "refused before the weights are loaded"
        if self._library is None:
            return TorchInt8Linear(parts, dtype, bias, is_conv1d=is_conv1d)
        return NativeLinear(
            self._library, parts["weight"], bias, scales=parts["scales"], dtype=dtype,
            is_conv1d=is_conv1d,
        )  # fmt: skip


def _quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers [N, K] int8 and scales [N] float32 of a weight [N, K]."""
    scales = weight.abs().amax(1).float() / _LARGEST
    divisors = torch.where(scales > 0, scales, 1.0)
    return (weight.float() / divisors[:, None]).round_().to(torch.int8), scales


class TorchInt8Linear(OpaqueLinear):
    """In plain torch; what the native kernel is tested against."""

    kind = "int8 in plain torch"

    def __init__(
        self,
        parts: Parts,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool = False,
    ) -> None:
        """Of the parts that `Int8.quantize` makes."""
        shape = parts["weight"].shape
        super().__init__((shape[0], shape[1]), dtype, bias, is_conv1d=is_conv1d)
        self._integers, self._scales = parts["weight"], parts["scales"]

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        return self._integers.nbytes + self._scales.nbytes

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        rows = x.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(1, keepdim=True)
        # By a tensor: torch takes a number over a tensor for a product with the reciprocal.
        ratios = torch.full_like(largest, _LARGEST) / largest
        factors = torch.where(ratios.isfinite(), ratios, 0.0)
        integers = (rows * factors).round().to(torch.int8)
        sums = torch._int_mm(integers, self._integers.t())
        output = sums.float() * (largest / _LARGEST) * self._scales
        if self.bias is not None:
            output += self.bias
        return output.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        return (self._integers * self._scales[:, None]).to(self._dtype)
