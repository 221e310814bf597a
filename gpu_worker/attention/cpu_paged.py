"""Paged attention by the native CPU kernel: contexts are read where they lie, and never copied.

It does every rule of `AttentionRules`, for prompts as for single tokens, in float32 arithmetic; or
by the matrix unit or products of pairs, where there are such, from bfloat16 keys and values, with
sums in float32.
"""

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import Batch
from gpu_worker.cpu_kernels.attention import TYPES, Call, Kernels, Pool, Spans, Unit, load_kernels
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layer:
    """The tensors own the memory that the structure points to."""

    keys: torch.Tensor  # [blocks, Hkv, Dk, 16], or as pairs [blocks, Hkv, Dk / 2, 16, 2]
    values: torch.Tensor  # [blocks, Hkv, 16, Dv], or [blocks, Hkv, Dv / 16, 8, 16, 2]
    pool: Pool


class CpuPagedAttention:
    """One native call a layer, for all sequences of the step.

    A token's result depends, bit for bit, on its own context only: not on the rest of the batch,
    on the number of threads, or on where its prompt was cut into chunks.
    """

    def __init__(self, kernels: Kernels, geometry: KVGeometry, num_blocks: int) -> None:
        self._kernels = kernels
        self._layers = [
            _layer(kernels, layer, num_blocks + 1, geometry.dtype)  # and the scratch block
            for layer in geometry.layers
        ]
        self._spans = Spans()
        self._arrays: list[array[int]] = []  # own the memory that the spans point to
        self.num_written_tokens = 0  # since the start, of every layer: what the kernel reports

    def begin(self, batch: Batch) -> None:
        """Lists where each sequence's tokens and blocks lie."""
        spans = batch.spans
        used = [-(-span.context_length // BLOCK_SIZE) for span in spans]
        blocks, tables = array("i"), array("q")
        for span, num_blocks in zip(spans, used, strict=True):
            tables.append(len(blocks))
            blocks.extend(span.blocks[:num_blocks])
        starts = array("q", [span.start for span in spans])
        lengths = array("q", [span.end - span.start for span in spans])
        contexts = array("q", [span.context_length for span in spans])
        self._arrays = [starts, lengths, contexts, tables, blocks]
        addresses = [values.buffer_info()[0] for values in self._arrays]
        self._spans = Spans(len(spans), *addresses, torch.get_num_threads())

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        query, key, value = (_dense(x, query.dtype) for x in (query, key, value))
        output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        sinks = None if rules.sinks is None else rules.sinks.float().contiguous()
        call = Call(
            query.data_ptr(), query.stride(1), query.stride(2),
            key.data_ptr(), key.stride(1), key.stride(2),
            value.data_ptr(), value.stride(1), value.stride(2),
            output.data_ptr(), TYPES[query.dtype], query.shape[1],
            rules.scaling, rules.softcap or 0.0, rules.window or 0, rules.chunk or 0,
            None if sinks is None else sinks.data_ptr(),
        )  # fmt: skip
        pool = self._layers[layer].pool
        self.num_written_tokens += self._kernels.paged_attention(pool, self._spans, call)
        return output


def choose_cpu_backend(
    geometry: KVGeometry,
    num_query_heads: Sequence[int],  # of every layer
    num_blocks: int,
    cache_directory: Path | None = None,
) -> CpuPagedAttention | None:
    """The native backend where it can serve this model; None, with one log line, where not."""
    if (reason := _misfit(geometry, num_query_heads)) is not None:
        logger.warning("CPU attention: plain torch, because %s", reason)
        return None
    kernels = load_kernels(cache_directory)
    return None if kernels is None else CpuPagedAttention(kernels, geometry, num_blocks)


def _misfit(geometry: KVGeometry, num_query_heads: Sequence[int]) -> str | None:
    if geometry.dtype not in TYPES:
        return f"the kernels do not know {geometry.dtype}"
    for layer, num_heads in zip(geometry.layers, num_query_heads, strict=True):
        if num_heads % layer.num_kv_heads:
            return f"{num_heads} query heads are no multiple of {layer.num_kv_heads} key heads"
    return None


def _layer(
    kernels: Kernels, geometry: LayerGeometry, num_blocks: int, dtype: torch.dtype
) -> _Layer:
    """An empty pool in the layout for the fastest arithmetic that it can have here."""
    heads, key_size, value_size = geometry.num_kv_heads, geometry.key_size, geometry.value_size
    unit = kernels.best_unit(dtype, key_size, value_size)
    in_pairs = unit != Unit.VECTORS
    key_shape = (key_size // 2, BLOCK_SIZE, 2) if in_pairs else (key_size, BLOCK_SIZE)
    tiles = (value_size // 16, BLOCK_SIZE // 2, 16, 2)
    value_shape = tiles if in_pairs else (BLOCK_SIZE, value_size)
    keys = torch.zeros(num_blocks, heads, *key_shape, dtype=dtype)
    values = torch.zeros(num_blocks, heads, *value_shape, dtype=dtype)
    pool = Pool(keys.data_ptr(), values.data_ptr(), TYPES[dtype], heads, key_size, value_size, unit)
    return _Layer(keys, values, pool)


def _dense(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The step's tokens as the kernel needs them, each head's elements adjacent; mostly as is."""
    return x if x.dtype == dtype and x.stride(3) == 1 else x.to(dtype).contiguous()
