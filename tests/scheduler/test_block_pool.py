"""Every block is free or used, and neighbours are given to those who ask for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.block_pool import BlockPool


def allocate(pool: BlockPool, count: int) -> list[int]:
    """So many blocks without a wish."""
    return [pool.allocate(0) for _ in range(count)]


def test_a_new_pool_is_all_free() -> None:
    pool = BlockPool(3)
    assert (pool.num_free, pool.num_used) == (3, 0)
    pool.check([])


def test_every_block_is_handed_out_once_and_scratch_never() -> None:
    assert sorted(allocate(BlockPool(5), 5)) == [1, 2, 3, 4, 5]


def test_a_preferred_block_is_taken_when_it_is_free() -> None:
    pool = BlockPool(9)
    assert [pool.allocate(5), pool.allocate(6), pool.allocate(2)] == [5, 6, 2]


@pytest.mark.parametrize("preferred", [3, 0, -1, 10, 1000])
def test_a_preferred_block_that_cannot_be_had_is_replaced(preferred: int) -> None:
    pool = BlockPool(9)
    pool.allocate(3)
    block = pool.allocate(preferred)
    assert block in {1, 2, 4, 5, 6, 7, 8, 9}
    pool.check([[3], [block]])


def test_a_freed_block_can_be_had_again() -> None:
    pool = BlockPool(2)
    pool.free(allocate(pool, 2))
    assert pool.allocate(2) == 2


@pytest.mark.parametrize("block", [0, 2, 4])
def test_freeing_what_is_not_in_use_raises(block: int) -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    with pytest.raises(KeyError):
        pool.free([block])
    pool.check([[1]])


def test_freeing_twice_raises() -> None:
    pool = BlockPool(3)
    pool.free([pool.allocate(1)])
    with pytest.raises(KeyError):
        pool.free([1])
    pool.check([])


@pytest.mark.parametrize("owned", [[], [[1]], [[1, 2], [2]], [[1, 2, 3]], [[1, 1, 2]]])
def test_check_finds_lost_shared_and_invented_blocks(owned: list[list[int]]) -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    pool.allocate(2)
    pool.check([[1], [2]])
    with pytest.raises(AssertionError):
        pool.check(owned)


@given(st.integers(1, 12), st.lists(st.integers(-14, 14), max_size=60))
def test_the_books_balance_whatever_happens(num_blocks: int, operations: list[int]) -> None:
    pool = BlockPool(num_blocks)
    owned: list[int] = []
    for number in operations:
        if number >= 0 and pool.num_free:
            block = pool.allocate(number)
            assert 1 <= block <= num_blocks
            assert block not in owned
            assert block == number or number in owned or not 1 <= number <= num_blocks
            owned.append(block)
        elif number < 0 and owned:
            pool.free([owned.pop(number % len(owned))])
        pool.check([[block] for block in owned])
        assert (pool.num_used, pool.num_free) == (len(owned), num_blocks - len(owned))
