"""One layer's 4-bit numbers with their scales and zeros, two numbers to a byte."""

from dataclasses import dataclass

import torch

from gpu_worker.linears.hqq_numbers import GROUP


@dataclass(frozen=True)
class Int4Weight:
    """About (number - zero) * scale; on any device, and on disk."""

    # [N, G, 32] uint8. Low halves are the first 32 inputs of a group, high halves the others.
    halves: torch.Tensor
    scales: torch.Tensor  # [N, G] float16
    zeros: torch.Tensor  # [N, G] float16

    @staticmethod
    def of(numbers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> "Int4Weight":
        """From numbers [N, G * 64] uint8."""
        low, high = numbers.view(*scales.shape, GROUP).chunk(2, 2)
        return Int4Weight(low | high << 4, scales, zeros)

    def numbers(self) -> torch.Tensor:
        """[N, G * 64] uint8, from 0 to 15."""
        return torch.cat([self.halves & 15, self.halves >> 4], 2).flatten(1)

    def dense(self, dtype: torch.dtype, num_inputs: int) -> torch.Tensor:
        """[N, K], without what fills up the last group."""
        numbers = self.numbers().view(*self.scales.shape, GROUP)
        weight = (numbers.float() - self.zeros.float()[:, :, None]) * self.scales.float()[
            :, :, None
        ]
        return weight.flatten(1)[:, :num_inputs].to(dtype)

    def to(self, device: torch.device) -> "Int4Weight":
        """The same on a device."""
        parts = (x.to(device).contiguous() for x in (self.halves, self.scales, self.zeros))
        return Int4Weight(*parts)

    @property
    def num_bytes(self) -> int:
        """Memory."""
        return self.halves.nbytes + self.scales.nbytes + self.zeros.nbytes
