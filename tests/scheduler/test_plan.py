"""A plan can be counted and cut: its parts, one after the other, are as good as the whole."""

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.plan import NO_TOKEN, Chunk, StepPlan, StepResult, TokenScore
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
        return StepResult.joined(results)


def test_a_plan_computed_part_by_part_gives_the_same_tokens() -> None:
    simulation = Simulation(num_blocks=12)
    simulation.runner = PiecemealRunner(num_blocks=12, block_size=4, max_sequences=4)
    sequences = [request(str(n), numbers(3 + 5 * n, n), 12) for n in range(5)]
    simulation.add(*sequences)
    simulation.run_to_end()
    assert simulation.scheduler.counters.num_preemptions > 0
    assert_right(*sequences)


def test_the_halves_of_a_long_chunk_follow_each_other() -> None:
    whole = Chunk(2, 6, numbers(9), (8, 9), 5, True, first_scored=7, targets=numbers(8, 1))
    plans = StepPlan(7, (make_admission(2),), (whole,), 0).cut(3, block_size=4)
    assert [len(plan.admissions) for plan in plans] == [1, 0]
    (first,), (second,) = (plan.chunks for plan in plans)
    assert first == Chunk(2, 6, (0, 1, 2), (8,), 5, False, 7, (1, 2))
    assert second == Chunk(2, 9, (3, 4, 5, 6, 7, 8), (9,), 5, True, 9, (3, 4, 5, 6, 7, 8))


def random_plan(rng: Random, block_size: int) -> StepPlan:
    """Decodes, then prefills, some of which score some of their positions."""

    def prefill(row: int) -> Chunk:
        start, length = rng.randrange(20), rng.randrange(1, 20)
        blocks = range(-(-start // block_size), -(-(start + length) // block_size))
        first_scored = rng.randrange(start, start + length + 1)
        targets = numbers(rng.choice((0, start + length - first_scored)), first_scored + 1)
        tokens = numbers(length, start)
        return Chunk(row, start, tokens, tuple(blocks), 0, True, first_scored, targets)

    num_decodes, num_prefills = rng.randrange(4), rng.randrange(1, 5)
    rows = range(num_decodes, num_decodes + num_prefills)
    chunks = (*(chunk(row) for row in range(num_decodes)), *(prefill(row) for row in rows))
    return StepPlan(7, tuple(make_admission(row) for row in rows), chunks, num_decodes)


def assert_the_same(parts: list[StepPlan], whole: StepPlan) -> None:
    """Computing these one after the other computes the same."""
    chunks = [*itertools.chain(*(part.chunks for part in parts))]
    assert [*itertools.chain(*(part.admissions for part in parts))] == [*whole.admissions]
    assert sum(part.num_decodes for part in parts) == whole.num_decodes
    for old in whole.chunks:
        own = [chunk for chunk in chunks if chunk.row == old.row]
        assert tuple(itertools.chain(*(chunk.token_ids for chunk in own))) == old.token_ids
        assert tuple(itertools.chain(*(chunk.new_blocks for chunk in own))) == old.new_blocks
        assert tuple(itertools.chain(*(chunk.targets for chunk in own))) == old.targets
        assert [chunk.samples for chunk in own] == [False] * (len(own) - 1) + [old.samples]
        for early, late in itertools.pairwise(own):
            assert late.start == early.start + len(early.token_ids)
    for part in parts:
        assert all(len(chunk.token_ids) == 1 for chunk in part.chunks[: part.num_decodes])
        for chunk in part.chunks:  # each position's target is the number of the next one
            scored = range(chunk.first_scored, chunk.first_scored + len(chunk.targets))
            assert chunk.targets == tuple(position + 1 for position in scored)
            assert {*scored} <= {*range(chunk.start, chunk.start + len(chunk.token_ids))}


@given(st.randoms(use_true_random=False), st.integers(1, 16))
def test_a_plan_that_is_cut_anywhere_computes_the_same(rng: Random, block_size: int) -> None:
    whole = random_plan(rng, block_size)
    for num_tokens in range(1, whole.num_tokens):
        parts = [*whole.cut(num_tokens, block_size)]
        assert parts[0].num_tokens == num_tokens
        assert_the_same(parts, whole)


@given(st.randoms(use_true_random=False), st.integers(1, 20))
def test_the_tiles_of_a_plan_are_full_of_scores_and_compute_the_same(
    rng: Random, num_scored: int
) -> None:
    whole = random_plan(rng, 4)
    tiles = [*whole.tiles(num_scored, 4)]
    assert_the_same(tiles, whole)
    sizes = [sum(len(chunk.targets) for chunk in tile.chunks) for tile in tiles]
    assert all(size == num_scored for size in sizes[:-1])
    assert sizes[-1] <= num_scored


def test_a_plan_without_scores_is_one_tile() -> None:
    whole = plan(num_decodes=3, num_prefills=2)
    assert [*whole.tiles(1, 4)] == [whole]


def test_results_of_parts_are_joined_in_order() -> None:
    score = TokenScore(-1.0, (3,), (-0.5,))
    parts = [
        StepResult((5, 6)),
        StepResult((7,), frozenset({2}), (score,), (None, score)),
        StepResult.failure(Chunk(4, 0, (1, 2), (), 0, True, 0, (2,))),
    ]
    assert StepResult.joined(parts) == StepResult(
        (5, 6, 7, NO_TOKEN), frozenset({2, 4}), (None, None, score, None), (None, score, None)
    )
    assert StepResult.joined(parts[:1]) == parts[0]
