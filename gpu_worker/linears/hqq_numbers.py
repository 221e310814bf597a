"""Weights as 4-bit numbers by hqq's own quantizer (Badri and Shaji, 2023): one scale and one zero
for every 64 inputs of an output.

It alone knows hqq, and imports it at the first weight: that takes a second or two.
"""

import importlib
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from shared.errors import EXIT_CONFIGURATION, FatalError

GROUP = 64
_BITS = 4
# Numbers that are optimised together on the CPU, so that they stay in its caches: 2.5 times as fast
# as whole weights. The optimiser may stop a step earlier for one such block than for another.
_BLOCK = 2**17
_RESULT = 1  # changes with what `quantize` makes of a weight


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

    A weight [N, K] is about (number - zero) * scale. Its last input fills up the last group.
    """
    missing = -weight.shape[1] % GROUP
    weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
    num_outputs, num_inputs = weight.shape
    rows = num_outputs if weight.device.type == "cuda" else max(1, _BLOCK // num_inputs)
    parts = [_quantize(block) for block in weight.split(rows)]
    numbers, scales, zeros = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
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


def _quantizer() -> Any:
    """hqq's class; modules that hide hqq from transformers go on hiding it."""
    hidden = "hqq" in sys.modules and sys.modules["hqq"] is None
    if hidden and "hqq.core.quantize" not in sys.modules:
        del sys.modules["hqq"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own compiler, which hqq's decorators load
            return importlib.import_module("hqq.core.quantize").Quantizer
    finally:
        if hidden:
            sys.modules["hqq"] = None  # type: ignore[assignment]  # see `shared.process`
