"""Small weights in place of a model's dense ones, all made in one way and kept on disk.

What a layer loses depends on its own weight alone, so that a layer is quantised by itself.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from gpu_worker.linears.min_max import UnfitWeightError
from gpu_worker.linears.opaque_linear import OpaqueLinear
from gpu_worker.linears.reach import Reach
from gpu_worker.linears.replacing import Replaced, plain_layers, plain_weight, replace_linears
from gpu_worker.linears.weight_cache import WeightCache
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)

_MIB = 2**20
_SECONDS_OF_SILENCE = 10.0

Parts = Mapping[str, torch.Tensor]  # what a weight is quantised to: tensors on the CPU, by name


_ROUTERS = ("gate", "router")  # of experts: a wrong number picks a wrong expert


def is_router(name: str) -> bool:
    """True for a layer, by its name, that chooses experts."""
    return name.rpartition(".")[2] in _ROUTERS


class Quantization(Protocol):
    """One way of making weights small."""

    name: str  # for people: such as `int8`
    flag: str  # how users ask for it: such as `--hqq`
    settings: str  # all that decides what `quantize` makes of a weight, versions included

    def reason_to_keep(self, name: str, weight: torch.Tensor) -> str:
        """Why this layer, of a weight [out, in], stays dense; empty: it does not."""

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What of a weight [out, in] is kept, in memory and on disk; UnfitWeightError for one
        whose numbers it cannot hold.
        """

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
        """The layer that computes with these parts, as the device does it best."""


def quantize_linears(
    model: nn.Module, quantization: Quantization, cache: WeightCache | None
) -> Replaced:
    """Replaces the linear layers that can be, and logs what each became and why others stay.

    FatalError, before anything is done, if most of the model's numbers would stay dense; and for a
    weight that cannot be quantised.
    """
    reasons = {
        name: quantization.reason_to_keep(name, plain_weight(layer)[0])
        for name, layer in plain_layers(model).items()
    }
    reach = Reach(model, reasons)
    reach.refuse_little(quantization.flag)
    work = _Work(quantization, cache, reach.num_numbers)
    replaced = replace_linears(model, lambda name, layer: work.replace(name, layer, reasons[name]))
    if cache is not None:
        cache.save()
    _log(quantization.name, replaced, reasons)
    return replaced


class _Work:
    """Makes the layers one by one, and tells the log how far it has come."""

    def __init__(
        self, quantization: Quantization, cache: WeightCache | None, num_numbers: int
    ) -> None:
        self._quantization = quantization
        self._cache = cache
        self._left = num_numbers
        self._quantised, self._seconds = 0, 0.0  # numbers, not read from the cache
        self._told = time.monotonic()

    def replace(self, name: str, layer: nn.Module, reason: str) -> OpaqueLinear | None:
        """The layer for a plain one; None if there is a reason to keep it."""
        if reason:
            logger.debug("%s stays dense: %s", name, reason)
            return None
        weight, is_conv1d = plain_weight(layer)
        new = self._quantization.layer(
            self._parts(name, weight),
            (weight.shape[0], weight.shape[1]),
            weight.dtype,
            getattr(layer, "bias", None),
            is_conv1d=is_conv1d,
            device=weight.device,
        )
        logger.debug("%s: %s", name, new.kind)
        return new

    def _parts(self, name: str, weight: torch.Tensor) -> Parts:
        parts = self._cache.get(name, weight) if self._cache is not None else None
        self._left -= weight.numel()
        if parts is not None:
            return parts
        start = time.monotonic()
        parts = self._quantised_parts(name, weight)
        if self._cache is not None:
            self._cache.put(name, weight, parts)
        self._quantised += weight.numel()
        self._seconds += time.monotonic() - start
        self._tell()
        return parts

    def _quantised_parts(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        try:
            return self._quantization.quantize(weight)
        except UnfitWeightError as error:
            raise FatalError(
                f"{self._quantization.flag} cannot hold the weight of {name}: {error}; "
                "start without it",
                EXIT_CONFIGURATION,
            ) from error

    def _tell(self) -> None:
        if time.monotonic() - self._told < _SECONDS_OF_SILENCE:
            return
        self._told = time.monotonic()
        logger.info(
            "%s weights: %.0f million quantised, %.0f million to do, about %.0f s",
            self._quantization.name, self._quantised / 1e6, self._left / 1e6,
            self._seconds / self._quantised * self._left,
        )  # fmt: skip


def _log(name: str, replaced: Replaced, reasons: Mapping[str, str]) -> None:
    kinds = Counter(layer.kind for layer in replaced.layers.values())
    made = ", ".join(f"{kind} ({number} layers)" for kind, number in kinds.items())
    whys = Counter(reason for reason in reasons.values() if reason)
    kept = ", ".join(f"{reason} ({number})" for reason, number in whys.items())
    num_bytes = sum(layer.num_bytes for layer in replaced.layers.values())
    logger.info(
        "%s weights: %s, %.1f MiB; dense: %s", name, made or "none", num_bytes / _MIB,
        kept or "none",
    )  # fmt: skip
