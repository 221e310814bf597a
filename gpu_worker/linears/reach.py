"""How much of a model a quantization reaches: a flag must never be without effect unnoticed."""

from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from gpu_worker.linears.replacing import plain_layers
from shared.errors import EXIT_CONFIGURATION, FatalError

_SMALLEST_SHARE = 0.5  # of the numbers; below, memory and time hardly change


class Reach:
    """What will be quantised of the numbers that a step multiplies by."""

    def __init__(self, model: nn.Module, reasons: Mapping[str, str]) -> None:
        """`reasons` are those to keep a plain linear layer, by its name; empty: none."""
        layers = plain_layers(model)
        self.num_numbers = sum(
            layers[name].get_parameter("weight").numel()
            for name, reason in reasons.items()
            if not reason
        )
        weights = list(_multiplied(model))
        reached = {
            layers[name].get_parameter("weight").data_ptr()
            for name, reason in reasons.items()
            if not reason
        }
        num_reached = sum(weight.numel() for weight in weights if weight.data_ptr() in reached)
        self.share = num_reached / max(sum(weight.numel() for weight in weights), 1)
        plain = {layer.get_parameter("weight").data_ptr() for layer in layers.values()}
        elsewhere = sum(weight.numel() for weight in weights if weight.data_ptr() not in plain)
        self._dense = [f"{elsewhere / 1e6:.2f} million numbers are in no plain linear layer"]
        kept = Counter(reason for reason in reasons.values() if reason)
        self._dense += [f"of {number} layers: {reason}" for reason, number in kept.items()]

    def refuse_little(self, flag: str) -> None:
        """Raises FatalError where most would stay dense."""
        if self.share >= _SMALLEST_SHARE:
            return
        raise FatalError(
            f"{flag} would reach only {self.share:.0%} of this model's weights "
            f"({'; '.join(self._dense)}): start without it",
            EXIT_CONFIGURATION,
        )


def _multiplied(model: nn.Module) -> Iterator[torch.Tensor]:
    """All weights but tables that are looked up, and the output head, which may stay dense."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            continue
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1 and weight.data_ptr() not in seen:
                seen.add(weight.data_ptr())
                yield weight
