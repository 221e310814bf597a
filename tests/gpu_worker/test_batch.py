"""Plans to tensors: the places where tokens are written and read."""

import torch

from gpu_worker.batch import DECODE_FIELDS, Batch, Rows, over_fixed_inputs, prepare
from scheduler.plan import Chunk, StepPlan
from tests.builders import make_admission

CPU = torch.device("cpu")


def chunk(row: int, start: int, length: int, *blocks: int, samples: bool = True) -> Chunk:
    """A chunk whose tokens are numbered by their position."""
    tokens = tuple(range(start, start + length))
    return Chunk(row, start, tokens, blocks, output_index=start, samples=samples)


def plan_of(*chunks: Chunk, admits: tuple[int, ...] = ()) -> StepPlan:
    """A plan of these chunks that first gives these rows to new sequences."""
    admissions = tuple(make_admission(row) for row in admits)
    return StepPlan(1, admissions, chunks, sum(len(c.token_ids) == 1 for c in chunks))


def batch_of(rows: Rows, *chunks: Chunk, admits: tuple[int, ...] = ()) -> Batch:
    """The batch of such a plan, after the rows have taken it in."""
    plan = plan_of(*chunks, admits=admits)
    rows.update(plan)
    return prepare(plan, rows, CPU)


def test_slots_follow_the_block_table() -> None:
    batch = batch_of(Rows(1), chunk(0, 0, 18, 7, 3), admits=(0,))
    assert batch.slots.tolist() == [*range(7 * 16, 8 * 16), 3 * 16, 3 * 16 + 1]


def test_chunks_lie_side_by_side_in_one_row() -> None:
    rows = Rows(3)
    batch_of(rows, chunk(2, 0, 16, 5), chunk(0, 0, 3, 8), admits=(2, 0))
    batch = batch_of(
        rows, chunk(2, 16, 1, 6), chunk(0, 3, 2, samples=False), chunk(1, 0, 3, 1), admits=(1,)
    )
    assert batch.token_ids.tolist() == batch.positions.tolist() == [[16, 3, 4, 0, 1, 2]]
    assert batch.slots.tolist() == [96, 131, 132, 16, 17, 18]
    assert [(span.row, span.start, span.end) for span in batch.spans] == [
        (2, 0, 1),
        (0, 1, 3),
        (1, 3, 6),
    ]
    assert [span.context_length for span in batch.spans] == [17, 5, 3]
    assert [span.blocks for span in batch.spans] == [[5, 6], [8], [1]]
    assert batch.num_decodes == 1
    assert batch.kept.tolist() == [0, 5]
    assert batch.sampled_rows.tolist() == [2, 1]
    assert batch.output_indices.tolist() == [16, 0]


def test_a_plan_taken_in_twice_is_as_good_as_once() -> None:
    rows = Rows(1)
    first = plan_of(chunk(0, 0, 20, 4, 9), admits=(0,))
    second = plan_of(chunk(0, 20, 13, 2))
    for plan in (first, first, second, second):
        rows.update(plan)
    assert rows.tables[0] == [4, 9, 2]


def test_a_row_that_is_given_away_forgets_its_blocks() -> None:
    rows = Rows(1)
    batch_of(rows, chunk(0, 0, 17, 2, 9), admits=(0,))
    batch = batch_of(rows, chunk(0, 0, 3, 30), admits=(0,))
    assert batch.spans[0].blocks == [30]
    assert batch.slots.tolist() == [480, 481, 482]


def test_cached_blocks_come_first_and_are_not_written() -> None:
    rows = Rows(1)
    admission = make_admission(0, cached_blocks=(6, 3))
    plan = StepPlan(1, (admission,), (chunk(0, 32, 2, 8),), 0)
    rows.update(plan)
    batch = prepare(plan, rows, CPU)
    assert batch.spans[0].blocks == [6, 3, 8]
    assert batch.slots.tolist() == [128, 129]
    assert batch.positions.tolist() == [[32, 33]]


def test_angles_follow_the_whole_prompt_and_then_each_token() -> None:
    rows = Rows(2)
    admissions = (make_admission(0, num_prompt_tokens=5), make_admission(1, num_prompt_tokens=2))
    plan = StepPlan(1, admissions, (chunk(0, 0, 3, 1), chunk(1, 0, 4, 2)), 0)
    rows.update(plan)
    assert prepare(plan, rows, CPU).rope_lengths.tolist() == [5, 5, 5, 2, 2, 3, 4]


def test_a_step_that_samples_nothing_asks_for_no_logits() -> None:
    batch = batch_of(Rows(1), chunk(0, 0, 4, 1, samples=False), admits=(0,))
    assert batch.kept.shape == batch.sampled_rows.shape == batch.output_indices.shape == (0,)
    assert batch.kept.dtype == torch.long


def test_what_the_tables_gain_is_named_entry_by_entry() -> None:
    rows = Rows(2)
    batch_of(rows, chunk(0, 0, 16, 5), admits=(0,))
    admission = make_admission(1, cached_blocks=(6, 3))
    plan = StepPlan(1, (admission,), (chunk(0, 16, 1, 7), chunk(1, 32, 17, 8, 2)), 1)
    rows.update(plan)
    updates = prepare(plan, rows, CPU).table_updates
    assert updates.T.tolist() == [[1, 0, 6], [1, 1, 3], [0, 1, 7], [1, 2, 8], [1, 3, 2]]


def test_a_step_without_new_blocks_updates_no_table() -> None:
    rows = Rows(1)
    batch_of(rows, chunk(0, 0, 3, 4), admits=(0,))
    assert batch_of(rows, chunk(0, 3, 1)).table_updates.shape == (3, 0)


def test_sequences_are_named_by_row_length_and_first_token() -> None:
    rows = Rows(3)
    batch_of(rows, chunk(2, 0, 16, 5), admits=(2,))
    batch = batch_of(rows, chunk(2, 16, 1, 6), chunk(1, 0, 3, 1), admits=(1,))
    assert batch.span_rows.tolist() == [2, 1]
    assert batch.context_lengths.tolist() == [17, 3]
    assert batch.span_starts.tolist() == [0, 1, 4]
    assert not batch.is_decode


def test_all_inputs_travel_in_one_tensor() -> None:
    batch = batch_of(Rows(2), chunk(1, 0, 3, 1), chunk(0, 0, 17, 2, 4), admits=(1, 0))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == {batch.packed.data_ptr()}
    assert sum(tensor.numel() for tensor in tensors) == 2 * batch.packed.numel()
    assert {tensor.dtype for tensor in tensors} == {torch.long}


def test_a_batch_of_decodes_reads_the_same_from_fixed_inputs() -> None:
    rows = Rows(2)
    batch_of(rows, chunk(0, 0, 16, 5), chunk(1, 0, 3, 1), admits=(0, 1))
    batch = batch_of(rows, chunk(0, 16, 1, 6), chunk(1, 3, 1))
    inputs = torch.zeros(DECODE_FIELDS, 2, dtype=torch.long)
    fixed = over_fixed_inputs(inputs)
    inputs.copy_(batch.packed[: DECODE_FIELDS * 2].view(DECODE_FIELDS, 2))
    assert batch.is_decode
    assert fixed.is_decode
    for field in ("token_ids", "positions", "slots", "rope_lengths", "span_rows"):
        assert getattr(fixed, field).equal(getattr(batch, field)), field
    assert fixed.context_lengths.equal(batch.context_lengths)
    assert fixed.span_starts.equal(batch.span_starts)
    assert fixed.kept.equal(batch.kept)
