"""Linear layers by the native kernels: float32, bfloat16 or 8-bit weights, alone or together."""

from collections.abc import Sequence

import torch

from gpu_worker.cpu_kernels.linear import NativeLinears, NativeProduct, NativeWeight
from gpu_worker.linears.fused import SharedProduct
from gpu_worker.linears.lazy_logits import LazyLogits
from gpu_worker.linears.opaque_linear import OpaqueLinear


class NativeLinear(OpaqueLinear):
    """What a token becomes depends, bit for bit, on itself alone, not on the tokens beside it."""

    def __init__(
        self,
        library: NativeLinears,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        scales: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        is_conv1d: bool = False,
    ) -> None:
        """Of a weight [out, in]; of int8, its scales [out] and the dtype that stock code sees."""
        shape = weight.shape[0], weight.shape[1]
        super().__init__(shape, dtype or weight.dtype, bias, is_conv1d=is_conv1d)
        self.kind = f"native {str(weight.dtype).removeprefix('torch.')}"
        self.shared: SharedProduct | None = None
        self.is_lazy = False  # True: it gives `LazyLogits`
        self.returns_states = False  # True: compiled code gets its input, to make such of it
        self._library = library
        self._scales = scales
        self._weight = NativeWeight(weight, bias, scales)
        self._product = NativeProduct(library, [self._weight])

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        screen = self._product.screen
        return self._weight.num_bytes + (0 if screen is None else screen.num_bytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        if self.is_lazy and not torch.compiler.is_compiling():
            return LazyLogits(self, x)
        return x if self.returns_states else super().forward(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        if self.shared is not None:
            return self.shared.output_of(self, x)
        (output,) = self._product(x)
        return output

    def become_head(self, *, is_screened: bool = True) -> None:
        """Lets it wait for whoever looks at its outputs; a screen helps to find the best."""
        self.is_lazy = True
        if is_screened and self._library.takes_screen(self._weight.dtype):
            self._product.screen = self._weight.screen()

    def best(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest output of each row [N, in] and its first place, without the others."""
        return self._product.best(x)

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        plain = self._weight.plain()
        return plain if self._scales is None else (plain * self._scales[:, None]).to(self._dtype)

    def may_join(self, other: object) -> bool:
        """Whether both can be computed in one call, if they are given the same input."""
        return (
            isinstance(other, NativeLinear)
            and other._weight.dtype == self._weight.dtype
            and other.in_features == self.in_features
        )

    def product_with(self, others: "Sequence[NativeLinear]") -> NativeProduct:
        """What computes this layer's output and those of the others, in this order."""
        return NativeProduct(self._library, [self._weight, *(other._weight for other in others)])
