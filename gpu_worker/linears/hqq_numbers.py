"""Weights as 4-bit numbers by hqq's own quantizer (Badri and Shaji, 2023): one scale and one zero
for every 64 inputs of an output.

hqq takes a group whose range is below 1e-4 for a constant, and knows no bounds of half precision on
zeros. So each of its groups is compared with plain rounding, and the nearer one is taken.

It alone knows hqq, and imports it at the first weight: that takes a second or two.
"""

import importlib
import logging
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu_worker.linears.min_max import min_max_numbers, squared_errors
from shared.errors import EXIT_CONFIGURATION, FatalError

logger = logging.getLogger(__name__)

GROUP = 64
_BITS = 4
# Numbers that are optimised together on the CPU, so that they stay in its caches: 2.5 times as fast
# as whole weights. The optimiser may stop a step earlier for one such block than for another.
_BLOCK = 2**17
_COMPARED_ON_GPU = 2**24  # numbers that are compared together: they are copied in float32
_RESULT = 2  # changes with what `quantize` makes of a weight


def settings(device: torch.device) -> str:
    """All that decides what `quantize` makes of a weight; FatalError without hqq."""
    try:
        hqq = version("hqq")
    except PackageNotFoundError as error:
        raise FatalError(
            "--hqq needs the package hqq, which is not installed: pip install hqq",
            EXIT_CONFIGURATION,
        ) from error
    return f"hqq {hqq}, {_BITS} bits, group {GROUP}, block {_BLOCK}, {device.type}, {_RESULT}"


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers [N, G * 64] uint8 from 0 to 15, scales and zeros [N, G] float16, on the CPU.

    A weight [N, K] is about (number - zero) * scale. Its last input fills up the last group. No
    group is further from the weight, by squares, than with `min_max_numbers`, and all scales and
    zeros are finite; UnfitWeightError where that cannot be.
    """
    missing = -weight.shape[1] % GROUP
    weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
    num_outputs, num_inputs = weight.shape
    on_gpu = weight.device.type == "cuda"
    rows = num_outputs if on_gpu else max(1, _BLOCK // num_inputs)
    parts = [_quantize(block) for block in weight.split(rows)]
    found = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    rows = max(1, (_COMPARED_ON_GPU if on_gpu else _BLOCK) // num_inputs)
    blocks = zip(weight.split(rows), *(part.split(rows) for part in found), strict=True)
    num_replaced = sum(_take_nearer(*block) for block in blocks)
    logger.debug("%d of %d groups by plain rounding", num_replaced, found[1].numel())
    numbers, scales, zeros = (part.cpu() for part in found)
    return numbers, scales, zeros


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_outputs, num_inputs = weight.shape
    numbers, meta = _quantizer().quantize(
        weight.contiguous(),
        nbits=_BITS,
        group_size=GROUP,
        axis=1,
        optimize=True,
        bitpack=False,
        device=weight.device,
    )
    scale, zero = (meta[name].view(num_outputs, -1).half() for name in ("scale", "zero"))
    return numbers.view(num_outputs, num_inputs).to(torch.uint8), scale, zero


def _take_nearer(
    weight: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> int:
    """Replaces the groups that plain rounding brings nearer, in place; returns how many these are.

    What is not finite is near to nothing.
    """
    groups = weight.float().view(*scales.shape, GROUP)
    numbers = numbers.view_as(groups)
    plain = min_max_numbers(groups)
    errors = squared_errors(groups, numbers, scales, zeros)
    is_worse = ~(errors <= squared_errors(groups, *plain))
    for own, other in zip((numbers, scales, zeros), plain, strict=True):
        own[is_worse] = other[is_worse]
    return int(is_worse.sum())


def _quantizer() -> Any:
    """hqq's class, or FatalError; modules that hide hqq from transformers go on hiding it."""
    hidden = "hqq" in sys.modules and sys.modules["hqq"] is None
    if hidden and "hqq.core.quantize" not in sys.modules:
        del sys.modules["hqq"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own compiler, which hqq's decorators load
            return importlib.import_module("hqq.core.quantize").Quantizer
    except ImportError as error:
        raise FatalError(
            f"--hqq: the package hqq does not load: {error}; install it anew, or start without it",
            EXIT_CONFIGURATION,
        ) from error
    finally:
        if hidden:
            sys.modules["hqq"] = None  # type: ignore[assignment]  # see `shared.process`
