"""Native attention over a pool of pairs of bfloat16, against float64 in plain torch."""

import pytest
import torch

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.attention.cpu_paged import CpuPagedAttention
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.cpu_kernels.attention import Kernels, Unit
from gpu_worker.kv_cache import BLOCK_SIZE
from tests.gpu_worker.native import kernels, native_backend
from tests.gpu_worker.paged_steps import NUM_BLOCKS, GrowingSequences, Shape, attend
from tests.gpu_worker.test_cpu_paged import GROUPED, RULES, growth, one_by_one, rules_of

BFLOAT16 = torch.bfloat16
TOLERANCE = 1e-5  # of float32 queries, whose results are not rounded
SHAPES = [
    GROUPED,
    Shape(4, 4, 64, 64),  # groups of one
    Shape(16, 2, 64, 64),  # of eight
    Shape(17, 1, 32, 16),  # more query heads than a tile has rows, and the smallest sizes
    Shape(8, 2, 128, 128),
    Shape(4, 4, 192, 128),  # values of another size
    Shape(6, 2, 96, 48),  # an odd number of tiles
]
UNTILED = [Shape(4, 2, 80, 80), Shape(4, 2, 64, 72), Shape(6, 2, 20, 24)]
# Around the ends of blocks, of two blocks, and of splits.
CUTS = [1, 14, 1, 1, 14, 1, 1, 1, 221, 1, 1, 1, 60, 195, 1, 40]


@pytest.fixture(autouse=True, params=[Unit.PAIR_PRODUCTS, Unit.MATRIX], ids=lambda unit: unit.name)
def _unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes, where this machine has it; its own best may be better."""
    if kernels().best_unit(BFLOAT16, 64, 64) < request.param:
        pytest.skip("needs AMX" if request.param == Unit.MATRIX else "needs avx512_bf16")
    best = Kernels.best_unit
    monkeypatch.setattr(Kernels, "best_unit", lambda self, *of: min(best(self, *of), request.param))


def errors(
    shape: Shape,
    rules: AttentionRules,
    steps: list[list[tuple[int, int]]],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of queries of this dtype over a bfloat16 pool: differences from float64, and its results."""
    ours = native_backend(shape, BFLOAT16)
    exact = TorchAttention(shape.geometry(torch.float64), NUM_BLOCKS)
    sequences = GrowingSequences(max(len(step) for step in steps))
    differences, expected = [], []
    for number, step in enumerate(steps):
        batch = sequences.step(*step)
        query, key, value = shape.tokens(sum(size for _, size in step), number, BFLOAT16)
        if dtype != BFLOAT16:
            query = query.to(dtype) * 1.0009765625  # 1 + 2^-10, which bfloat16 cannot tell from 1
        tokens = tuple(x.double() for x in (query, key, value))
        expected.append(attend(exact, batch, tokens, rules).flatten())
        tokens = tuple(x.to(dtype) for x in (query, key, value))
        output = attend(ours, batch, tokens, rules)
        assert output.dtype == dtype
        differences.append((output.double().flatten() - expected[-1]).abs())
    return torch.cat(differences), torch.cat(expected)


STEPS = [*growth(seed=1, num_rows=3, longest=100, num_steps=4), [(0, 300), (1, 1), (2, 200)]]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_nearly_those_of_float64(shape: Shape, rules: str) -> None:
    differences, _ = errors(shape, rules_of(shape, RULES[rules]), STEPS, torch.float32)
    assert differences.max() < TOLERANCE


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float16], ids=str)
@pytest.mark.parametrize("rules", RULES)
def test_half_precisions_differ_by_their_own_rounding(rules: str, dtype: torch.dtype) -> None:
    differences, expected = errors(GROUPED, rules_of(GROUPED, RULES[rules]), STEPS, dtype)
    rounding = expected.abs() * torch.finfo(dtype).eps / 2
    assert (differences <= rounding + TOLERANCE).all()


@pytest.mark.parametrize("shape", UNTILED, ids=str)
def test_sizes_that_fill_no_tiles_are_served_by_vectors(shape: Shape) -> None:
    assert kernels().best_unit(BFLOAT16, shape.key_size, shape.value_size) == Unit.VECTORS
    differences, expected = errors(shape, shape.rules(), STEPS, BFLOAT16)
    assert (differences <= expected.abs() * torch.finfo(BFLOAT16).eps / 2 + TOLERANCE).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_pools_are_for_vectors(dtype: torch.dtype) -> None:
    assert native_backend(GROUPED, dtype)._layers[0].keys.shape[2:] == (64, BLOCK_SIZE)


def test_without_such_units_vectors_serve_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "best_unit", lambda *_: Unit.VECTORS)
    assert native_backend(GROUPED, BFLOAT16)._layers[0].values.shape[2:] == (BLOCK_SIZE, 64)
    differences, expected = errors(GROUPED, GROUPED.rules(), STEPS, BFLOAT16)
    assert (differences <= expected.abs() * torch.finfo(BFLOAT16).eps / 2 + TOLERANCE).all()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_is_the_same_bit_for_bit_however_its_prompt_was_cut(
    shape: Shape, rules: str
) -> None:
    length = sum(CUTS)
    tokens, options = shape.tokens(length, 0, BFLOAT16), rules_of(shape, RULES[rules])
    whole = one_by_one(native_backend(shape, BFLOAT16), tokens, [length], options)
    cut = one_by_one(native_backend(shape, BFLOAT16), tokens, CUTS, options)
    assert torch.equal(whole, cut)


def test_a_row_is_the_same_bit_for_bit_alone_and_in_company() -> None:
    sizes = [250, 1, 1, 40, 1]
    tokens = GROUPED.tokens(sum(sizes), 0, BFLOAT16)
    alone = one_by_one(native_backend(GROUPED, BFLOAT16), tokens, sizes, GROUPED.rules())
    backend, sequences = native_backend(GROUPED, BFLOAT16), GrowingSequences(4, seed=1)
    start, company = 0, []
    for size in sizes:
        strangers = GROUPED.tokens(136, 9, BFLOAT16)
        own = (x[:, :, start : start + size] for x in tokens)
        mixed = tuple(torch.cat(pair, 2) for pair in zip(own, strangers, strict=True))
        batch = sequences.step((0, size), (1, 1), (2, 5), (3, 130))
        company.append(attend(backend, batch, mixed, GROUPED.rules())[:, :size])
        start += size
    assert torch.equal(alone, torch.cat(company, 1))


def test_the_number_of_threads_changes_no_bit() -> None:
    tokens = GROUPED.tokens(600, 0, BFLOAT16)
    before, outputs = torch.get_num_threads(), []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        backend = native_backend(GROUPED, BFLOAT16)
        outputs.append(one_by_one(backend, tokens, [598, 1, 1], GROUPED.rules()))
    torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def tokens_of(backend: CpuPagedAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [blocks, Hkv, 16, D] of the one layer."""
    layer = backend._layers[0]
    keys = layer.keys.permute(0, 1, 3, 2, 4).flatten(3)
    values = layer.values.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)
    return keys, values


def test_a_step_writes_its_own_tokens_and_nothing_else() -> None:
    backend, sequences = native_backend(GROUPED, BFLOAT16), GrowingSequences(2)
    before = [pool.clone() for pool in tokens_of(backend)]
    batch = sequences.step((0, 41), (1, 1))
    tokens = GROUPED.tokens(42, 1, BFLOAT16)
    attend(backend, batch, tokens, GROUPED.rules())
    for old, new, own in zip(before, tokens_of(backend), tokens[1:], strict=True):
        changed = (old != new).any(-1).any(1).flatten()  # [slots]
        assert changed.nonzero().flatten().tolist() == sorted(batch.slots.tolist())
        written = new[batch.slots // BLOCK_SIZE, :, batch.slots % BLOCK_SIZE]  # [T, Hkv, D]
        assert torch.equal(written, own[0].transpose(0, 1))


@pytest.mark.parametrize("rules", RULES)
def test_what_earlier_owners_left_in_a_block_is_never_read(rules: str) -> None:
    backend = native_backend(GROUPED, BFLOAT16)
    for pool in (backend._layers[0].keys, backend._layers[0].values):
        pool.fill_(float("nan"))
    tokens, options = GROUPED.tokens(300, 0, BFLOAT16), rules_of(GROUPED, RULES[rules])
    dirty = one_by_one(backend, tokens, [20, 32, 1, 247], options)
    clean = one_by_one(native_backend(GROUPED, BFLOAT16), tokens, [20, 32, 1, 247], options)
    assert torch.equal(dirty, clean)


@pytest.mark.parametrize("size", [1, 40])
def test_a_sequence_of_nan_stays_one_and_harms_nobody(size: int) -> None:
    backend, sequences = native_backend(GROUPED, BFLOAT16), GrowingSequences(2)
    query, key, value = GROUPED.tokens(2 * size, 0, BFLOAT16)
    query[:, :, :size] = float("nan")
    batch = sequences.step((0, size), (1, size))
    output = attend(backend, batch, (query, key, value), GROUPED.rules())
    assert output[:, :size].isnan().all()
    assert output[:, size:].isfinite().all()
