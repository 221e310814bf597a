"""The best token of each row, on the CPU several times as fast as torch's `max` with indices."""

import torch

from gpu_worker.linears.lazy_logits import LazyLogits

_BLOCK = 256  # logits that are reduced to one number without their place, which vectorises
_COLUMNS = torch.arange(_BLOCK)


def best_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row of [N, V] and its first index; NaN, if a row holds one."""
    if isinstance(logits, LazyLogits):
        if logits.is_untouched:
            return logits.best()
        logits = logits.plain()
    vocab_size = logits.shape[1]
    if logits.device.type != "cpu" or vocab_size < 2 * _BLOCK:
        values, indices = logits.max(-1)
        return values, indices
    num_whole = vocab_size // _BLOCK * _BLOCK
    tops = logits[:, :num_whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if num_whole < vocab_size:
        tops = torch.cat((tops, logits[:, num_whole:].amax(-1, keepdim=True)), 1)
    best, blocks = tops.max(-1)
    # The last block may be short: the same number of logits before the end are looked at, and what
    # precedes the block there is smaller.
    starts = (blocks * _BLOCK).clamp(max=vocab_size - _BLOCK)
    columns = starts[:, None] + _COLUMNS
    return best, logits.gather(1, columns).argmax(-1) + starts
