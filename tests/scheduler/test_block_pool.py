"""Every block is free, cached or used; neighbours go to those who ask; contents are found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.block_pool import BlockPool

KEYS = tuple(bytes([number]) * 32 for number in range(20))


def allocate(pool: BlockPool, count: int) -> list[int]:
    """So many blocks without a wish."""
    return [pool.allocate(0) for _ in range(count)]


def test_a_new_pool_is_all_free() -> None:
    pool = BlockPool(3)
    assert (pool.num_available, pool.num_used) == (3, 0)
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
        if number >= 0 and pool.num_available:
            block = pool.allocate(number)
            assert 1 <= block <= num_blocks
            assert block not in owned
            assert block == number or number in owned or not 1 <= number <= num_blocks
            owned.append(block)
        elif number < 0 and owned:
            pool.free([owned.pop(number % len(owned))])
        pool.check([[block] for block in owned])
        assert (pool.num_used, pool.num_available) == (len(owned), num_blocks - len(owned))


def published(pool: BlockPool, count: int) -> list[int]:
    """So many used blocks under the first keys."""
    blocks = allocate(pool, count)
    for block, key in zip(blocks, KEYS, strict=False):
        pool.publish(block, key)
    return blocks


def test_nothing_is_found_that_was_not_published() -> None:
    pool = BlockPool(4)
    blocks = allocate(pool, 2)
    assert pool.find(KEYS) == []
    pool.free(blocks)
    assert pool.find(KEYS) == []
    assert (pool.num_cached, pool.num_available) == (0, 4)


def test_a_published_block_is_found_while_it_is_used_and_after() -> None:
    pool = BlockPool(4)
    blocks = published(pool, 3)
    assert pool.find(KEYS) == blocks
    pool.free(blocks)
    assert pool.find(KEYS) == blocks
    assert (pool.num_used, pool.num_cached, pool.num_available) == (0, 3, 4)
    pool.check([])


def test_only_the_beginning_is_found_up_to_the_first_that_is_unknown() -> None:
    pool = BlockPool(6)
    first, third = allocate(pool, 2)
    pool.publish(first, KEYS[0])
    pool.publish(third, KEYS[2])
    assert pool.find(KEYS) == [first]
    assert pool.find(KEYS[2:]) == [third]
    assert pool.find([]) == []


def test_no_more_keys_are_looked_at_than_are_known() -> None:
    pool = BlockPool(6)
    published(pool, 2)
    keys = iter(KEYS)
    pool.find(keys)
    assert next(keys) == KEYS[3]


def test_a_shared_block_is_free_when_its_last_owner_has_gone() -> None:
    pool = BlockPool(2)
    blocks = published(pool, 1)
    pool.share(blocks)
    pool.check([blocks, blocks])
    pool.free(blocks)
    pool.check([blocks])
    assert (pool.num_used, pool.num_cached) == (1, 0)
    pool.free(blocks)
    assert (pool.num_used, pool.num_cached) == (0, 1)
    with pytest.raises(KeyError):
        pool.free(blocks)


def test_sharing_takes_a_block_out_of_the_cache() -> None:
    pool = BlockPool(3)
    blocks = published(pool, 2)
    assert pool.num_unowned(blocks) == 0
    pool.free(blocks)
    assert pool.num_unowned(blocks) == 2
    pool.share(blocks[:1])
    assert pool.num_unowned(blocks) == 1
    assert (pool.num_used, pool.num_cached, pool.num_available) == (1, 1, 2)
    pool.check([blocks[:1]])


def test_of_two_blocks_with_the_same_contents_the_first_is_kept() -> None:
    pool = BlockPool(3)
    first, second = allocate(pool, 2)
    pool.publish(first, KEYS[0])
    pool.publish(second, KEYS[0])
    pool.free([second])
    assert (pool.find(KEYS), pool.num_cached) == ([first], 0)
    pool.free([first])
    assert (pool.find(KEYS), pool.num_cached) == ([first], 1)
    pool.check([])


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(4)
    cached = published(pool, 2)
    pool.free(cached)
    assert not set(allocate(pool, 2)) & set(cached)
    assert pool.num_cached == 2


def test_a_preferred_block_is_not_evicted_while_another_is_free() -> None:
    pool = BlockPool(2)
    (cached,) = published(pool, 1)
    pool.free([cached])
    assert pool.allocate(cached) != cached
    assert pool.find(KEYS) == [cached]


def test_the_longest_unused_is_evicted_first_and_of_a_table_its_end() -> None:
    pool = BlockPool(6)
    table, other = published(pool, 3), allocate(pool, 3)
    for block, key in zip(other, KEYS[3:], strict=False):
        pool.publish(block, key)
    pool.free(table)
    pool.free(other)
    pool.share(table[:1])  # used again since
    pool.free(table[:1])
    expected = [*table[:0:-1], *other[::-1], table[0]]
    assert [pool.allocate(0) for _ in range(6)] == expected
    assert [pool.find([key]) for key in KEYS[:6]] == [[]] * 6


class PoolMachine(RuleBasedStateMachine):
    """Every operation in any order, beside plain lists that say what must come of it."""

    @initialize(num_blocks=st.integers(1, 8))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.keys: dict[int, bytes] = {}
        self.unused: list[int] = []  # cached, the longest unused first

    @property
    def owned(self) -> set[int]:
        return {block for table in self.tables for block in table}

    @precondition(lambda self: self.pool.num_available)
    @rule(preferred=st.integers(-1, 9), table=st.integers(0, 3))
    def allocate(self, preferred: int, table: int) -> None:
        free = set(range(1, self.pool.num_blocks + 1)) - self.owned - set(self.unused)
        block = self.pool.allocate(preferred)
        if preferred in free:
            assert block == preferred
        elif free:
            assert block in free
        else:
            assert block == self.unused.pop(0)
            del self.keys[block]
        if table >= len(self.tables):
            self.tables.append([])
        self.tables[min(table, len(self.tables) - 1)].append(block)

    @rule(place=st.integers(0, 9), key=st.sampled_from(KEYS[:6]))
    def publish(self, place: int, key: bytes) -> None:
        fresh = sorted(self.owned - self.keys.keys())
        if fresh:
            block = fresh[place % len(fresh)]
            self.pool.publish(block, key)
            if key not in self.keys.values():
                self.keys[block] = key

    @rule(keys=st.lists(st.sampled_from(KEYS[:6]), max_size=3, unique=True))
    def find_and_share(self, keys: list[bytes]) -> None:
        block_of = {key: block for block, key in self.keys.items()}
        known = [key in block_of for key in keys]
        expected = [block_of[key] for key in keys[: (*known, False).index(False)]]
        found = self.pool.find(keys)
        assert found == expected
        assert self.pool.num_unowned(found) == len(set(found) & set(self.unused))
        self.pool.share(found)
        self.unused = [block for block in self.unused if block not in found]
        self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(place=st.integers(0, 9))
    def free(self, place: int) -> None:
        table = self.tables.pop(place % len(self.tables))
        self.pool.free(table)
        ended = [block for block in table[::-1] if block not in self.owned]
        self.unused += [block for block in ended if block in self.keys]

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check(self.tables)
            sizes = (self.pool.num_used, self.pool.num_cached)
            assert sizes == (len(self.owned), len(self.unused))
            assert self.pool.num_available == self.pool.num_blocks - len(self.owned)
            assert list(self.pool._cached) == self.unused
            assert self.pool._key_of == self.keys


TestAnyOrder = PoolMachine.TestCase
TestAnyOrder.settings = settings(max_examples=50)
