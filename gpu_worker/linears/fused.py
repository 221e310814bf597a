"""Layers that read the same input compute together: q, k and v of attention, gate and up of an MLP.

Stock code calls them one after the other. The first call computes all; the others take what is
theirs, if they are given the very same tensor. For compiled code see `joined`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from gpu_worker.opaque import number_of

# Attributes of one parent that stock code feeds alike, by architecture.
SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),  # Llama and most others
    ("gate_proj", "up_proj"),
    ("q", "k", "v"),  # T5
    ("wi_0", "wi_1"),
    ("query", "key", "value"),
)
# A parent of this name reads its keys and values from the encoder: not the input of its queries.
CROSS_ATTENTION = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")


class Joining(Protocol):
    """A layer that can be computed together with others of its kind."""

    number: int  # by which compiled code finds it
    shared: "SharedProduct | None"

    def product_with(self, others: Any) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        """What computes this layer's output and those of the others, in this order."""


class SharedProduct:
    """The layers that are computed together, and the outputs that nobody has taken yet."""

    def __init__(self, layers: Sequence[Joining]) -> None:
        """From now on the layers compute through this."""
        self.layers = tuple(layers)
        self.number = number_of(self)
        self._product = layers[0].product_with(layers[1:])
        self._input: torch.Tensor | None = None
        self._outputs: dict[Joining, torch.Tensor] = {}
        for layer in layers:
            layer.shared = self

    def outputs_of(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What all layers make of this input, in their order."""
        return self._product(x)

    def output_of(self, layer: Joining, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for this input."""
        if self._input is not x or layer not in self._outputs:
            self._outputs = dict(zip(self.layers, self.outputs_of(x), strict=True))
            self._input = x  # last: the product may raise
        output = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return output


def fuse(model: nn.Module) -> int:
    """Lets siblings compute together wherever they can; returns how many layers do."""
    num_fused = 0
    for name, parent in model.named_modules():
        if name.rpartition(".")[2] in CROSS_ATTENTION:
            continue
        for names in SIBLINGS:
            layers: list[Any] = [getattr(parent, attribute, None) for attribute in names]
            first = layers[0]
            if hasattr(first, "may_join") and all(first.may_join(layer) for layer in layers):
                SharedProduct(layers)
                num_fused += len(layers)
    return num_fused
