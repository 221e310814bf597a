"""Keys and values of encoder-decoders, as a cache of transformers: one slot for each sequence.

Slot r belongs to the runner's row r. A decoding step writes one position of each of the first B
slots and reads them as views: nothing is gathered or copied. What the encoder gave is projected
once and stays. Dimension names: L decoder layers, S slots, H heads, D head size, B rows of a step,
K and E positions of the decoder and the encoder that a step looks at.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

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
        """Writes one token of each row, [B, H, 1, D], and returns [B, H, K, D] to look at."""
        positions, num_keys = self._slots.positions, self._slots.num_keys
        num_rows = len(positions)
        rows = torch.arange(num_rows, device=positions.device)
        for kind, states in enumerate((key_states, value_states)):
            self._storage[kind][rows, :, positions] = states[:, :, 0]
        keys, values = self._storage[:, :num_rows, :, :num_keys]
        return keys, values

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
        return self._view(0)

    @keys.setter
    def keys(self, _: Any) -> None:
        """The mixin's constructor says that there are none yet."""

    @property
    def values(self) -> torch.Tensor:
        """[B, H, E, D]."""
        return self._view(1)

    @values.setter
    def values(self, _: Any) -> None:
        """As for `keys`."""

    def _view(self, kind: int) -> torch.Tensor:
        slots = self._slots
        return self._storage[kind, : len(slots.positions), :, : slots.num_encoder_keys]


class SlotCache(EncoderDecoderCache):
    """All slots, and the positions of the step under way."""

    def __init__(self, geometry: SlotGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.scratch = geometry.max_decoder_len  # the position that rows of nobody write
        shape = (geometry.num_layers, 2, num_slots, geometry.num_heads)
        kind: dict[str, Any] = {"dtype": geometry.dtype, "device": geometry.device}
        self._own = torch.zeros(*shape, self.scratch + 1, geometry.head_size, **kind)
        self._cross = torch.zeros(*shape, geometry.max_encoder_len, geometry.head_size, **kind)
        self.positions = torch.zeros(0, dtype=torch.long, device=geometry.device)  # [B]
        self.num_keys = 0
        self.num_encoder_keys = 0
        super().__init__(
            Cache(layers=[_SelfLayer(self, storage) for storage in self._own]),
            Cache(layers=[_CrossLayer(self, storage) for storage in self._cross]),
        )
        self.is_updated = dict.fromkeys(
            range(geometry.num_layers), True
        )  # `write_cross` has done it

    def begin(self, positions: torch.Tensor, num_keys: int, num_encoder_keys: int) -> None:
        """Prepares a step of rows 0 to B - 1 at these positions, [B] int64.

        It looks at `num_keys` and `num_encoder_keys` positions, or a few more.
        """
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
