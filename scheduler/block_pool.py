"""BlockPool: who owns which block of the KV cache. Numbers only; the tensors are elsewhere.

Block 0 is scratch and never handed out: padding rows may write there.
"""

from collections.abc import Iterable


class BlockPool:
    """Blocks 1 … num_blocks. Every block is free or used: free + used = total at all times."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = dict.fromkeys(range(1, num_blocks + 1))  # a set that keeps its order
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that belong to a sequence."""
        return len(self._used)

    def allocate(self, preferred: int) -> int:
        """Takes `preferred` if it is free, else any: neighbours keep contexts contiguous.

        The pool must not be empty; whoever admits sequences sees to that.
        """
        block = preferred if preferred in self._free else next(iter(self._free))
        del self._free[block]
        self._used.add(block)
        return block

    def free(self, blocks: Iterable[int]) -> None:
        """Gives blocks back; a block that is not in use raises KeyError."""
        for block in blocks:
            self._used.remove(block)
            self._free[block] = None

    def check(self, owned: Iterable[Iterable[int]]) -> None:
        """Asserts that these block tables are disjoint and are all that is used."""
        tables = [block for table in owned for block in table]
        assert len(tables) == len(set(tables)), "a block belongs to two sequences"
        assert set(tables) == self._used, "used blocks and block tables differ"
        assert self.num_free + self.num_used == self.num_blocks, "a block is lost"
        assert not self._used & self._free.keys(), "a block is both free and used"
