"""A plan can be counted and cut: its parts, one after the other, are as good as the whole."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.plan import Chunk, StepPlan, StepResult
from tests.builders import make_admission
from tests.fakes import FormulaRunner
from tests.scheduler.simulation import Simulation, assert_right, numbers, request

EMPTY = StepPlan(1, (), (), 0)


def chunk(row: int, length: int = 1) -> Chunk:
    """Some tokens of one row."""
    return Chunk(row, 8, tuple(range(length)), (), 1, True)


def plan(num_decodes: int, num_prefills: int) -> StepPlan:
    """Rows 0, 1, 2, …: decodes, then prefills of five tokens that have just been admitted."""
    decodes = [chunk(row) for row in range(num_decodes)]
    rows = range(num_decodes, num_decodes + num_prefills)
    admissions = tuple(make_admission(row) for row in rows)
    return StepPlan(7, admissions, (*decodes, *(chunk(row, 5) for row in rows)), num_decodes)


def test_a_plan_counts_its_tokens_and_knows_its_kind() -> None:
    plans = [EMPTY, plan(3, 0), plan(0, 2), plan(3, 2)]
    assert [p.is_empty for p in plans] == [True, False, False, False]
    assert [p.num_tokens for p in plans] == [0, 3, 10, 13]
    assert [p.is_mixed for p in plans] == [False, False, False, True]


@pytest.mark.parametrize(
    ("start", "end", "rows", "num_decodes", "admitted"),
    [
        (0, 5, [0, 1, 2, 3, 4], 3, [3, 4]),
        (0, 2, [0, 1], 2, []),
        (1, 4, [1, 2, 3], 2, [3]),
        (3, 5, [3, 4], 0, [3, 4]),
        (4, 5, [4], 0, [4]),
        (2, 3, [2], 1, []),
        (2, 2, [], 0, []),
        (4, 9, [4], 0, [4]),
    ],
)
def test_a_part_has_its_own_decodes_and_admissions(
    start: int, end: int, rows: list[int], num_decodes: int, admitted: list[int]
) -> None:
    part = plan(num_decodes=3, num_prefills=2).part(start, end)
    assert [chunk.row for chunk in part.chunks] == rows
    assert [admission.row for admission in part.admissions] == admitted
    assert (part.step, part.num_decodes) == (7, num_decodes)
    assert part.is_empty == (not rows)


@given(st.integers(0, 6), st.integers(0, 6), st.lists(st.integers(0, 12), max_size=4))
def test_parts_that_meet_make_the_whole(
    num_decodes: int, num_prefills: int, cuts: list[int]
) -> None:
    whole = plan(num_decodes, num_prefills)
    borders = [0, *sorted(cuts), 12]
    parts = [whole.part(start, end) for start, end in itertools.pairwise(borders)]
    assert [*itertools.chain(*(part.chunks for part in parts))] == [*whole.chunks]
    assert [*itertools.chain(*(part.admissions for part in parts))] == [*whole.admissions]
    assert sum(part.num_decodes for part in parts) == num_decodes
    for part in parts:
        assert all(len(chunk.token_ids) == 1 for chunk in part.chunks[: part.num_decodes])


class PiecemealRunner(FormulaRunner):
    """Computes every plan chunk by chunk."""

    def execute(self, plan: StepPlan) -> StepResult:
        results = [super(PiecemealRunner, self).execute(plan.part(n, n + 1)) for n in range(9)]
        return StepResult(tuple(itertools.chain(*(result.token_ids for result in results))))


def test_a_plan_computed_part_by_part_gives_the_same_tokens() -> None:
    simulation = Simulation(num_blocks=12)
    simulation.runner = PiecemealRunner(num_blocks=12, block_size=4, max_sequences=4)
    sequences = [request(str(n), numbers(3 + 5 * n, n), 12) for n in range(5)]
    simulation.add(*sequences)
    simulation.run_to_end()
    assert simulation.scheduler.counters.num_preemptions > 0
    assert_right(*sequences)


@given(start=st.integers(0, 40), length=st.integers(2, 40), block_size=st.integers(1, 16))
def test_the_halves_of_a_long_chunk_follow_each_other(
    start: int, length: int, block_size: int
) -> None:
    def num_blocks(num_tokens: int) -> int:
        return -(-num_tokens // block_size)

    new_blocks = tuple(range(num_blocks(start + length) - num_blocks(start)))
    whole = Chunk(2, start, numbers(length), new_blocks, 5, True)
    plans = StepPlan(7, (make_admission(2),), (whole,), 0).pieces(block_size)
    assert [len(plan.admissions) for plan in plans] == [1, 0]
    (first,), (second,) = (plan.chunks for plan in plans)
    assert (first.start, second.start) == (start, start + len(first.token_ids))
    assert first.token_ids + second.token_ids == whole.token_ids
    assert first.new_blocks + second.new_blocks == new_blocks
    assert len(first.new_blocks) == num_blocks(second.start) - num_blocks(start)
    assert len(first.token_ids) in (length // 2, length - length // 2)
    assert [half.samples for half in (first, second)] == [False, True]
    assert {(half.row, half.output_index) for half in (first, second)} == {(2, 5)}
