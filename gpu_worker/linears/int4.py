"""int4 weights by HQQ in place of a model's dense ones: which layers, and what computes them."""

import math
from pathlib import Path

import torch
from torch import nn

from gpu_worker.cpu_kernels.attention import TYPES
from gpu_worker.cpu_kernels.int4 import load_int4
from gpu_worker.linears import hqq_numbers
from gpu_worker.linears.int4_cpu import NativeInt4Linear, TorchInt4Linear
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.opaque_linear import OpaqueLinear
from gpu_worker.linears.quantization import Parts, is_router

# Smaller weights take no memory worth saving, and a call of theirs no time.
SMALLEST = 2**12  # numbers


class Int4:
    """The `Quantization` of `--hqq`: HQQ along the inputs, in groups of 64, zeros not rounded."""

    name = "int4"
    flag = "--hqq"

    def __init__(
        self, model: nn.Module, cache_directory: Path | None = None, *, is_native: bool = True
    ) -> None:
        """Of this model on its device; FatalError without hqq.

        On a CPU it compiles the kernel if need be; without it, or where it is not wanted, torch's
        own computes.
        """
        device = next(model.parameters()).device
        self.settings = hqq_numbers.settings(device)
        self._heads = _heads(model)
        wants_kernel = is_native and device.type == "cpu"
        self._library = load_int4(cache_directory) if wants_kernel else None

    def reason_to_keep(self, name: str, weight: torch.Tensor) -> str:
        """See `Quantization`."""
        if name in self._heads:
            return "output head"
        if is_router(name):
            return "router of experts"
        if weight.dtype not in TYPES:
            return f"dtype {weight.dtype}"
        return "too small to gain" if math.prod(weight.shape) < SMALLEST else ""

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Quantization`."""
        return vars(Int4Weight.of(*hqq_numbers.quantize(weight)))

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
        weight = Int4Weight(**parts)
        if device.type == "cuda":
            # Triton comes with CUDA builds of torch alone.
            from gpu_worker.linears.triton_int4 import TritonInt4Linear  # noqa: PLC0415

            return TritonInt4Linear(weight, shape, dtype, bias, is_conv1d=is_conv1d, device=device)
        if self._library is not None:
            return NativeInt4Linear(self._library, weight, shape, dtype, bias, is_conv1d=is_conv1d)
        return TorchInt4Linear(weight, shape, dtype, bias, is_conv1d=is_conv1d)


def _heads(model: nn.Module) -> frozenset[str]:
    """Names of what turns hidden states into logits."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    return frozenset(name for name, module in model.named_modules() if module is head)
