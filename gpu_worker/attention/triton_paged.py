"""Paged attention by Triton kernels, for CUDA: decodes by split contexts, prefills by query tiles.

Block tables live on the device, one a row; a step sends only what is new in them. A batch of
decodes alone launches the same kernels on the same addresses every time, so that CUDA graphs can
hold them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from gpu_worker.attention import triton_kernels as kernels
from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import Batch
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry, num_slots

_WRITE_TILE = 1024  # numbers that one program copies
_SMALLEST_SPLIT = 128  # keys; a multiple of every launch's
_PROGRAMS_OF_ONE_CONTEXT = 256  # splits times KV heads: about two a multiprocessor
_MIN_SPLITS, _MAX_SPLITS = 8, 64
_PROGRAMS_PER_PROCESSOR = 4
_INTERPRETED_PROCESSORS = 1  # where there is no GPU
_SMALLEST_DOT = 16  # each side of a tile that `tl.dot` takes


@dataclass(frozen=True)
class _Launch:
    """How one kernel is cut and compiled.

    A tile of keys waits for its slots, which are loaded too, so that shared memory holds the tiles
    of half as many stages.
    """

    queries: int  # tokens of a tile
    keys: int  # positions of a tile
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """What Triton's compiler is told."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class _Pool:
    """Keys and values of one layer, and how its kernels are launched."""

    keys: torch.Tensor  # [S, Hkv, Dk]
    values: torch.Tensor  # [S, Hkv, Dv]
    geometry: LayerGeometry
    num_splits: int  # most splits of a context
    decode: _Launch
    prefill: _Launch
    sizes: dict[str, int]  # compiled into both


class TritonPagedAttention:
    """The pool of every layer, a block table for every row, and one more row for padding.

    The table of row `scratch_row` names block 0 only, where padding writes.
    """

    def __init__(
        self, geometry: KVGeometry, num_blocks: int, *, num_rows: int, max_model_len: int
    ) -> None:
        device = geometry.device
        self.scratch_row = num_rows
        self._pools = [_pool(geometry, layer, num_slots(num_blocks)) for layer in geometry.layers]
        width = triton.cdiv(max_model_len, BLOCK_SIZE * 16) * 16  # one compilation for all lengths
        self._tables = torch.zeros(num_rows + 1, width, dtype=torch.long, device=device)
        self._span_tile = triton.next_power_of_2(num_rows)
        self._wanted_programs = _PROGRAMS_PER_PROCESSOR * _num_processors(device)
        self._batch: Batch | None = None

    def begin(self, batch: Batch) -> None:
        """Brings the block tables up to date, before anything of the step reads them."""
        if batch.table_updates.shape[1]:
            rows, indices, blocks = batch.table_updates
            self._tables.index_put_((rows, indices), blocks)
        self._batch = batch

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        """See `AttentionBackend`."""
        batch, pool = self._batch, self._pools[layer]
        assert batch is not None, "begin comes first"
        _write(pool, _dense(key)[0], _dense(value)[0], batch.slots)
        queries = _dense(query)[0]
        num_heads, num_tokens, _ = queries.shape
        output = query.new_empty(1, num_tokens, num_heads, pool.geometry.value_size)
        if batch.num_decodes:
            self._decode(pool, queries, output, batch, rules)
        if batch.num_decodes < num_tokens:
            self._prefill(pool, queries, output, batch, rules)
        return output

    def _decode(
        self,
        pool: _Pool,
        query: torch.Tensor,  # [H, T, Dk]
        output: torch.Tensor,  # [1, T, H, Dv]
        batch: Batch,
        rules: AttentionRules,
    ) -> None:
        """Attends with the first tokens, one of each decoding sequence."""
        num_heads, num_kv_heads = query.shape[0], pool.geometry.num_kv_heads
        group, num_decodes, launch = num_heads // num_kv_heads, batch.num_decodes, pool.decode
        partial = torch.empty(
            num_decodes, num_heads, pool.num_splits, pool.geometry.value_size,
            dtype=torch.float32, device=query.device,
        )  # fmt: skip
        maxima, sums = partial.new_empty(2, num_decodes, num_heads, pool.num_splits)
        splits = {"KEYS": launch.keys, "SPLITS": pool.num_splits, "SMALLEST": _SMALLEST_SPLIT}
        reach = {"WINDOW": rules.window or 0, "CHUNK": rules.chunk or 0}
        wanted = triton.cdiv(self._wanted_programs, num_decodes * num_kv_heads)
        programs = min(pool.num_splits, triton.next_power_of_2(wanted))
        kernels.decode_kernel[(num_decodes, num_kv_heads, programs)](
            query, pool.keys, pool.values, self._tables, batch.span_rows, batch.context_lengths,
            partial, maxima, sums,
            float(rules.scaling), query.stride(0), query.stride(1), self._tables.stride(0),
            GROUP=group, GROUP_TILE=_tile(group), SOFTCAP=float(rules.softcap or 0),
            **splits, **reach, **pool.sizes, **launch.options,
        )  # fmt: skip
        kernels.merge_kernel[(num_decodes, num_heads)](
            partial, maxima, sums, query if rules.sinks is None else rules.sinks,
            batch.context_lengths, output,
            VALUE_SIZE=pool.geometry.value_size, VALUE_TILE=pool.sizes["VALUE_TILE"],
            HAS_SINKS=rules.sinks is not None, **splits, **reach,
        )  # fmt: skip

    def _prefill(
        self,
        pool: _Pool,
        query: torch.Tensor,  # [H, T, Dk]
        output: torch.Tensor,  # [1, T, H, Dv]
        batch: Batch,
        rules: AttentionRules,
    ) -> None:
        """Attends with the tokens of all other sequences."""
        num_heads, num_tokens, _ = query.shape
        first, launch = batch.num_decodes, pool.prefill
        num_spans = batch.span_rows.shape[0] - first
        num_tiles = (num_tokens - first) // launch.queries + num_spans
        kernels.prefill_kernel[(num_heads, num_tiles)](
            query, pool.keys, pool.values, query if rules.sinks is None else rules.sinks,
            self._tables, batch.span_rows[first:], batch.context_lengths[first:],
            batch.span_starts[first:], output,
            num_spans, float(rules.scaling),
            query.stride(0), query.stride(1), self._tables.stride(0),
            GROUP=num_heads // pool.geometry.num_kv_heads,
            KEYS=launch.keys, QUERIES=launch.queries, SPANS=self._span_tile,
            WINDOW=rules.window or 0, CHUNK=rules.chunk or 0, SOFTCAP=float(rules.softcap or 0),
            HAS_SINKS=rules.sinks is not None, **pool.sizes, **launch.options,
        )  # fmt: skip


def _write(pool: _Pool, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Puts [Hkv, T, D] keys and values into their slots."""
    geometry = pool.geometry
    longest = geometry.num_kv_heads * max(geometry.key_size, geometry.value_size)
    kernels.write_kernel[(slots.shape[0], triton.cdiv(longest, _WRITE_TILE))](
        key, value, pool.keys, pool.values, slots,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HEADS=geometry.num_kv_heads, KEY_SIZE=geometry.key_size, VALUE_SIZE=geometry.value_size,
        TILE=_WRITE_TILE,
    )  # fmt: skip


def _pool(geometry: KVGeometry, layer: LayerGeometry, slots: int) -> _Pool:
    def heads(size: int) -> torch.Tensor:
        shape = (slots, layer.num_kv_heads, size)
        return torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)

    key_tile, value_tile = _tile(layer.key_size), _tile(layer.value_size)
    row_bytes = max(key_tile, value_tile) * geometry.dtype.itemsize
    splits = triton.next_power_of_2(triton.cdiv(_PROGRAMS_OF_ONE_CONTEXT, layer.num_kv_heads))
    return _Pool(
        keys=heads(layer.key_size),
        values=heads(layer.value_size),
        geometry=layer,
        num_splits=min(max(splits, _MIN_SPLITS), _MAX_SPLITS),
        decode=_decode_launch(row_bytes),
        prefill=_prefill_launch(row_bytes, geometry.dtype.itemsize),
        sizes={
            "HEADS": layer.num_kv_heads,
            "KEY_SIZE": layer.key_size,
            "KEY_TILE": key_tile,
            "VALUE_SIZE": layer.value_size,
            "VALUE_TILE": value_tile,
            "BLOCK": BLOCK_SIZE,
        },
    )


def _decode_launch(row_bytes: int) -> _Launch:
    """16 KiB of keys a tile: with values, and twice, three programs fit a processor (sm_90)."""
    return _Launch(queries=1, keys=min(max(2**14 // row_bytes, 16), 64), num_warps=4, num_stages=5)


def _prefill_launch(row_bytes: int, itemsize: int) -> _Launch:
    """As large as registers and 227 KiB of shared memory (sm_90) allow without spilling."""
    if itemsize == 4 or row_bytes > 512:
        return _Launch(queries=32, keys=16, num_warps=8, num_stages=3)
    queries, keys = (128, 64) if row_bytes <= 256 else (64, 32)
    return _Launch(queries, keys, num_warps=8, num_stages=5)


def _tile(size: int) -> int:
    tile: int = triton.next_power_of_2(size)
    return max(tile, _SMALLEST_DOT)


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    properties: Any = torch.cuda.get_device_properties(device)
    count: int = properties.multi_processor_count
    return count


def _dense(heads: torch.Tensor) -> torch.Tensor:
    """The same numbers, those of one head side by side."""
    return heads if heads.stride(-1) == 1 else heads.contiguous()
