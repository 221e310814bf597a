"""Triton kernels: write a step's keys and values to the pool, and attend over it by block tables.

Decoding splits each context over several programs and merges their shares in a second kernel
(flash-decoding, https://pytorch.org/blog/flash-decoding; the merge as in Milakov and Gimelshein,
2018, https://arxiv.org/abs/1805.02867). Where a context is split depends on itself alone, so a
sequence's result is the same to the bit whoever shares its batch.

Whatever changes from step to step is read from device memory, never from a launch's arguments, so
that a CUDA graph may hold the launches of a batch size. Arguments in capitals are compiled in: 0
switches WINDOW, CHUNK and SOFTCAP off, and a *_TILE is a power of two that holds the size of the
same name. Softmax is taken to base 2, and float32 is multiplied as float32, never as TF32. There
are H query heads, HEADS key/value heads, GROUP query heads to each of them.
"""

# ruff: noqa: N803 — in capitals what is compiled in, as is usual in Triton
# mypy: ignore-errors
# The body of a kernel is Triton's language, which has no types for mypy to see.

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["slots"])
def write_kernel(
    key, value,  # [HEADS, T, Dk], [HEADS, T, Dv]
    keys, values,  # [S, HEADS, Dk], [S, HEADS, Dv]
    slots,  # [T]
    key_head_stride, key_token_stride, value_head_stride, value_token_stride,
    HEADS: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program (t, i) writes numbers i * TILE to (i + 1) * TILE - 1 of token t."""
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_key = at < HEADS * KEY_SIZE
    place = token * key_token_stride + at // KEY_SIZE * key_head_stride + at % KEY_SIZE
    numbers = tl.load(key + place, mask=is_key)
    tl.store(keys + slot * (HEADS * KEY_SIZE) + at, numbers, mask=is_key)
    is_value = at < HEADS * VALUE_SIZE
    place = token * value_token_stride + at // VALUE_SIZE * value_head_stride + at % VALUE_SIZE
    numbers = tl.load(value + place, mask=is_value)
    tl.store(values + slot * (HEADS * VALUE_SIZE) + at, numbers, mask=is_value)


@triton.jit(do_not_specialize=["rows", "lengths"])
def decode_kernel(
    query,  # [H, B, Dk]
    keys, values,  # [S, HEADS, Dk], [S, HEADS, Dv]
    tables,  # [R + 1, blocks of the longest context]
    rows, lengths,  # [B]
    partial,  # [B, H, SPLITS, Dv] float32
    maxima, sums,  # [B, H, SPLITS] float32
    scale, query_head_stride, query_token_stride, table_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr,
    KEY_SIZE: tl.constexpr, KEY_TILE: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr, SMALLEST: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Program (b, h, i) attends for all queries of KV head h, over splits i, i + programs, …"""
    span = tl.program_id(0)
    kv_head = tl.program_id(1)
    table = tables + tl.load(rows + span) * table_stride
    length = tl.load(lengths + span).to(tl.int32)
    low, share = _splits(length, SPLITS, SMALLEST, KEYS, WINDOW, CHUNK)
    member = tl.arange(0, GROUP_TILE)
    head = kv_head * GROUP + member
    place = query + head * query_head_stride + span * query_token_stride
    q = _load_heads(place, member < GROUP, KEY_SIZE, KEY_TILE)
    position = length - 1 + member * 0  # of the queries
    for split in range(tl.program_id(2), tl.cdiv(length - low, share), tl.num_programs(2)):
        start = low + split * share
        end = tl.minimum(start + share, length)
        maximum = tl.full([GROUP_TILE], -float("inf"), tl.float32)
        total = tl.zeros([GROUP_TILE], tl.float32)
        output = tl.zeros([GROUP_TILE, VALUE_TILE], tl.float32)
        for first in range(start, end, KEYS):
            maximum, total, output = _attend(
                q, position, keys, values, kv_head, table, first, end, scale,
                maximum, total, output,
                HEADS, KEY_SIZE, KEY_TILE, VALUE_SIZE, VALUE_TILE,
                BLOCK, KEYS, WINDOW, CHUNK, SOFTCAP,
            )  # fmt: skip
        at = (span * (HEADS * GROUP) + head) * SPLITS + split
        tl.store(maxima + at, maximum, mask=member < GROUP)
        tl.store(sums + at, total, mask=member < GROUP)
        _store_heads(partial + at * VALUE_SIZE, output, member < GROUP, VALUE_SIZE, VALUE_TILE)


@triton.jit(do_not_specialize=["lengths"])
def merge_kernel(
    partial,  # [B, H, SPLITS, Dv] float32
    maxima, sums,  # [B, H, SPLITS] float32
    sinks,  # [H]; anything without HAS_SINKS
    lengths,  # [B]
    output,  # [B, H, Dv]
    VALUE_SIZE: tl.constexpr, VALUE_TILE: tl.constexpr,
    KEYS: tl.constexpr, SPLITS: tl.constexpr, SMALLEST: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Program (b, h) merges what `decode_kernel` left of query head h."""
    span = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lengths + span).to(tl.int32)
    low, share = _splits(length, SPLITS, SMALLEST, KEYS, WINDOW, CHUNK)
    split = tl.arange(0, SPLITS)
    is_split = split < tl.cdiv(length - low, share)
    result = span * tl.num_programs(1) + head
    at = result * SPLITS + split
    maximum = tl.load(maxima + at, mask=is_split, other=-float("inf"))
    total = tl.load(sums + at, mask=is_split, other=0.0)
    highest = tl.max(maximum, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        highest = tl.maximum(highest, sink)
    weight = tl.exp2(maximum - highest)
    denominator = tl.sum(weight * total, 0)
    if HAS_SINKS:
        denominator += tl.exp2(sink - highest)
    parts = _load_heads(partial + at * VALUE_SIZE, is_split, VALUE_SIZE, VALUE_TILE)
    merged = tl.sum(parts * weight[:, None], 0) / denominator
    value_at = tl.arange(0, VALUE_TILE)
    merged = merged.to(output.dtype.element_ty)
    tl.store(output + result * VALUE_SIZE + value_at, merged, mask=value_at < VALUE_SIZE)


@triton.jit(do_not_specialize=["rows", "lengths", "starts", "num_spans"])
def prefill_kernel(
    query,  # [H, T, Dk]
    keys, values,  # [S, HEADS, Dk], [S, HEADS, Dv]
    sinks,  # [H]; anything without HAS_SINKS
    tables,  # [R + 1, blocks of the longest context]
    rows, lengths,  # [num_spans]
    starts,  # [num_spans + 1], first token of each span, side by side
    output,  # [T, H, Dv]
    num_spans, scale, query_head_stride, query_token_stride, table_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr,
    KEY_SIZE: tl.constexpr, KEY_TILE: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, SPANS: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Program (h, i) attends with query head h for tile i: QUERIES tokens of one sequence."""
    head = tl.program_id(0)
    span, local = _tile(starts, num_spans, tl.program_id(1), QUERIES, SPANS)
    start = tl.load(starts + span)
    num_tokens = (tl.load(starts + span + 1) - start).to(tl.int32)
    if local >= num_tokens:
        return
    table = tables + tl.load(rows + span) * table_stride
    length = tl.load(lengths + span).to(tl.int32)
    index = local + tl.arange(0, QUERIES)  # within the span
    is_token = index < num_tokens
    first_position = length - num_tokens + local
    position = length - num_tokens + tl.minimum(index, num_tokens - 1)  # of padding, the last
    place = query + head * query_head_stride + (start + index) * query_token_stride
    q = _load_heads(place, is_token, KEY_SIZE, KEY_TILE)
    maximum = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, VALUE_TILE], tl.float32)
    if HAS_SINKS:  # as if a key with this score and no value had been seen
        maximum = tl.load(sinks + head).to(tl.float32) * LOG2_E + total
        total += 1.0
    low = _first_visible(first_position, WINDOW, CHUNK) // KEYS * KEYS
    end = tl.minimum(length, first_position + QUERIES)
    for first in range(low, end, KEYS):
        maximum, total, result = _attend(
            q, position, keys, values, head // GROUP, table, first, end, scale,
            maximum, total, result,
            HEADS, KEY_SIZE, KEY_TILE, VALUE_SIZE, VALUE_TILE,
            BLOCK, KEYS, WINDOW, CHUNK, SOFTCAP,
        )  # fmt: skip
    target = output + ((start + index) * tl.num_programs(0) + head) * VALUE_SIZE
    _store_heads(target, result / total[:, None], is_token, VALUE_SIZE, VALUE_TILE)


@triton.jit
def _attend(
    q,  # [M, Dk]
    query_position,  # [M]
    keys, values, kv_head, table, first, end, scale,
    maximum, total, output,  # [M], [M], [M, Dv]: of the keys before
    HEADS: tl.constexpr,
    KEY_SIZE: tl.constexpr, KEY_TILE: tl.constexpr,
    VALUE_SIZE: tl.constexpr, VALUE_TILE: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Goes on with an online softmax over KEYS positions from `first` on, those before `end`."""
    position = first + tl.arange(0, KEYS)
    block = tl.load(table + position // BLOCK, mask=position < end, other=0)
    place = (block * BLOCK + position % BLOCK) * HEADS + kv_head
    k = _load_heads(keys + place * KEY_SIZE, position < end, KEY_SIZE, KEY_TILE)
    v = _load_heads(values + place * VALUE_SIZE, position < end, VALUE_SIZE, VALUE_TILE)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFTCAP > 0:  # tanh by way of exp
        scores = SOFTCAP * (1.0 - 2.0 / (tl.exp(scores * (2.0 / SOFTCAP)) + 1.0))
    seen = (position < end)[None, :] & (position[None, :] <= query_position[:, None])
    if WINDOW > 0 or CHUNK > 0:
        visible = _first_visible(query_position, WINDOW, CHUNK)
        seen = seen & (position[None, :] >= visible[:, None])
    scores = tl.where(seen, scores * LOG2_E, -float("inf"))
    highest = tl.maximum(maximum, tl.max(scores, 1))
    base = tl.where(highest == -float("inf"), 0.0, highest)  # where nothing is seen so far
    weights = tl.exp2(scores - base[:, None])
    fade = tl.exp2(maximum - base)
    total = total * fade + tl.sum(weights, 1)
    output = tl.dot(weights.to(v.dtype), v, output * fade[:, None], input_precision="ieee")
    return highest, total, output


@triton.jit
def _first_visible(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first position that a query at `position` sees."""
    first = position * 0
    if WINDOW > 0:
        first = tl.maximum(first, position - (WINDOW - 1))
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first


@triton.jit
def _splits(
    length,
    SPLITS: tl.constexpr, SMALLEST: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Where the first split of a context begins, and how many keys each has."""
    low = _first_visible(length - 1, WINDOW, CHUNK) // KEYS * KEYS
    share = tl.cdiv(tl.cdiv(length - low, SPLITS), KEYS) * KEYS
    return low, tl.maximum(share, SMALLEST)


@triton.jit
def _tile(starts, num_spans, tile, QUERIES: tl.constexpr, SPANS: tl.constexpr):
    """The span of a tile of queries, and the tile's first token within the span.

    The tiles of span s begin at number (its first token / QUERIES) + s, so that no list of tiles
    is needed; the last tile of a span may lie behind its end.
    """
    index = tl.arange(0, SPANS)
    base = tl.load(starts)
    first_tokens = tl.load(starts + index, mask=index < num_spans, other=2**30) - base
    span = tl.sum((first_tokens // QUERIES + index <= tile).to(tl.int32), 0) - 1
    first_tile = (tl.load(starts + span) - base).to(tl.int32) // QUERIES + span
    return span, (tile - first_tile) * QUERIES


@triton.jit
def _load_heads(place, mask, SIZE: tl.constexpr, TILE: tl.constexpr):
    """[M, TILE] numbers from M places on; 0 where they are not there."""
    at = tl.arange(0, TILE)
    mask = mask[:, None] & (at < SIZE)[None, :]
    return tl.load(place[:, None] + at[None, :], mask=mask, other=0.0)


@triton.jit
def _store_heads(place, numbers, mask, SIZE: tl.constexpr, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    numbers = numbers.to(place.dtype.element_ty)
    tl.store(place[:, None] + at[None, :], numbers, mask=mask[:, None] & (at < SIZE)[None, :])
