"""Device tensors to host numbers, waiting for no more than what made them.

A copy is queued behind its tensor's work at once. Whoever reads it later waits for the copy alone,
and not for what was launched after it.
"""

import torch


class Download:
    """The numbers of a tensor, on their way to the host."""

    def __init__(self, values: torch.Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._host = values
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    def read(self) -> torch.Tensor:
        """The tensor on the host, once it is there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
