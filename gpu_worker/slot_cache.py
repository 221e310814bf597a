"""Keys and values of encoder-decoders, as a cache of transformers: one slot for each sequence.

Slot r belongs to the runner's row r. A decoding step writes one position of each of the first B
slots and reads them as views: nothing is gathered or copied. A prompt of several tokens is written
in one go, to the slots of any rows, of which it reads copies. What the encoder gave is projected
once and stays. Dimension names: L decoder layers, S slots, H heads, D head size, B rows of a
forward pass, T tokens of each, K and E positions of the decoder and the encoder that it looks at.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gpu_worker.alignment import AttentionWatch

SLOT_ATTENTION = "slots"


def slot_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    *rest: Any,
    watch: AttentionWatch | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Stock attention, [B, H, T, D] to [B, T, H, D]; the watch, if any, sees queries and keys."""
    if watch is not None:
        watch.look(module, query, key)
    return sdpa_attention_forward(module, query, key, *rest, **settings)


# Without a mask function of the same name, transformers would drop every mask in silence.
AttentionInterface.register(SLOT_ATTENTION, slot_attention)
AttentionMaskInterface.register(SLOT_ATTENTION, sdpa_mask)

_LENGTH_STEP = 16  # views grow by so many positions, so that few shapes come up


@dataclass(frozen=True)
class SlotGeometry:
    """What a slot holds."""

    num_layers: int
    num_heads: int
    head_size: int
    max_decoder_len: int  # tokens
    max_encoder_len: int  # tokens, or frames
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one slot."""
        per_token = 2 * self.num_layers * self.num_heads * self.head_size * self.dtype.itemsize
        return per_token * (self.max_decoder_len + 1 + self.max_encoder_len)


class _SelfLayer(CacheLayerMixin):
    """One layer's part of the slots that the decoder itself writes."""

    is_compileable = True
    is_sliding = False

    def __init__(self, slots: "SlotCache", storage: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._slots = slots
        self._storage = storage  # [2, S, H, K + 1, D]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the tokens of each row, [B, H, T, D], and returns [B, H, K, D] to look at."""
        slots = self._slots
        rows = slots.rows[:, None]
        for kind, states in enumerate((key_states, value_states)):
            self._storage[kind][rows, :, slots.positions] = states.transpose(1, 2)
        return self._view(0, slots.num_keys), self._view(1, slots.num_keys)

    def _view(self, kind: int, length: int) -> torch.Tensor:
        """[B, H, length, D] of the rows' slots."""
        slots = self._slots
        if slots.has_first_rows:
            return self._storage[kind, : len(slots.rows), :, :length]
        return self._storage[kind, :, :, :length].index_select(0, slots.rows)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the storage is there."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that are looked at, and the first of them."""
        return self._slots.num_keys, 0

    def get_seq_length(self) -> int:
        """Nobody asks whom this would tell: rows are at positions of their own."""
        return 0

    def get_max_length(self) -> int:
        """Positions of a slot."""
        return self._storage.shape[3] - 1


class _CrossLayer(_SelfLayer):
    """One layer's part of what the encoder gave; stock code reads `keys` and `values` of it."""

    @property
    def keys(self) -> torch.Tensor:
        """[B, H, E, D]."""
        return self._view(0, self._slots.num_encoder_keys)

    @keys.setter
    def keys(self, _: Any) -> None:
        """The mixin's constructor says that there are none yet."""

    @property
    def values(self) -> torch.Tensor:
        """[B, H, E, D]."""
        return self._view(1, self._slots.num_encoder_keys)

    @values.setter
    def values(self, _: Any) -> None:
        """As for `keys`."""


class SlotCache(EncoderDecoderCache):
    """All slots, and the positions of the step under way."""

    def __init__(self, geometry: SlotGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.scratch = geometry.max_decoder_len  # the position that rows of nobody write
        shape = (geometry.num_layers, 2, num_slots, geometry.num_heads)
        kind: dict[str, Any] = {"dtype": geometry.dtype, "device": geometry.device}
        self._own = torch.zeros(*shape, self.scratch + 1, geometry.head_size, **kind)
        self._cross = torch.zeros(*shape, geometry.max_encoder_len, geometry.head_size, **kind)
        self._all_rows = torch.arange(num_slots, device=geometry.device)
        self.rows = self._all_rows[:0]  # [B] int64
        self.has_first_rows = True  # they are 0 to B - 1
        self.positions = self.rows[:, None]  # [B, T] int64, where they are written
        self.num_keys = 0
        self.num_encoder_keys = 0
        super().__init__(
            Cache(layers=[_SelfLayer(self, storage) for storage in self._own]),
            Cache(layers=[_CrossLayer(self, storage) for storage in self._cross]),
        )
        self.is_updated = dict.fromkeys(
            range(geometry.num_layers), True
        )  # `write_cross` has done it

    def begin(
        self,
        positions: torch.Tensor,
        num_keys: int,
        num_encoder_keys: int,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Prepares a forward pass over these positions, [B, T] int64, of the rows [B] int64.

        Without `rows` they are 0 to B - 1. It looks at `num_keys` and `num_encoder_keys` positions,
        or a few more.
        """
        self.has_first_rows = rows is None
        self.rows = self._all_rows[: len(positions)] if rows is None else rows
        self.positions = positions
        self.num_keys = _rounded(num_keys, self.geometry.max_decoder_len)
        self.num_encoder_keys = _rounded(num_encoder_keys, self.geometry.max_encoder_len)

    def write_cross(self, layer: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps what one layer makes of the encoder's output, [H, E, D] each."""
        self._cross[layer, 0, row, :, : key.shape[1]] = key
        self._cross[layer, 1, row, :, : value.shape[1]] = value

    def move(self, source: int, target: int, num_tokens: int, num_encoder_tokens: int) -> None:
        """Copies a slot's first positions to another slot."""
        for storage, length in ((self._own, num_tokens), (self._cross, num_encoder_tokens)):
            storage[:, :, target, :, :length] = storage[:, :, source, :, :length]


def _rounded(length: int, longest: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, longest)
