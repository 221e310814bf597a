"""Weights as 4-bit numbers in even steps from a group's least to its largest: rounding, no more.

Scales and zeros are in half precision, so the steps have a least and a largest size, and zeros a
largest one: a group that lies far from 0 and close together has wider steps than its range asks
for, of which it uses few.
"""

import torch

LARGEST_NUMBER = 15
# Half precision counts to here without a gap. A step of a 2048th of the largest weight is as fine
# as the half precision of that weight.
_LARGEST_ZERO = 2048
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-24, 65504.0  # of half precision


class UnfitWeightError(ValueError):
    """A weight that cannot be quantised; the message says why, and ends a sentence on it."""


def min_max_numbers(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of groups [N, G, 64] float32: numbers [N, G, 64] uint8, scales and zeros [N, G] float16.

    UnfitWeightError for a group that no scale of half precision spans, or that is not finite.
    """
    least, largest = groups.aminmax(dim=2)
    furthest = torch.maximum(least.abs(), largest.abs())
    steps = torch.maximum((largest - least) / LARGEST_NUMBER, furthest / _LARGEST_ZERO)
    if not bool((steps <= _LARGEST_SCALE).all()):  # nor is NaN
        raise UnfitWeightError(f"its numbers reach {float(furthest.max()):.3g}")
    scales = _half_or_more(steps.clamp(min=_SMALLEST_SCALE))
    zeros = (-least / scales.float()).half()
    numbers = groups / scales.float()[:, :, None] + zeros.float()[:, :, None]
    return numbers.round_().clamp_(0, LARGEST_NUMBER).to(torch.uint8), scales, zeros


def _half_or_more(steps: torch.Tensor) -> torch.Tensor:
    """The nearest float16 that is not below: 15 steps must reach the largest number."""
    halves = steps.half()
    is_below = halves.float() < steps
    return (halves.view(torch.int16) + is_below).view(torch.float16)  # the next, if positive


def squared_errors(
    groups: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """[N, G]: how far the groups are from what stands for them; NaN or inf where that is none."""
    restored = (numbers - zeros.float()[:, :, None]) * scales.float()[:, :, None]
    return (restored - groups).square().sum(2)
