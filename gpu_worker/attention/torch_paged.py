"""Paged attention in plain torch: runs everywhere, does every rule, and is the others' oracle.

Keys and values of a layer lie in slots, `[S, Hkv, D]`, so that a context whose blocks are
neighbours is a view and is never copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import Batch, Span
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, num_slots

# Scores are made for at most as many pairs of head and query and key at once.
_TILE_SCORES = 2**23


@dataclass(frozen=True)
class _Reach:
    """The keys that a span's queries see, M in number, and which query sees which."""

    blocks: torch.Tensor | None  # gathered before `slots` counts; None: neighbours in the pool
    slots: slice
    is_causal: bool  # query n sees the first n + 1 keys
    mask: torch.Tensor | None  # [t, M] bool; None without `is_causal`: all see all


@dataclass
class _Step:
    """What the layers of one step share."""

    batch: Batch
    reaches: dict[tuple[int | None, int | None], list[_Reach]] = field(default_factory=dict)


class TorchAttention:
    """One scaled dot product after the other, one for every sequence."""

    def __init__(self, geometry: KVGeometry, num_blocks: int) -> None:
        self._step: _Step | None = None
        slots = num_slots(num_blocks)
        self._device = geometry.device
        self._layers = [
            tuple(
                torch.zeros(
                    slots, layer.num_kv_heads, size, dtype=geometry.dtype, device=self._device
                )
                for size in (layer.key_size, layer.value_size)
            )
            for layer in geometry.layers
        ]

    def begin(self, batch: Batch) -> None:
        """Forgets the last step; where contexts lie is looked up when a layer asks."""
        self._step = _Step(batch)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        step = self._step
        assert step is not None, "begin comes first"
        keys, values = self._layers[layer]  # [S, Hkv, Dk], [S, Hkv, Dv]
        keys.index_copy_(0, step.batch.slots, key[0].transpose(0, 1))
        values.index_copy_(0, step.batch.slots, value[0].transpose(0, 1))
        outputs = [
            _attend(
                query[0, :, span.start : span.end],
                _read(keys, reach),
                _read(values, reach),
                reach,
                rules,
            )
            for span, reach in zip(step.batch.spans, self._reaches(step, rules), strict=True)
        ]
        return torch.cat(outputs)[None]

    def _reaches(self, step: _Step, rules: AttentionRules) -> list[_Reach]:
        key = (rules.window, rules.chunk)
        if key not in step.reaches:
            step.reaches[key] = [_reach(span, rules, self._device) for span in step.batch.spans]
        return step.reaches[key]


def _reach(span: Span, rules: AttentionRules, device: torch.device) -> _Reach:
    """The shortest range of keys that holds all visible ones."""
    start, end = span.context_length - (span.end - span.start), span.context_length
    first = 0
    if rules.window is not None:
        first = max(0, start - rules.window + 1)
    if rules.chunk is not None:
        first = max(first, start // rules.chunk * rules.chunk)
    blocks, slots = _place(span.blocks, first, end, device)
    if end - start == 1:
        return _Reach(blocks, slots, is_causal=False, mask=None)
    last = end - 1
    is_cut = (rules.window is not None and last - rules.window >= first) or (
        rules.chunk is not None and last // rules.chunk != first // rules.chunk
    )
    if first == start and not is_cut:
        return _Reach(blocks, slots, is_causal=True, mask=None)
    return _Reach(blocks, slots, is_causal=False, mask=_visible(start, first, end, rules, device))


def _place(
    table: list[int], first: int, end: int, device: torch.device
) -> tuple[torch.Tensor | None, slice]:
    """Where positions `first` to `end` - 1 lie: the blocks to gather, and the slots in those."""
    first_block = first // BLOCK_SIZE
    blocks = table[first_block : -(-end // BLOCK_SIZE)]
    before = first_block * BLOCK_SIZE
    if blocks == list(range(blocks[0], blocks[0] + len(blocks))):
        before -= blocks[0] * BLOCK_SIZE
        return None, slice(first - before, end - before)
    return torch.tensor(blocks, device=device), slice(first - before, end - before)


def _visible(
    start: int, first: int, end: int, rules: AttentionRules, device: torch.device
) -> torch.Tensor:
    """[t, M] bool: queries from `start`, keys from `first`, both up to `end` - 1."""
    keys = torch.arange(first, end, device=device)
    queries = torch.arange(start, end, device=device)[:, None]
    visible = keys <= queries
    if rules.window is not None:
        visible &= keys > queries - rules.window
    if rules.chunk is not None:
        visible &= keys // rules.chunk == queries // rules.chunk
    return visible


def _read(pool: torch.Tensor, reach: _Reach) -> torch.Tensor:
    """[Hkv, M, D]; a view of the pool where the context's blocks are neighbours."""
    if reach.blocks is not None:
        pool = (
            pool.view(-1, BLOCK_SIZE, *pool.shape[1:]).index_select(0, reach.blocks).flatten(0, 1)
        )
    return pool[reach.slots].transpose(0, 1)


def _attend(
    query: torch.Tensor,  # [H, t, Dk]
    keys: torch.Tensor,  # [Hkv, M, Dk]
    values: torch.Tensor,  # [Hkv, M, Dv]
    reach: _Reach,
    rules: AttentionRules,
) -> torch.Tensor:
    """Attention of one sequence's newest tokens over what they see of its context; [t, H, Dv]."""
    num_heads, num_queries, size = query.shape
    num_kv_heads = keys.shape[0]
    has_plain_scores = rules.softcap is None and rules.sinks is None
    if has_plain_scores and size == values.shape[2]:
        if num_queries == 1:  # a group's heads see the same keys, as one head's queries do
            query = query.view(1, num_kv_heads, -1, size)
            output = scaled_dot_product_attention(
                query, keys[None], values[None], scale=rules.scaling
            )
            return output.view(1, num_heads, size)
        grouped = query.reshape(num_kv_heads, -1, num_queries, size)  # [Hkv, G, t, D]
        output = _fused(grouped, keys, values, reach, rules.scaling)
    else:
        grouped = query.reshape(num_kv_heads, -1, num_queries, size)
        output = torch.cat(list(_tiles(grouped, keys, values, reach, rules)), 2)
    return output.reshape(num_heads, num_queries, -1).transpose(0, 1)


def _fused(
    query: torch.Tensor,  # [Hkv, G, t, D]
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: _Reach,
    scaling: float,
) -> torch.Tensor:
    """[Hkv, G, t, D], without scores in memory."""
    group = query.shape[1]
    return scaled_dot_product_attention(
        query,
        keys[:, None].expand(-1, group, -1, -1),
        values[:, None].expand(-1, group, -1, -1),
        attn_mask=reach.mask,
        is_causal=reach.is_causal,
        scale=scaling,
    )


def _tiles(
    query: torch.Tensor,  # [Hkv, G, t, Dk]
    keys: torch.Tensor,
    values: torch.Tensor,
    reach: _Reach,
    rules: AttentionRules,
) -> Iterator[torch.Tensor]:
    """[Hkv, G, part of t, Dv] each, with scores in memory for as many queries as may be."""
    num_kv_heads, group, num_queries, _ = query.shape
    num_keys = keys.shape[1]
    mask = reach.mask
    if reach.is_causal:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=keys.device).tril()
    step = max(1, _TILE_SCORES // (num_kv_heads * group * num_keys))
    for start in range(0, num_queries, step):
        rows = query[:, :, start : start + step]
        scores = rows.flatten(1, 2) @ keys.transpose(1, 2)  # [Hkv, G x rows, M]
        weights = _weights(
            scores.view(num_kv_heads, group, -1, num_keys),
            None if mask is None else mask[start : start + step],
            rules,
        )
        output = weights.to(values.dtype).flatten(1, 2) @ values
        yield output.view(num_kv_heads, group, -1, values.shape[2])


def _weights(
    scores: torch.Tensor,  # [Hkv, G, t, M]
    mask: torch.Tensor | None,  # [t, M] bool
    rules: AttentionRules,
) -> torch.Tensor:
    """How much each key counts for each query, [Hkv, G, t, M]; sinks take a part for nothing."""
    scores = scores.float() * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if rules.sinks is None:
        return scores.softmax(-1)
    sinks = rules.sinks.float().view(*scores.shape[:2], 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
