"""Attention over the paged KV cache, registered with transformers under the name `paged`.

Stock model code calls it in every layer. The step's side channel, `AttentionStep`, comes through
the model's keyword arguments; nothing here outlives a forward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from gpu_worker.batch import Batch, Span
from gpu_worker.kv_cache import PagedKVCache

ATTENTION = "paged"


@dataclass(frozen=True)
class AttentionStep:
    """What attention must know of a step: where to write, and what each query may see."""

    cache: PagedKVCache
    batch: Batch


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, Hkv, T, D]
    value: torch.Tensor,  # [1, Hkv, T, D]
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    step: AttentionStep,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Writes the step's keys and values, then attends within each sequence; [1, T, H, D]."""
    assert attention_mask is None, "masks follow from the positions, never from a padded batch"
    keys, values = step.cache.layers[int(module.layer_idx)]  # type: ignore[arg-type]  # [S, Hkv, D]
    keys[step.batch.slots] = key[0].transpose(0, 1)
    values[step.batch.slots] = value[0].transpose(0, 1)
    output = torch.empty_like(query.transpose(1, 2))  # [1, T, H, D]
    for span in step.batch.spans:
        own = query[:, :, span.start : span.end]
        output[:, span.start : span.end] = _attend(own, keys, values, span, scaling)
    return output, None


AttentionInterface.register(ATTENTION, paged_attention)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: Span, scaling: float
) -> torch.Tensor:
    """One sequence's newest tokens over its whole context; [1, T, H, D]."""
    own_keys = keys[span.context].transpose(0, 1)[None]  # [1, Hkv, C, D]
    own_values = values[span.context].transpose(0, 1)[None]
    if span.mask is None:
        return _decode(query, own_keys, own_values, scaling)
    groups = query.shape[1] // own_keys.shape[1]
    output = functional.scaled_dot_product_attention(
        query,
        own_keys.repeat_interleave(groups, 1),
        own_values.repeat_interleave(groups, 1),
        attn_mask=span.mask,
        scale=scaling,
    )
    return output.transpose(1, 2)


def _decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> torch.Tensor:
    """One token sees everything: the heads of a group become query rows, so nothing is repeated."""
    _, num_heads, _, head_size = query.shape
    grouped = query.reshape(1, keys.shape[1], -1, head_size)
    output = functional.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
    return output.reshape(1, 1, num_heads, head_size)
