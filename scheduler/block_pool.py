"""BlockPool: who owns which block of the KV cache, and whose contents are still known.

Numbers only; the tensors are elsewhere. Block 0 is scratch and never handed out: padding rows may
write there.
"""

from collections import Counter
from collections.abc import Iterable

from scheduler.prefix import BlockKey


class BlockPool:
    """Blocks 1 … num_blocks, each in one of three states: free + cached + used = total.

    A used block has one or more owners, and a published one can be found by its key. When its last
    owner frees it, a published block stays cached until its place is needed, the one unused longest
    first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = dict.fromkeys(range(1, num_blocks + 1))  # a set that keeps its order
        self._cached: dict[int, None] = {}  # without owner, longest unused first
        self._num_owners: dict[int, int] = {}  # of used blocks
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated: free or cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks without owner whose contents can still be found."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that belong to a sequence."""
        return len(self._num_owners)

    def allocate(self, preferred: int) -> int:
        """Takes `preferred` if it is free, else any: neighbours keep contexts contiguous.

        The pool must have a block available; whoever plans sees to that.
        """
        if preferred in self._free:
            block = preferred
        elif self._free:
            block = next(iter(self._free))
        else:
            block = next(iter(self._cached))
            self._forget(block)
        del self._free[block]
        self._num_owners[block] = 1
        return block

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """Returns the blocks of the longest prefix of these keys that is still known."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_unowned(self, blocks: Iterable[int]) -> int:
        """How many of these are cached: sharing them makes as many fewer available."""
        return sum(block in self._cached for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Adds an owner to blocks that `find` returned."""
        for block in blocks:
            self._cached.pop(block, None)
            self._num_owners[block] = self._num_owners.get(block, 0) + 1

    def free(self, blocks: Iterable[int]) -> None:
        """Takes an owner away; a block that is not in use raises KeyError.

        The last block of a table becomes the least recently used: prefixes outlive their ends.
        """
        for block in reversed(tuple(blocks)):
            self._num_owners[block] -= 1
            if self._num_owners[block]:
                continue
            del self._num_owners[block]
            (self._cached if block in self._key_of else self._free)[block] = None

    def publish(self, block: int, key: BlockKey) -> None:
        """Lets a full block be found; of two blocks with the same contents the first is kept."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def check(self, owned: Iterable[Iterable[int]]) -> None:
        """Asserts that these block tables are all that is used, and that no block is lost."""
        owners = Counter(block for table in owned for block in table)
        assert owners == self._num_owners, "owners and block tables differ"
        states = [*self._free, *self._cached, *self._num_owners]
        assert sorted(states) == list(range(1, self.num_blocks + 1)), "a block is lost or doubled"
        assert self._key_of == {block: key for key, block in self._block_of.items()}
        assert self._cached.keys() <= self._key_of.keys(), "a cached block cannot be found"
        assert not self._free.keys() & self._key_of.keys(), "a free block can be found"

    def _forget(self, block: int) -> None:
        """A cached block becomes a free one."""
        del self._cached[block]
        del self._block_of[self._key_of.pop(block)]
        self._free[block] = None
