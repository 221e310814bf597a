"""Plans to tensors: the places where tokens are written and read."""

import torch

from gpu_worker.batch import BlockTables, prepare
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, PagedKVCache, blocks_that_fit
from scheduler.plan import Admission, Chunk, StepPlan
from tests.builders import GREEDY

CPU = torch.device("cpu")
GEOMETRY = KVGeometry(num_layers=3, num_kv_heads=2, head_size=8, dtype=torch.bfloat16, device=CPU)


def chunk(row: int, start: int, length: int, *blocks: int, samples: bool = True) -> Chunk:
    """A chunk whose tokens are numbered by their position."""
    tokens = tuple(range(start, start + length))
    return Chunk(row, start, tokens, blocks, output_index=start, samples=samples)


def plan_of(*chunks: Chunk, admits: tuple[int, ...] = ()) -> StepPlan:
    """A plan of these chunks that first gives these rows to new sequences."""
    admissions = tuple(Admission(row, GREEDY) for row in admits)
    return StepPlan(1, admissions, chunks, sum(len(c.token_ids) == 1 for c in chunks))


def tables_with(*blocks: int) -> BlockTables:
    """Tables whose row 0 owns these blocks."""
    tables = BlockTables(1, CPU)
    tables.extend(chunk(0, 0, 1, *blocks))
    return tables


def test_slots_follow_the_block_table() -> None:
    tables = tables_with(7, 3)
    assert tables.slots(0, 14, 18) == [7 * 16 + 14, 7 * 16 + 15, 3 * 16, 3 * 16 + 1]


def test_neighbouring_blocks_are_read_as_a_slice() -> None:
    assert tables_with(4, 5, 6).context(0, 40) == slice(64, 104)


def test_a_single_block_is_a_slice_of_the_tokens_that_it_holds() -> None:
    assert tables_with(9).context(0, 1) == slice(144, 145)


def test_scattered_blocks_are_read_slot_by_slot() -> None:
    for blocks in ((2, 4), (5, 4), (1, 2, 4)):
        tables = tables_with(*blocks)
        length = len(blocks) * BLOCK_SIZE - 3
        context = tables.context(0, length)
        assert isinstance(context, torch.Tensor)
        assert context.tolist() == tables.slots(0, 0, length)


def test_a_slice_and_a_tensor_name_the_same_slots() -> None:
    tables = tables_with(4, 5)
    as_slice = tables.context(0, 30)
    assert isinstance(as_slice, slice)
    assert list(range(as_slice.start, as_slice.stop)) == tables.slots(0, 0, 30)


def test_a_table_that_scatters_late_is_no_slice_any_more() -> None:
    tables = tables_with(4, 5)
    tables.extend(chunk(0, 32, 1, 9))
    assert isinstance(tables.context(0, 33), torch.Tensor)
    tables.extend(chunk(0, 48, 1, 10))
    assert isinstance(tables.context(0, 49), torch.Tensor)


def test_a_row_that_begins_again_has_an_empty_table() -> None:
    tables = tables_with(2, 9)
    tables.begin(0)
    tables.extend(chunk(0, 0, 1, 30))
    assert tables.context(0, 3) == slice(480, 483)


def test_chunks_lie_side_by_side_in_one_row() -> None:
    tables = BlockTables(3, CPU)
    prepare(plan_of(chunk(2, 0, 16, 5), chunk(0, 0, 3, 8), admits=(2, 0)), tables, CPU)
    batch = prepare(
        plan_of(chunk(2, 16, 1, 6), chunk(0, 3, 2, samples=False), chunk(1, 0, 3, 1), admits=(1,)),
        tables,
        CPU,
    )
    assert batch.token_ids.tolist() == batch.positions.tolist() == [[16, 3, 4, 0, 1, 2]]
    assert batch.slots.tolist() == [96, 131, 132, 16, 17, 18]
    assert [(span.start, span.end) for span in batch.spans] == [(0, 1), (1, 3), (3, 6)]
    assert [span.context for span in batch.spans] == [slice(80, 97), slice(128, 133), slice(16, 19)]
    assert batch.sampled.tolist() == [0, 5]
    assert batch.sampled_rows.tolist() == [2, 1]
    assert batch.output_indices.tolist() == [16, 0]


def test_what_each_token_may_see_ends_with_itself() -> None:
    tables = BlockTables(1, CPU)
    prepare(plan_of(chunk(0, 0, 2, 1), admits=(0,)), tables, CPU)
    (span,) = prepare(plan_of(chunk(0, 2, 3)), tables, CPU).spans
    assert span.mask is not None
    assert span.mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_a_single_token_sees_everything() -> None:
    (span,) = prepare(plan_of(chunk(0, 0, 1, 1), admits=(0,)), BlockTables(1, CPU), CPU).spans
    assert span.mask is None


def test_a_step_that_samples_nothing_asks_for_no_logits() -> None:
    plan = plan_of(chunk(0, 0, 4, 1, samples=False), admits=(0,))
    batch = prepare(plan, BlockTables(1, CPU), CPU)
    assert batch.sampled.shape == batch.sampled_rows.shape == batch.output_indices.shape == (0,)
    assert batch.sampled.dtype == torch.long


def test_a_block_has_the_bytes_that_are_allocated_for_it() -> None:
    cache = PagedKVCache(GEOMETRY, num_blocks=4)
    tensors = [tensor for layer in cache.layers for tensor in layer]
    assert len(tensors) == 6
    assert {tuple(tensor.shape) for tensor in tensors} == {(5 * BLOCK_SIZE, 2, 8)}
    assert sum(tensor.nbytes for tensor in tensors) == 5 * GEOMETRY.block_bytes


def test_no_more_blocks_than_memory_or_use() -> None:
    assert blocks_that_fit(GEOMETRY, 0.5, most_useful=3) == 3
    assert blocks_that_fit(GEOMETRY, 0.0, most_useful=3) == 0
