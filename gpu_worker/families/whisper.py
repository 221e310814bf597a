"""Whisper: stock code over slots (Radford et al., 2022).

The encoder reads a window of sound, as a log-mel spectrogram of fixed length. Positions of the
decoder are learnt, and stock code takes them as an argument: a row's own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from gpu_worker.alignment import AttentionWatch, Span, alignment_heads
from gpu_worker.cpu_kernels.linear import NativeLinears
from gpu_worker.linears.packed import pack_linears
from gpu_worker.slot_attention import SLOT_ATTENTION
from gpu_worker.slot_cache import SlotCache, SlotGeometry
from scheduler.plan import Admission
from shared.windows import FRAMES_PER_POSITION

# Of the decoder's linear layers in float32 on the CPU: one or two windows read smaller weights
# faster as they are, eight as fast (docs/log.md).
SMALLEST_PACKED = 2**20  # numbers


class Whisper:
    """The adapter of one model and its slots."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        stock: Any = model  # transformers types no submodule
        self._model = stock
        self._cache = cache
        self._device = model.device
        self.vocab_size: int = model.config.vocab_size
        config = model.config
        self._shape = (config.num_mel_bins, FRAMES_PER_POSITION * config.max_source_positions)
        self._alignment_heads = alignment_heads(model)
        model.set_attn_implementation(SLOT_ATTENTION)
        # Stock code asks of the encoder's states only that there are some: they are projected.
        self._no_states = torch.zeros(1, 1, config.d_model, device=model.device, dtype=model.dtype)

    def encode(self, admissions: Sequence[Admission]) -> torch.Tensor:
        """See `Adapter`."""
        windows = [
            torch.frombuffer(bytearray(admission.encoder_input.features), dtype=torch.float32)
            for admission in admissions
        ]
        features = torch.stack(windows).view(-1, *self._shape).to(self._device, self._model.dtype)
        states: torch.Tensor = self._model.model.encoder(features).last_hidden_state
        return states

    def project(self, states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `Adapter`."""
        for layer in self._model.model.decoder.layers:
            attention = layer.encoder_attn
            shape = (*states.shape[:2], -1, self._cache.geometry.head_size)
            keys, values = (
                attention.k_proj(states).view(shape),
                attention.v_proj(states).view(shape),
            )
            yield keys.transpose(1, 2), values.transpose(1, 2)

    def watch(self, spans: Sequence[Span]) -> AttentionWatch:
        """See `Adapter`."""
        width = self._model.config.median_filter_width
        return AttentionWatch(self._alignment_heads, width, spans)

    def decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, watch: AttentionWatch | None = None
    ) -> torch.Tensor:
        """See `Adapter`. Padding is at a position beyond the last, which the table lacks."""
        cache = self._cache
        states: torch.Tensor = self._model.model.decoder(
            input_ids=token_ids,
            attention_mask=cache.nothing,
            position_ids=positions.clamp(max=cache.scratch - 1),
            encoder_hidden_states=self._no_states,
            past_key_values=cache,
            use_cache=True,
            slots=cache,  # for `slot_attention`, through all of stock code
            watch=watch,
        ).last_hidden_state
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See `Adapter`."""
        logits: torch.Tensor = self._model.proj_out(states)
        return logits


def pack(model: PreTrainedModel, library: NativeLinears | None = None) -> None:
    """Packs linear layers for the CPU: the encoder's as any model's; of the decoder's fewer.

    In float32 these are its output layer and those of `SMALLEST_PACKED` numbers or more, in
    bfloat16 all: see `pack_linears`.
    """
    stock: Any = model
    pack_linears(stock.model.encoder, library=library)
    pack_linears(model, SMALLEST_PACKED, library)


def num_positions(config: PreTrainedConfig) -> int:
    """Positions that the encoder makes of a window."""
    return int(config.max_source_positions)


def feature_bytes(config: PreTrainedConfig) -> int:
    """Bytes of a window's features."""
    return 4 * int(config.num_mel_bins) * FRAMES_PER_POSITION * num_positions(config)


def geometry(model: PreTrainedModel) -> SlotGeometry:
    """What a slot of this model holds."""
    config = model.config
    return SlotGeometry(
        num_layers=config.decoder_layers,
        num_heads=config.decoder_attention_heads,
        head_size=config.d_model // config.decoder_attention_heads,
        max_decoder_len=config.max_target_positions,
        max_encoder_len=num_positions(config),
        dtype=model.dtype,
        device=model.device,
    )
