"""The native backend against its twin in plain torch, and what it promises beyond equal numbers."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_worker.attention.backend import AttentionBackend, AttentionRules
from gpu_worker.attention.cpu_paged import CpuPagedAttention
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.kv_cache import BLOCK_SIZE
from tests.gpu_worker.native import native_backend
from tests.gpu_worker.paged_steps import NUM_BLOCKS, GrowingSequences, Shape, attend

TOLERANCE = 1e-5
GROUPED = Shape(9, 3, 64, 64)
SHAPES = [
    GROUPED,
    Shape(4, 4, 16, 16),
    Shape(14, 2, 32, 32),  # groups of seven
    Shape(12, 1, 80, 80),  # more query heads than a micro-kernel holds
    Shape(71, 1, 64, 64),
    Shape(8, 8, 96, 96),
    Shape(4, 2, 128, 128),
    Shape(4, 4, 192, 128),  # values of another size, as DeepSeek's
    Shape(6, 2, 20, 24),  # no multiple of a vector
]
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 20},
    "window of one": {"window": 1},
    "wide window": {"window": 300},
    "chunk": {"chunk": 48},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
    "all": {"window": 33, "chunk": 64, "softcap": 2.0, "sinks": True},
}


def rules_of(shape: Shape, options: dict[str, Any]) -> AttentionRules:
    """Rules for this many heads, with random sinks where sinks are asked for."""
    if "sinks" not in options:
        return shape.rules(**options)
    torch.manual_seed(5)
    return shape.rules(**{**options, "sinks": torch.randn(shape.num_heads)})


def growth(seed: int, num_rows: int, longest: int, num_steps: int) -> list[list[tuple[int, int]]]:
    """Steps in which prompts of random lengths, chunks and single tokens take turns and mix."""
    dice = random.Random(seed)
    steps = []
    for step in range(num_steps):
        rows = dice.sample(range(num_rows), num_rows)
        num_decodes = (step % 3) * num_rows // 2
        sizes = [1] * num_decodes + [dice.randint(1, longest) for _ in rows[num_decodes:]]
        steps.append(list(zip(rows, sorted(sizes), strict=True)))
    return steps


def largest_difference(
    shape: Shape,
    rules: AttentionRules,
    steps: list[list[tuple[int, int]]],
    dtype: torch.dtype = torch.float32,
) -> float:
    """Between the backend and its twin, over all tokens of these steps."""
    twins: list[AttentionBackend] = [
        native_backend(shape, dtype),
        TorchAttention(shape.geometry(dtype), NUM_BLOCKS),
    ]
    sequences = GrowingSequences(max(len(step) for step in steps))
    worst = 0.0
    for number, step in enumerate(steps):
        batch = sequences.step(*step)
        tokens = shape.tokens(sum(size for _, size in step), number, dtype)
        ours, theirs = (attend(twin, batch, tokens, rules).float() for twin in twins)
        worst = max(worst, (ours - theirs).abs().max().item())
    return worst


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_plain_torch(shape: Shape, rules: str) -> None:
    steps = growth(seed=1, num_rows=4, longest=100, num_steps=6)
    assert largest_difference(shape, rules_of(shape, RULES[rules]), steps) < TOLERANCE


@pytest.mark.parametrize("rules", RULES)
def test_equals_plain_torch_on_contexts_of_several_splits(rules: str) -> None:
    steps = [[(0, 511), (1, 700)], [(0, 1), (1, 1)], [(0, 1), (1, 90)], [(0, 300), (1, 1)]]
    assert largest_difference(GROUPED, rules_of(GROUPED, RULES[rules]), steps) < TOLERANCE


@settings(max_examples=40)
@given(
    num_kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 7, 9]),
    key_size=st.sampled_from([16, 32, 64, 80, 96, 128, 192]),
    value_size=st.sampled_from([16, 32, 64, 80, 96, 128, 192]),
    first=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 220),
    chunk=st.none() | st.integers(1, 220),
    softcap=st.none() | st.floats(0.5, 50.0),
)
def test_equals_plain_torch_for_any_shape(
    num_kv_heads: int,
    group: int,
    key_size: int,
    value_size: int,
    first: list[int],
    window: int | None,
    chunk: int | None,
    softcap: float | None,
) -> None:
    shape = Shape(num_kv_heads * group, num_kv_heads, key_size, value_size)
    rules = shape.rules(window=window, chunk=chunk, softcap=softcap)
    rows = range(len(first))
    steps = [list(zip(rows, first, strict=True)), [(row, 1) for row in rows], [(0, 17)]]
    assert largest_difference(shape, rules, steps) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions_differ_by_their_own_rounding(dtype: torch.dtype) -> None:
    steps = growth(seed=2, num_rows=3, longest=100, num_steps=4)
    limit = 8 * torch.finfo(dtype).eps  # of results up to 4
    assert largest_difference(GROUPED, GROUPED.rules(), steps, dtype) < limit


def test_a_bfloat16_cache_serves_float32_queries() -> None:
    backend = native_backend(GROUPED, torch.bfloat16)
    sequences = GrowingSequences(1)
    query, key, value = GROUPED.tokens(50, 0, torch.float32)
    output = attend(backend, sequences.step((0, 50)), (query, key, value), GROUPED.rules())
    rounded = (query, key.bfloat16().float(), value.bfloat16().float())
    exact = native_backend(GROUPED)
    expected = attend(exact, GrowingSequences(1).step((0, 50)), rounded, GROUPED.rules())
    assert output.dtype == torch.float32
    assert (output - expected).abs().max() < TOLERANCE


def one_by_one(
    backend: CpuPagedAttention,
    tokens: tuple[torch.Tensor, ...],
    sizes: list[int],
    rules: AttentionRules,
) -> torch.Tensor:
    """A sequence alone, in chunks of these sizes; [1, T, H, Dv]."""
    sequences = GrowingSequences(1, seed=3)
    outputs, start = [], 0
    for size in sizes:
        part = tuple(x[:, :, start : start + size] for x in tokens)
        outputs.append(attend(backend, sequences.step((0, size)), part, rules))
        start += size
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("rules", RULES)
def test_a_token_is_the_same_bit_for_bit_however_its_prompt_was_cut(rules: str) -> None:
    tokens = GROUPED.tokens(600, 0, torch.float32)
    options = rules_of(GROUPED, RULES[rules])
    whole = one_by_one(native_backend(GROUPED), tokens, [600], options)
    cut = one_by_one(native_backend(GROUPED), tokens, [1, 15, 17, 200, 1, 1, 298, 67], options)
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("shape", [GROUPED, Shape(8, 8, 16, 16), Shape(12, 1, 80, 80)], ids=str)
def test_a_row_is_the_same_bit_for_bit_alone_and_in_company(shape: Shape) -> None:
    sizes, alone, company = [300, 1, 1, 40, 1], [], []
    tokens = [shape.tokens(size, number, torch.float32) for number, size in enumerate(sizes)]
    backend, sequences = native_backend(shape), GrowingSequences(1)
    for size, own in zip(sizes, tokens, strict=True):
        alone.append(attend(backend, sequences.step((0, size)), own, shape.rules()))
    backend, sequences = native_backend(shape), GrowingSequences(4, seed=1)
    for size, own in zip(sizes, tokens, strict=True):
        others = [(1, 1), (2, 5), (3, 130)]
        strangers = shape.tokens(136, 9, torch.float32)
        mixed = tuple(torch.cat(pair, 2) for pair in zip(own, strangers, strict=True))
        output = attend(backend, sequences.step((0, size), *others), mixed, shape.rules())
        company.append(output[:, :size])
    assert all(torch.equal(*pair) for pair in zip(alone, company, strict=True))


def test_the_number_of_threads_changes_no_bit() -> None:
    tokens = GROUPED.tokens(600, 0, torch.float32)
    outputs = []
    before = torch.get_num_threads()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        outputs.append(one_by_one(native_backend(GROUPED), tokens, [598, 1, 1], GROUPED.rules()))
    torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def pools(backend: CpuPagedAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [blocks, Hkv, 16, Dk] and values [blocks, Hkv, 16, Dv] of the one layer."""
    layer = backend._layers[0]
    return layer.keys.transpose(2, 3), layer.values


def test_a_step_writes_its_own_tokens_and_nothing_else() -> None:
    backend, sequences = native_backend(GROUPED), GrowingSequences(3)
    attend(
        backend, sequences.step((0, 40), (1, 16), (2, 31)), GROUPED.tokens(87, 0, torch.float32),
        GROUPED.rules(),
    )  # fmt: skip
    before = [pool.clone() for pool in pools(backend)]
    batch = sequences.step((0, 1), (1, 1), (2, 20))
    tokens = GROUPED.tokens(22, 1, torch.float32)
    attend(backend, batch, tokens, GROUPED.rules())
    for old, new, own in zip(before, pools(backend), tokens[1:], strict=True):
        changed = (old != new).any(-1).any(1).flatten()  # [slots]
        assert changed.nonzero().flatten().tolist() == sorted(batch.slots.tolist())
        written = new[batch.slots // BLOCK_SIZE, :, batch.slots % BLOCK_SIZE]  # [T, Hkv, D]
        assert torch.equal(written, own[0].transpose(0, 1))


def test_the_count_of_written_tokens_is_that_of_new_tokens() -> None:
    backend, sequences = native_backend(GROUPED), GrowingSequences(2)
    rules = GROUPED.rules()
    attend(backend, sequences.step((0, 600), (1, 16)), GROUPED.tokens(616, 0, torch.float32), rules)
    assert backend.num_written_tokens == 616
    attend(backend, sequences.step((0, 1), (1, 1)), GROUPED.tokens(2, 1, torch.float32), rules)
    assert backend.num_written_tokens == 618


class _Operators(TorchDispatchMode):
    """Notes the name of every tensor operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_attending_allocates_its_result_and_moves_no_context() -> None:
    backend, sequences = native_backend(GROUPED), GrowingSequences(2)
    rules = GROUPED.rules()
    attend(backend, sequences.step((0, 700), (1, 80)), GROUPED.tokens(780, 0, torch.float32), rules)
    batch = sequences.step((0, 1), (1, 20))
    query, key, value = GROUPED.tokens(21, 1, torch.float32)
    with _Operators() as operators:
        backend.begin(batch)
        backend.attend(0, query, key, value, rules)
    assert operators.names == {"aten.new_empty.default"}


def test_what_earlier_owners_left_in_a_block_is_never_read() -> None:
    backend = native_backend(GROUPED)
    for pool in pools(backend):
        pool.fill_(float("nan"))
    tokens = GROUPED.tokens(53, 0, torch.float32)
    rules = rules_of(GROUPED, RULES["all"])
    dirty = one_by_one(backend, tokens, [20, 32, 1], rules)
    assert torch.equal(dirty, one_by_one(native_backend(GROUPED), tokens, [20, 32, 1], rules))


@pytest.mark.parametrize("size", [1, 40])
def test_a_sequence_of_nan_stays_one_and_harms_nobody(size: int) -> None:
    backend, sequences = native_backend(GROUPED), GrowingSequences(2)
    query, key, value = GROUPED.tokens(2 * size, 0, torch.float32)
    query[:, :, :size] = float("nan")
    output = attend(
        backend, sequences.step((0, size), (1, size)), (query, key, value), GROUPED.rules()
    )
    assert output[:, :size].isnan().all()
    assert output[:, size:].isfinite().all()


def test_tokens_whose_elements_are_apart_are_read_right() -> None:
    tokens = GROUPED.tokens(9, 0, torch.float32)
    apart = tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in tokens)
    assert all(x.stride(3) != 1 for x in apart)
    outputs = [
        one_by_one(native_backend(GROUPED), x, [9], GROUPED.rules()) for x in (tokens, apart)
    ]
    assert torch.equal(*outputs)
