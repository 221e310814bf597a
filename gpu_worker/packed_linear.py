"""Linear layers whose weights lie in oneDNN's own layout, so that no step has to reorder them.

Stock code goes on reading `weight`: its dtype and shape cost nothing, its numbers are unpacked.
"""

import logging
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.pytorch_utils import Conv1D

from gpu_worker.opaque import number_of, numbered, operator

logger = logging.getLogger(__name__)

# Tokens of the step that oneDNN lays the weights out for. Other sizes read the same layout, so it
# may not be 1: at 8 to 32 tokens that is slower than not packing at all.
TYPICAL_TOKENS = 32
# In float32 a call of oneDNN takes 12 µs longer than torch's own product. Smaller weights never win
# that back (docs/log.md).
SMALLEST_PACKED = 2**17  # numbers
_ONEDNN: Any = torch.ops.mkldnn  # what torch's own compiler calls; operators have no types


class PackedLinear(nn.Module):
    """x @ weight.T + bias, as `nn.Linear` computes it up to rounding."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = _ONEDNN._reorder_linear_weight(weight.contiguous(), TYPICAL_TOKENS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._number = number_of(self)

    @property
    def weight(self) -> torch.Tensor:
        """[out, in], unpacked anew by whoever computes with it."""
        return self.on_use()

    def on_use(self) -> torch.Tensor:
        """[out, in], whose numbers take no memory until somebody asks for them."""
        if torch.compiler.is_compiling():
            unpacked: torch.Tensor = _unpacked(
                self._number, self.out_features, self.in_features, self._packed.dtype
            )
            return unpacked
        return UnpackedOnUse(self._packed)

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weight."""
        num_bytes: int = _ONEDNN._nbytes(self._packed)
        return num_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] -> […, out]."""
        if torch.compiler.is_compiling():
            output: torch.Tensor = _linear(x, self._number, self.out_features)
            return output
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The same, for the operator that stands for it in compiled code."""
        output: torch.Tensor = _ONEDNN._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output

    def unpack(self) -> torch.Tensor:
        """[out, in] anew."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight


class PackedConv1D(PackedLinear):
    """The same for GPT-2's layer, whose weight is [in, out]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.t(), bias)
        self.nf = self.out_features

    @property
    def weight(self) -> torch.Tensor:
        """[in, out], unpacked anew by whoever computes with it."""
        return self.on_use().t()


class UnpackedOnUse(torch.Tensor):
    """A packed weight that looks like a plain one."""

    _packed: torch.Tensor

    @staticmethod
    def __new__(cls, packed: torch.Tensor) -> "UnpackedOnUse":
        """Takes no memory of its own."""
        make: Any = torch.Tensor._make_wrapper_subclass
        self: UnpackedOnUse = make(cls, packed.shape, dtype=packed.dtype, device=packed.device)
        self._packed = packed
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares its own as a C function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every computation sees the plain weight."""

        def unpacked(value: Any) -> Any:
            return value._packed.to_dense() if isinstance(value, UnpackedOnUse) else value

        args, kwargs = pytree.tree_map(unpacked, (args, kwargs or {}))
        return func(*args, **kwargs)


def _output(x: torch.Tensor, _: int, out_features: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@operator("packed_linear(Tensor x, int layer, int out_features) -> Tensor", _output)
def _linear(x: torch.Tensor, layer: int, _: int) -> torch.Tensor:
    output: torch.Tensor = numbered(layer).compute(x)
    return output


def _weight(_: int, out_features: int, in_features: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(out_features, in_features, dtype=dtype)


@operator(
    "unpacked(int layer, int out_features, int in_features, ScalarType dtype) -> Tensor", _weight
)
def _unpacked(layer: int, *_: Any) -> torch.Tensor:
    weight: torch.Tensor = numbered(layer).unpack()
    return weight


def pack_linears(model: nn.Module, smallest: int = SMALLEST_PACKED) -> int:
    """Packs the linear layers of a model on the CPU that gain by it and frees their plain weights.

    In float32 these are the ones whose weights have `smallest` numbers or more.

    Returns the bytes that are held twice: a head that is tied to the embedding is packed, and the
    embedding keeps the plain rows that it looks up.
    """
    plain = {module for module in model.modules() if _is_packable(module, smallest)}
    kept = {
        parameter.data_ptr()
        for module in model.modules()
        if module not in plain
        for parameter in module.parameters(recurse=False)
    }
    packed: dict[nn.Module, PackedLinear] = {}
    twice_bytes = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in plain:
                continue
            if child not in packed:  # a layer may be used in several places
                packed[child] = _pack(child)
                is_tied = child.get_parameter("weight").data_ptr() in kept
                twice_bytes += packed[child].packed_bytes if is_tied else 0
                del child.weight
            setattr(parent, name, packed[child])
    logger.info(
        "%d linear layers prepacked for the CPU; %.1f MiB held twice, with the embedding",
        len(packed), twice_bytes / 2**20,
    )  # fmt: skip
    return twice_bytes


def _is_packable(module: nn.Module, smallest: int) -> bool:
    """True for a layer that is exactly what its class says, and that oneDNN packs with a gain."""
    if type(module) not in (nn.Linear, Conv1D) or "forward" in vars(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    weight = module.get_parameter("weight")
    gains = weight.dtype != torch.float32 or weight.numel() >= smallest
    return gains and weight.device.type == "cpu" and _packs(weight.dtype)


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _pack(layer: nn.Module) -> PackedLinear:
    kind = PackedConv1D if isinstance(layer, Conv1D) else PackedLinear
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    return kind(layer.get_parameter("weight").detach(), bias)
