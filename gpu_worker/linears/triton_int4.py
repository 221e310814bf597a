"""Linear layers of 4-bit weights on CUDA, over activations as they are.

Few rows are multiplied by the small numbers themselves, whose bytes are what a decode waits for.
For many rows the weight is made dense first, once a call, so that a prefill takes no longer than
with dense weights but for that; in float32, which the matrix units do not know, 17 rows are many. A
row's result is rounded otherwise in batches of other sizes, as a dense layer's is: tiles have 16,
32 or 64 rows.
"""

import torch
import triton
from torch.nn import functional

from gpu_worker.linears import triton_int4_kernels as kernels
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.opaque_linear import OpaqueLinear

FEW_ROWS = 128
_SMALLEST_TILE, _LARGEST_TILE = 16, 64  # rows; the matrix units take no fewer
_OUTPUTS = 64  # of a tile
_SMALLEST_SHARE = 4  # groups of a program
_MOST_SHARES = 16
_PROGRAMS_PER_PROCESSOR = 4
_SUM_TILE = 512  # outputs that one program adds up
_UNITS = 64  # groups that one program makes dense


class TritonInt4Linear(OpaqueLinear):
    """By Triton kernels, in any precision; its launches wait for nothing and fit into graphs."""

    kind = "int4 by Triton"

    def __init__(
        self,
        weight: Int4Weight,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool = False,
        device: torch.device,
    ) -> None:
        """See `OpaqueLinear`; all lies on `device`."""
        super().__init__(shape, dtype, bias, is_conv1d=is_conv1d, device=device)
        self._int4 = weight.to(device)
        self._num_shares = num_shares(shape[0], weight.scales.shape[1], _num_processors(device))

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        return self._int4.num_bytes

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] > (FEW_ROWS if x.dtype.itemsize == 2 else _SMALLEST_TILE):
            return functional.linear(x, self._dense(x.dtype), self.bias)
        y = self._product(rows.contiguous())
        return y.view(*x.shape[:-1], self.out_features)

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        return self._dense(self._dtype)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """[M, K] to [M, N]."""
        num_rows, num_outputs = rows.shape[0], self.out_features
        y = rows.new_empty(num_rows, num_outputs)
        if not num_rows:
            return y
        weight, num_groups = self._int4, self._int4.scales.shape[1]
        tile = min(max(triton.next_power_of_2(num_rows), _SMALLEST_TILE), _LARGEST_TILE)
        partial = torch.empty(
            self._num_shares, num_rows, num_outputs, dtype=torch.float32, device=rows.device
        )
        tiles = triton.cdiv(num_outputs, _OUTPUTS), triton.cdiv(num_rows, tile)
        kernels.product_kernel[(tiles[0], self._num_shares, tiles[1])](
            rows, weight.halves, weight.scales, weight.zeros, partial,
            num_rows, num_outputs, self.in_features, num_groups,
            triton.cdiv(num_groups, self._num_shares),
            ROWS=tile, OUTPUTS=_OUTPUTS, num_warps=4, num_stages=4,
        )  # fmt: skip
        kernels.sum_kernel[(triton.cdiv(num_outputs, _SUM_TILE), num_rows)](
            partial, partial if self.bias is None else self.bias, y, num_rows, num_outputs,
            SHARES=self._num_shares, HAS_BIAS=self.bias is not None, TILE=_SUM_TILE,
        )  # fmt: skip
        return y

    def _dense(self, dtype: torch.dtype) -> torch.Tensor:
        """[N, K]."""
        int4 = self._int4
        weight = torch.empty(
            self.out_features, self.in_features, dtype=dtype, device=int4.halves.device
        )
        num_units = int4.scales.numel()
        kernels.dense_kernel[(triton.cdiv(num_units, _UNITS),)](
            int4.halves, int4.scales, int4.zeros, weight,
            num_units, self.in_features, int4.scales.shape[1], UNITS=_UNITS,
        )  # fmt: skip
        return weight


def num_shares(num_outputs: int, num_groups: int, num_processors: int) -> int:
    """Programs that share the groups of a weight: all processors have work, each not too little."""
    wanted = triton.cdiv(
        _PROGRAMS_PER_PROCESSOR * num_processors, triton.cdiv(num_outputs, _OUTPUTS)
    )
    most = min(max(num_groups // _SMALLEST_SHARE, 1), _MOST_SHARES)
    return int(min(wanted, most))


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # interpreted
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
