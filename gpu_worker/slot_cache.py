"""Keys and values of encoder-decoders, as a cache of transformers: one slot for each sequence.

Slot r belongs to the runner's row r. A decoding step writes one position of each of the first B
slots and reads them as views: nothing is gathered or copied. A prompt of several tokens is written
in one go, to the slots of any rows, of which it reads copies. What the encoder gave is projected
once and stays. Stock code is shown an empty cache and empty masks: its attention is
`slot_attention`, which comes here for what was written and for who looks at what. Dimension names:
L decoder layers, S slots, H heads, D head size, B rows of a forward pass, T tokens of each, K and E
positions of the decoder and the encoder that it looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from gpu_worker.opaque import number_of

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


class _EmptyLayer(CacheLayerMixin):
    """What stock code sees of a layer: it hands on new keys and values, and keeps none."""

    is_compileable = True
    is_sliding = False

    def __init__(self, nothing: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = self.values = nothing
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hands them on to `slot_attention`."""
        return key_states, value_states

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the storage is there."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Nobody asks: the masks are there, too."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nobody asks whom this would tell: rows are at positions of their own."""
        return 0

    def get_max_length(self) -> int:
        """As for `get_seq_length`."""
        return 0


class SlotCache(EncoderDecoderCache):
    """All slots, and the positions of the step under way."""

    def __init__(self, geometry: SlotGeometry, num_slots: int) -> None:
        self.geometry = geometry
        self.scratch = geometry.max_decoder_len  # the position that rows of nobody write
        shape = (geometry.num_layers, 2, num_slots, geometry.num_heads)
        kind: dict[str, Any] = {"dtype": geometry.dtype, "device": geometry.device}
        self._own = torch.zeros(*shape, self.scratch + 1, geometry.head_size, **kind)
        self._cross = torch.zeros(*shape, geometry.max_encoder_len, geometry.head_size, **kind)
        # Of each layer, keys and values apart, as every step asks for them: [S, H, length, D] each.
        self._own_layers, self._cross_layers = (
            [layer.unbind() for layer in storage] for storage in (self._own, self._cross)
        )
        self._all_rows = torch.arange(num_slots, device=geometry.device)
        self._all_keys = torch.arange(
            max(self.scratch, geometry.max_encoder_len), device=geometry.device
        )
        self.number = number_of(self)  # by which compiled code finds it
        self.nothing = torch.zeros(1, 1, 1, 1, **kind)  # a mask, keys or values for stock code
        self.use_biases([torch.zeros(1, self.scratch + 1, **kind)])
        self.begin(self._all_rows[:0, None], 0, 0)
        layers = range(geometry.num_layers)
        super().__init__(
            Cache(layers=[_EmptyLayer(self.nothing) for _ in layers]),
            Cache(layers=[_EmptyLayer(self.nothing) for _ in layers]),
        )
        self.is_updated = dict.fromkeys(layers, True)  # `write_cross` has done it

    def use_biases(self, biases: Sequence[torch.Tensor]) -> None:
        """From now on scores of own keys get these, by how many positions back a key is.

        [1 or H, scratch + 1] each: one for every layer, or one for all.
        """
        self._biases = [_with_hidden(bias) for bias in biases]

    def begin(
        self,
        positions: torch.Tensor,
        num_keys: int,
        num_encoder_keys: int,
        encoder_lengths: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Prepares a forward pass over these positions, [B, T] int64, of the rows [B] int64.

        Without `rows` they are 0 to B - 1. It looks at `num_keys` positions or a few more, and at
        the first `encoder_lengths`, [B] int64, of the encoder's; without them, at all of
        `num_encoder_keys`.
        """
        self._has_first_rows = rows is None
        self._rows = self._all_rows[: len(positions)] if rows is None else rows
        self._positions = positions
        self._num_keys = _rounded(num_keys, self.geometry.max_decoder_len)
        distances = positions[..., None] - self._all_keys[: self._num_keys]
        distances.clamp_(min=-1)  # of keys that come later: the last bias hides them
        self._masks = [bias[:, distances].transpose(0, 1) for bias in self._biases]
        self._num_encoder_keys, self._encoder_mask = num_encoder_keys, None
        if encoder_lengths is not None:
            longest = self.geometry.max_encoder_len
            self._num_encoder_keys = _rounded(num_encoder_keys, longest)
            is_hidden = self._all_keys[: self._num_encoder_keys] >= encoder_lengths[:, None]
            mask = self.nothing.new_zeros(is_hidden.shape)
            mask.masked_fill_(is_hidden, torch.finfo(mask.dtype).min)
            self._encoder_mask = mask[:, None, None]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
    ) -> torch.Tensor:
        """Keeps each row's keys and values, and attends to its own so far.

        [B, H, T, D] each, to [B, T, H, D].
        """
        rows = self._rows[:, None]
        own = self._own_layers[layer]
        for storage, states in zip(own, (key, value), strict=True):
            storage[rows, :, self._positions] = states.transpose(1, 2)
        mask = self._masks[layer if len(self._masks) > 1 else 0]
        return self._attend(query, own, self._num_keys, mask, scaling)

    def look(self, layer: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attends to what the encoder gave each row, [B, H, T, D] to [B, T, H, D]."""
        cross, mask = self._cross_layers[layer], self._encoder_mask
        return self._attend(query, cross, self._num_encoder_keys, mask, scaling)

    def encoder_keys(self, layer: int) -> torch.Tensor:
        """[B, H, E, D] that the rows look at."""
        return self._view(self._cross_layers[layer][0], self._num_encoder_keys)

    def write_cross(self, layer: int, row: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keeps what one layer makes of the encoder's output, [H, E, D] each."""
        self._cross[layer, 0, row, :, : key.shape[1]] = key
        self._cross[layer, 1, row, :, : value.shape[1]] = value

    def move(self, source: int, target: int, num_tokens: int, num_encoder_tokens: int) -> None:
        """Copies a slot's first positions to another slot."""
        for storage, length in ((self._own, num_tokens), (self._cross, num_encoder_tokens)):
            storage[:, :, target, :, :length] = storage[:, :, source, :, :length]

    def _attend(
        self,
        query: torch.Tensor,
        storages: tuple[torch.Tensor, ...],
        length: int,
        mask: torch.Tensor | None,
        scaling: float | None,
    ) -> torch.Tensor:
        keys, values = (self._view(storage, length) for storage in storages)
        output = scaled_dot_product_attention(query, keys, values, mask, scale=scaling)
        return output.transpose(1, 2).contiguous()

    def _view(self, storage: torch.Tensor, length: int) -> torch.Tensor:
        """[B, H, length, D] of the rows' slots."""
        if self._has_first_rows:
            return storage[: len(self._rows), :, :length]
        return storage[:, :, :length].index_select(0, self._rows)


def _with_hidden(bias: torch.Tensor) -> torch.Tensor:
    """With one more at the end, under which nothing is seen."""
    hidden = torch.full_like(bias[:, :1], torch.finfo(bias.dtype).min)
    return torch.cat([bias, hidden], dim=1)


def _rounded(length: int, longest: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, longest)
