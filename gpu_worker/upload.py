"""Host numbers to device tensors without waiting for the device."""

from array import array
from collections.abc import Sequence

import torch

_TYPE_CODES = {torch.long: "q", torch.float32: "f", torch.float64: "d"}


def upload(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns the values as a vector on the device; the host does not wait for the transfer.

    torch reuses a page-locked buffer only after the transfers from it are done, so that the next
    step may be prepared meanwhile.
    """
    if not values:
        return torch.empty(0, dtype=dtype, device=device)
    host = torch.frombuffer(array(_TYPE_CODES[dtype], values), dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def within(lengths: Sequence[int], longest: int, device: torch.device) -> torch.Tensor:
    """[n, longest] bool: true before the end of each of n rows of these lengths."""
    places = torch.arange(longest, device=device)
    return places < upload(lengths, torch.long, device)[:, None]
