"""The place of every sequence that runs: its row, its blocks, and the blocks promised to it.

A sequence that ends while a step is under way that writes to its blocks keeps its place until that
step is over: nobody else may have them before.
"""

from bisect import insort
from collections.abc import Iterator

from scheduler.block_pool import BlockPool
from scheduler.row_pool import RowPool
from scheduler.sequence import Sequence
from scheduler.waiting import arrival, assert_in_order, remove


class Places:
    """Gives rows and blocks to sequences, and takes them back."""

    def __init__(
        self, *, num_blocks: int, block_size: int, num_rows: int, rows_are_slots: bool
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.rows = RowPool(num_rows)
        self.running: list[Sequence] = []  # in order of arrival
        self.num_promised = 0  # blocks that running sequences may still take without asking
        self._leaving: dict[Sequence, None] = {}  # they have ended, and a step still writes there
        self._block_size = block_size
        self._home_size = max(1, num_blocks // num_rows)  # blocks that a row prefers
        self._rows_are_slots = rows_are_slots

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-num_tokens // self._block_size)

    def find(self, sequence: Sequence) -> list[int]:
        """Known blocks of the sequence's beginning; its last token is always left to compute.

        So is every token whose logits a score needs.
        """
        if sequence.cache_salt is None:
            return []
        num_tokens = len(sequence.token_ids) - 1
        num_tokens = num_tokens if sequence.is_scored else sequence.num_scored
        num_blocks = num_tokens // self._block_size
        return self.pool.find(sequence.block_keys(num_blocks, self._block_size))

    def has_room(self, sequence: Sequence, found: list[int]) -> bool:
        """True when the pool can hold the sequence beside those that run; `find` has found these.

        One block more is left for each that runs, lest one be preempted soon; a slot never grows.
        """
        needed = self._num_to_promise(sequence) - len(found) + self.pool.num_unowned(found)
        is_fixed = self._rows_are_slots or not sequence.may_yield
        spare = 0 if is_fixed else len(self.running)
        return self.num_promised + needed + spare <= self.pool.num_available

    @property
    def num_to_spare(self) -> int:
        """Blocks that can be taken by whoever has no promise."""
        return self.pool.num_available - self.num_promised

    def needs_block(self, sequence: Sequence) -> bool:
        """True when a decoding sequence takes a block with its next token that is not promised."""
        is_full = sequence.num_planned % self._block_size == 0
        return is_full and len(sequence.blocks) >= sequence.num_promised

    def take(self, sequence: Sequence, found: list[int]) -> None:
        """Gives a sequence a row, and the blocks that were found; others are promised."""
        self.pool.share(found)
        sequence.blocks = found
        sequence.num_published = len(found)
        sequence.num_computed = len(found) * self._block_size
        sequence.num_promised = self._num_to_promise(sequence)
        self.num_promised += sequence.num_promised - len(found)
        self.rows.take(sequence)
        insort(self.running, sequence, key=arrival)

    def grow(self, sequence: Sequence, num_tokens: int) -> tuple[int, ...]:
        """Gives the blocks that so many tokens need beyond those that the sequence has."""
        num_old = len(sequence.blocks)
        while len(sequence.blocks) < self.num_blocks_for(num_tokens):
            home = sequence.row * self._home_size + 1
            preferred = sequence.blocks[-1] + 1 if sequence.blocks else home
            if len(sequence.blocks) < sequence.num_promised:
                self.num_promised -= 1
            sequence.blocks.append(self.pool.allocate(preferred))
        return tuple(sequence.blocks[num_old:])

    def publish(self, sequence: Sequence) -> None:
        """Lets full blocks be found, now that a token was sampled from them: they are sound."""
        num_full = sequence.num_computed // self._block_size
        if num_full == sequence.num_published or sequence.cache_salt is None:
            return
        for number in range(sequence.num_published, num_full):
            key = sequence.block_key(number, self._block_size)
            self.pool.publish(sequence.blocks[number], key)
        sequence.num_published = num_full

    def leave(self, sequence: Sequence) -> None:
        """Takes back what `take` and `grow` gave, as soon as no step is under way that uses it."""
        self.num_promised -= max(0, sequence.num_promised - len(sequence.blocks))
        remove(self.running, sequence)
        if sequence.num_flying:
            self._leaving[sequence] = None
        else:
            self._give_back(sequence)

    def land(self, sequence: Sequence) -> None:
        """A step of a sequence that has ended is over: takes its place back if it was the last."""
        if not sequence.num_flying:
            del self._leaving[sequence]
            self._give_back(sequence)

    def check(self) -> None:
        """Asserts that blocks, rows and promises are all accounted for."""
        holders = (*self.running, *self._leaving)
        self.pool.check(sequence.blocks for sequence in holders)
        self.rows.check(holders)
        open_promises = sum(max(0, s.num_promised - len(s.blocks)) for s in self.running)
        assert open_promises == self.num_promised <= self.pool.num_available
        assert_in_order(self.running)
        for sequence in holders:
            assert self.num_blocks_for(sequence.num_planned) <= len(sequence.blocks)
        assert all(sequence.num_flying for sequence in self._leaving), "it keeps what nobody uses"

    def prefilling(self) -> Iterator[Sequence]:
        """Those that run and have more to compute than the newest token, in order of arrival."""
        return (s for s in self.running if not s.is_decoding and s.num_planned < len(s.token_ids))

    def _num_to_promise(self, sequence: Sequence) -> int:
        num_tokens = len(sequence.token_ids) if sequence.may_yield else sequence.max_computed
        return self.num_blocks_for(num_tokens)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        self.rows.give_back(sequence)
