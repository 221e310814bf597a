"""Linear layers of 4-bit weights on the CPU: by the native kernel, or by torch's own.

The native one takes activations in 8 bits, with a scale for each row. It sums whole numbers within
a group of 64 inputs, exactly, and groups in their order: each row's result is the same to the bit
whatever rows are beside it.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch.nn import functional

from gpu_worker.cpu_kernels.int4 import Int4Blocks, Int4Product, pack_blocks, unpack_blocks
from gpu_worker.linears.fused import SharedProduct
from gpu_worker.linears.hqq_numbers import GROUP
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.opaque_linear import OpaqueLinear

_MIDDLE = 8  # from which torch's kernel counts numbers
_OUTPUTS = 32  # a multiple of what it computes together


class NativeInt4Linear(OpaqueLinear):
    """By the native kernel, alone or together with others of the same input."""

    kind = "native int4, 8-bit activations"

    def __init__(
        self,
        library: ctypes.CDLL,
        weight: Int4Weight,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool = False,
    ) -> None:
        """See `OpaqueLinear`."""
        super().__init__(shape, dtype, bias, is_conv1d=is_conv1d)
        self.shared: SharedProduct | None = None
        self._library = library
        blocks = pack_blocks(weight.numbers(), weight.scales, weight.zeros)
        self._weight = Int4Blocks(blocks, shape, bias)
        self._product = Int4Product(library, [self._weight])

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        return self._weight.blocks.nbytes

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        if self.shared is not None:
            return self.shared.output_of(self, x)
        (output,) = self._product(x)
        return output

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        weight = Int4Weight.of(*unpack_blocks(self._weight.blocks, self.out_features))
        return weight.dense(self._dtype, self.in_features)

    def may_join(self, other: object) -> bool:
        """Whether both can be computed in one call, if they are given the same input."""
        return isinstance(other, NativeInt4Linear) and other.in_features == self.in_features

    def product_with(self, others: "Sequence[NativeInt4Linear]") -> Int4Product:
        """What computes this layer's output and those of the others, in this order."""
        return Int4Product(self._library, [self._weight, *(other._weight for other in others)])


class TorchInt4Linear(OpaqueLinear):
    """By torch's own kernel, which takes activations and scales in bfloat16; slow for many rows."""

    kind = "int4 by torch, bfloat16 activations"

    def __init__(
        self,
        weight: Int4Weight,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool = False,
    ) -> None:
        """See `OpaqueLinear`."""
        super().__init__(shape, dtype, bias, is_conv1d=is_conv1d)
        missing = -shape[0] % _OUTPUTS
        numbers, scales, zeros = (
            functional.pad(part, (0, 0, 0, missing))
            for part in (weight.numbers().int(), weight.scales.float(), weight.zeros.float())
        )
        self._packed = torch._convert_weight_to_int4pack_for_cpu(numbers, 1)
        metas = torch.stack([scales, (_MIDDLE - zeros) * scales], 2)  # [N, G, 2]
        self._metas = metas.transpose(0, 1).bfloat16().contiguous()

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        return self._packed.nbytes + self._metas.nbytes

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        output = self._product(x.reshape(-1, self.in_features)).to(x.dtype)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*x.shape[:-1], self.out_features)

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        return self._product(torch.eye(self.in_features)).t().to(self._dtype)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """[M, K] to [M, N] in bfloat16."""
        whole = functional.pad(rows.bfloat16(), (0, -self.in_features % GROUP)).contiguous()
        if not len(rows):
            return whole.new_empty(0, self.out_features)
        product = torch._weight_int4pack_mm_for_cpu(whole, self._packed, GROUP, self._metas)
        return product[:, : self.out_features]
