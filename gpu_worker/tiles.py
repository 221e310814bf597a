"""How many rows of logits are looked at together: what caches hold, or what bounds the memory."""

import torch

# What stays in a core's cache, or what bounds the memory that a step takes on an accelerator, some
# 64 bytes a logit.
_ELEMENTS_OF_A_CORE = 2**17
_ELEMENTS = 2**23


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Rows [V] that are sampled or scored at a time on this device."""
    is_cpu = device.type == "cpu"
    elements = _ELEMENTS_OF_A_CORE * torch.get_num_threads() if is_cpu else _ELEMENTS
    return max(1, elements // vocab_size)
