"""Where in a sound the decoder heard each token: the attention of a few heads to the encoder.

As transformers' `_extract_token_timestamps`, up to its dynamic time warping, which another process
does. Dimension names: B rows, H heads, D head size, T tokens of each row, E positions of the
encoder.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

logger = logging.getLogger(__name__)

Head = tuple[int, int]  # a layer of the decoder, and one of its heads

# How much tokens differ in looking at a position, in probability. Below, none looks there, as in
# silence; stock code divides by it all the same, and makes as much of nothing as of something.
_LEAST_SPREAD = 1e-6


class Span(NamedTuple):
    """The part of a row's attention that is asked for."""

    first: int  # token
    end: int  # the token after the last
    num_positions: int


class AttentionWatch:
    """Sees one forward pass and keeps the mean of what these heads look at.

    One head's attention at a time is in memory: of all of them it is far larger than the model.
    """

    def __init__(self, heads: Sequence[Head], filter_width: int, spans: Sequence[Span]) -> None:
        """One span a row; the filter smooths over so many positions."""
        self._heads = heads
        self._filter_width = filter_width
        self._spans = spans
        self._sums: list[torch.Tensor | None] = [None] * len(spans)

    def look(self, attention: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        """Sees one layer's queries [B, H, T, D], scaled, and keys [B, H, E, D]."""
        if attention.is_causal or not attention.is_decoder:
            return  # it looks at tokens
        for layer, head in self._heads:
            if layer == attention.layer_idx:
                scores = query[:, head].float() @ key[:, head].float().mT
                self._add(scores.softmax(-1))

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """How much the tokens of each row's span belong to each position, [T, E] float32."""
        assert None not in self._sums, "no layer that was looked at has these heads"
        return tuple(total / len(self._heads) for total in self._sums if total is not None)

    def _add(self, weights: torch.Tensor) -> None:
        """Adds what one head looks at, [B, T, E]."""
        for row, (first, end, num_positions) in enumerate(self._spans):
            own = weights[row : row + 1, first:end, :num_positions]
            std = own.std(-2, keepdim=True, unbiased=False)
            own = (own - own.mean(-2, keepdim=True)) / std.clamp(min=_LEAST_SPREAD)
            smooth = _smoothed(own, self._filter_width)[0]
            total = self._sums[row]
            self._sums[row] = smooth if total is None else total + smooth


def _smoothed(weights: torch.Tensor, width: int) -> torch.Tensor:
    """The median of so many positions around each, [1, T, E]; ends are mirrored."""
    margin = width // 2
    if weights.shape[-1] <= margin:
        return weights
    mirrored = pad(weights, (margin, margin), mode="reflect")
    return mirrored.unfold(-1, width, 1).sort().values[..., margin]


def alignment_heads(model: Any) -> tuple[Head, ...]:
    """Those that the checkpoint names; else all of the upper half (Whisper's reference)."""
    num_layers, num_heads = model.config.decoder_layers, model.config.decoder_attention_heads
    named = getattr(model.generation_config, "alignment_heads", None) or ()
    known = [
        (layer, head) for layer, head in named if 0 <= layer < num_layers and 0 <= head < num_heads
    ]
    if len(known) < len(named):
        logger.warning("generation_config.json names alignment_heads that the model lacks")
    layers = range(num_layers // 2, num_layers)
    return tuple(known or ((layer, head) for layer in layers for head in range(num_heads)))
