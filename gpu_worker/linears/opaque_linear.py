"""Linear layers without a plain weight, which stock code and torch.compile cannot tell from others.

Stock code goes on reading `weight`: its dtype and shape cost nothing, its numbers are unpacked.
torch.compile sees one operator, whatever it does inside.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gpu_worker.linears.deferred import Deferred
from gpu_worker.opaque import number_of, numbered, operator

_CPU = torch.device("cpu")


class OpaqueLinear(nn.Module):
    """x @ weight.T + bias, as `nn.Linear` computes it, up to what the kind of layer loses."""

    kind = ""  # for people: what computes it

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        *,
        is_conv1d: bool = False,
        device: torch.device = _CPU,
    ) -> None:
        """`shape` is (out, in); `dtype` that of the weight as stock code sees it.

        `is_conv1d` is for GPT-2's layer, whose `weight` is [in, out].
        """
        super().__init__()
        self.out_features, self.in_features = shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._dtype = dtype
        self._device = device
        self._is_conv1d = is_conv1d
        self.number = number_of(self)  # by which compiled code finds it
        if is_conv1d:
            self.nf = self.out_features

    @property
    def weight(self) -> torch.Tensor:
        """[out, in], or [in, out]; unpacked anew by whoever computes with it."""
        weight = self._on_use()
        return weight.t() if self._is_conv1d else weight

    @property
    def num_bytes(self) -> int:
        """Memory of what stands for the weight."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] -> […, out]."""
        if torch.compiler.is_compiling():
            output: torch.Tensor = linear_operator(x, self.number, self.out_features)
            return output
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The same, for the operator that stands for it in compiled code."""
        raise NotImplementedError

    def unpack(self) -> torch.Tensor:
        """[out, in] of the layer's dtype, as near to the plain weight as the layer knows it."""
        raise NotImplementedError

    def _on_use(self) -> torch.Tensor:
        """[out, in], whose numbers take no memory until somebody asks for them."""
        shape = self.out_features, self.in_features
        if torch.compiler.is_compiling():
            unpacked: torch.Tensor = _unpacked(self.number, *shape, self._dtype, self._device)
            return unpacked
        return UnpackedOnUse(self.unpack, shape, self._dtype, self._device)


class UnpackedOnUse(Deferred):
    """What looks like a plain weight."""

    _unpack: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(
        cls,
        unpack: Callable[[], torch.Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> "UnpackedOnUse":
        """Takes no memory of its own."""
        make: Any = torch.Tensor._make_wrapper_subclass
        tensor: UnpackedOnUse = make(cls, shape, dtype=dtype, device=device)
        tensor._unpack = unpack
        return tensor

    def plain(self) -> torch.Tensor:
        """See `Deferred`."""
        return self._unpack()


def _output(x: torch.Tensor, _: int, out_features: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@operator("linear(Tensor x, int layer, int out_features) -> Tensor", _output)
def linear_operator(x: torch.Tensor, layer: int, _: int) -> torch.Tensor:
    output: torch.Tensor = numbered(layer).compute(x)
    return output.contiguous()  # as `_output` says


def _weight(
    _: int, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    return torch.empty(out_features, in_features, dtype=dtype, device=device)


@operator(
    "unpacked(int layer, int out_features, int in_features, ScalarType dtype, Device device)"
    " -> Tensor",
    _weight,
)
def _unpacked(layer: int, *_: Any) -> torch.Tensor:
    weight: torch.Tensor = numbered(layer).unpack()
    return weight.contiguous()  # as `_weight` says
