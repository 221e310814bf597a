"""The seam to stock code of encoder-decoders: an attention function registered as `slots`.

Stock code calls it in every layer, of the encoder too, where it is torch's own. In the decoder the
slots come through the model's keyword arguments. Compiled code calls it as operators that the
compiler does not look into, so that no length or position is compiled in.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gpu_worker.alignment import AttentionWatch
from gpu_worker.opaque import numbered, operator
from gpu_worker.slot_cache import SlotCache

SLOT_ATTENTION = "slots"


def slot_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    slots: SlotCache | None = None,
    watch: AttentionWatch | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """[B, H, T, D] to [B, T, H, D]; the watch, if any, sees what looks at the encoder's keys."""
    if slots is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
    layer: int = module.layer_idx
    if module.is_causal:
        return _attend(slots, layer, query, key, value, scaling), None
    if watch is not None:
        watch.look(module, query, slots.encoder_keys(layer))
    return _look(slots, layer, query, scaling), None


def _attend(
    slots: SlotCache,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    if torch.compiler.is_compiling():
        output: torch.Tensor = _attend_compiled(query, key, value, slots.number, layer, scaling)
        return output
    return slots.attend(layer, query, key, value, scaling)


def _look(slots: SlotCache, layer: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    if torch.compiler.is_compiling():
        output: torch.Tensor = _look_compiled(query, slots.number, layer, scaling)
        return output
    return slots.look(layer, query, scaling)


def _output(query: torch.Tensor, *_: Any) -> torch.Tensor:
    num_rows, num_heads, num_tokens, head_size = query.shape
    return query.new_empty(num_rows, num_tokens, num_heads, head_size)


@operator(
    "attend_in_slots(Tensor query, Tensor key, Tensor value, int slots, int layer, float? scaling)"
    " -> Tensor",
    _output,
)
def _attend_compiled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: int, layer: int, *rest: Any
) -> torch.Tensor:
    output: torch.Tensor = numbered(slots).attend(layer, query, key, value, *rest)
    return output


@operator("look_in_slots(Tensor query, int slots, int layer, float? scaling) -> Tensor", _output)
def _look_compiled(query: torch.Tensor, slots: int, layer: int, *rest: Any) -> torch.Tensor:
    output: torch.Tensor = numbered(slots).look(layer, query, *rest)
    return output


# Without a mask function of the same name, transformers would drop every mask in silence.
AttentionInterface.register(SLOT_ATTENTION, slot_attention)
AttentionMaskInterface.register(SLOT_ATTENTION, sdpa_mask)
