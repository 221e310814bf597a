"""T5 and its kin: stock code, with a relative bias for rows at different positions.

T5 adds to every attention score a learnt bias for the distance between query and key (Raffel et
al., 2020). Stock code computes it for one position of the whole batch, in the first decoder layer
(T5, mT5) or in each (UMT5); here the slots look it up for each row's own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from gpu_worker.alignment import AttentionWatch, Span
from gpu_worker.slot_attention import SLOT_ATTENTION
from gpu_worker.slot_cache import SlotCache, SlotGeometry
from gpu_worker.upload import upload, within
from scheduler.plan import Admission


class T5:
    """The adapter of one model and its slots."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        stock: Any = model  # transformers types no submodule
        self._model = stock
        self._cache = cache
        self._device = model.device
        self.vocab_size: int = model.config.vocab_size
        model.set_attn_implementation(SLOT_ATTENTION)
        # Stock code asks of the encoder's states only that there are some: they are projected.
        self._no_states = torch.zeros(1, 1, model.config.d_model, device=model.device)
        layers = [block.layer[0].SelfAttention for block in stock.decoder.block]
        biased = [attention for attention in layers if attention.has_relative_attention_bias]
        with torch.inference_mode():
            cache.use_biases([_biases(attention, cache.scratch) for attention in biased])
        for attention in biased:
            attention.compute_bias = lambda *_, **__: cache.nothing

    def encode(self, admissions: Sequence[Admission]) -> torch.Tensor:
        """See `Adapter`."""
        inputs = [admission.encoder_input.token_ids for admission in admissions]
        lengths = [len(token_ids) for token_ids in inputs]
        padded = [
            token_id
            for token_ids in inputs
            for token_id in (*token_ids, *(0,) * (max(lengths) - len(token_ids)))
        ]
        token_ids = upload(padded, torch.long, self._device).view(len(inputs), max(lengths))
        is_input = within(lengths, max(lengths), self._device)
        states: torch.Tensor = self._model.encoder(
            input_ids=token_ids, attention_mask=is_input.long()
        ).last_hidden_state
        return states

    def project(self, states: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See `Adapter`."""
        for layer in self._model.decoder.block:
            attention = layer.layer[1].EncDecAttention
            shape = (*states.shape[:2], -1, self._cache.geometry.head_size)
            keys, values = attention.k(states).view(shape), attention.v(states).view(shape)
            yield keys.transpose(1, 2), values.transpose(1, 2)

    def decode(
        self, token_ids: torch.Tensor, _: torch.Tensor, watch: AttentionWatch | None = None
    ) -> torch.Tensor:
        """See `Adapter`; the slots know how far from each other positions are."""
        cache = self._cache
        states: torch.Tensor = self._model.decoder(
            input_ids=token_ids,
            attention_mask=cache.nothing,
            encoder_hidden_states=self._no_states,
            encoder_attention_mask=cache.nothing,
            past_key_values=cache,
            use_cache=True,
            slots=cache,  # for `slot_attention`, through all of stock code
            watch=watch,
        ).last_hidden_state
        return states

    def watch(self, spans: Sequence[Span]) -> AttentionWatch:
        """See `Adapter`; no head tells the times of a text."""
        return AttentionWatch((), 1, spans)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See `Adapter`."""
        config = self._model.config
        is_scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        if is_scaled:
            states = states * config.d_model**-0.5
        logits: torch.Tensor = self._model.lm_head(states)
        return logits


def trained_length(config: PreTrainedConfig) -> int:
    """Tokens that the model is known to read well; the original T5 read 512."""
    return max(512, int(getattr(config, "n_positions", 0)))


def geometry(model: PreTrainedModel, *, max_decoder_len: int, max_encoder_len: int) -> SlotGeometry:
    """What a slot of this model holds."""
    config = model.config
    return SlotGeometry(
        num_layers=config.num_decoder_layers,
        num_heads=config.num_heads,
        head_size=config.d_kv,
        max_decoder_len=max_decoder_len,
        max_encoder_len=max_encoder_len,
        dtype=model.dtype,
        device=model.device,
    )


def _buckets(attention: Any, distances: torch.Tensor) -> Any:
    """Which learnt bias each distance has, by stock code, which in T5 knows no settings."""
    if isinstance(attention, UMT5Attention):
        return attention._relative_position_bucket(distances)
    return attention._relative_position_bucket(
        distances,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )


def _biases(attention: Any, farthest: int) -> torch.Tensor:
    """[H, farthest + 1], of keys so many positions back."""
    distances = torch.arange(farthest + 1, device=attention.relative_attention_bias.weight.device)
    biases: torch.Tensor = attention.relative_attention_bias(_buckets(attention, -distances))
    return biases.t().contiguous()
