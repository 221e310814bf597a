"""Linear layers of dense weights in the layout that is read fastest: oneDNN's, or our own."""

import logging
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from gpu_worker.cpu_kernels.linear import NativeLinears
from gpu_worker.linears.native import NativeLinear
from gpu_worker.linears.opaque_linear import OpaqueLinear
from gpu_worker.linears.replacing import plain_weight, replace_linears

logger = logging.getLogger(__name__)

# Tokens of the step that oneDNN lays the weights out for. Other sizes read the same layout, so it
# may not be 1: at 8 to 32 tokens that is slower than not packing at all.
TYPICAL_TOKENS = 32
# In float32 a call of oneDNN takes 12 µs longer than torch's own product. Smaller weights never win
# that back (docs/log.md).
SMALLEST_PACKED = 2**17  # numbers
_ONEDNN: Any = torch.ops.mkldnn  # what torch's own compiler calls; operators have no types


class PackedLinear(OpaqueLinear):
    """The same numbers as a plain layer's, and the same output up to rounding."""

    kind = "packed by oneDNN"

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, is_conv1d: bool = False
    ) -> None:
        """`weight` is [out, in]."""
        out_features, in_features = weight.shape
        super().__init__((out_features, in_features), weight.dtype, bias, is_conv1d=is_conv1d)
        self._packed = _ONEDNN._reorder_linear_weight(weight.contiguous(), TYPICAL_TOKENS)

    @property
    def num_bytes(self) -> int:
        """See `OpaqueLinear`."""
        num_bytes: int = _ONEDNN._nbytes(self._packed)
        return num_bytes

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """See `OpaqueLinear`."""
        output: torch.Tensor = _ONEDNN._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output

    def unpack(self) -> torch.Tensor:
        """See `OpaqueLinear`."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight


def pack_linears(
    model: nn.Module, smallest: int = SMALLEST_PACKED, library: NativeLinears | None = None
) -> int:
    """Packs the linear layers of a model on the CPU that gain by it and frees their plain weights.

    In float32 these are the ones whose weights have `smallest` numbers or more. With the native
    `library`, if it has bfloat16, all layers of that are its own, and the output layer of either
    dtype, however small.

    Returns the bytes that are held twice: a head that is tied to the embedding is packed, and the
    embedding keeps the plain rows that it looks up.
    """

    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None

    def pack(_: str, layer: nn.Module) -> OpaqueLinear | None:
        weight, is_conv1d = plain_weight(layer)
        bias = getattr(layer, "bias", None)
        is_native = layer is head or weight.dtype == torch.bfloat16
        if is_native and library is not None and library.has(weight.dtype):
            return NativeLinear(library, weight, bias, is_conv1d=is_conv1d)
        if not _gains(weight, smallest):
            return None
        return PackedLinear(weight, bias, is_conv1d=is_conv1d)

    replaced = replace_linears(model, pack)
    kinds = Counter(layer.kind for layer in replaced.layers.values())
    logger.info(
        "linear layers for the CPU: %s; %.1f MiB held twice, with the embedding",
        ", ".join(f"{kind} ({number})" for kind, number in kinds.items()) or "as they were",
        replaced.twice_bytes / 2**20,
    )  # fmt: skip
    return replaced.twice_bytes


def _gains(weight: torch.Tensor, smallest: int) -> bool:
    gains = weight.dtype != torch.float32 or weight.numel() >= smallest
    return gains and weight.device.type == "cpu" and _packs(weight.dtype)


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(_ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32
