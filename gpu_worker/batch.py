"""StepPlan to tensors: one flat row of tokens, and where each token's keys and values go.

Dimension names used in this room: T tokens of a step, N sampled tokens of a step, R rows of the
runner's tables (one a running sequence), C context tokens of one sequence, V vocabulary.
"""

from dataclasses import dataclass

import torch

from gpu_worker.kv_cache import BLOCK_SIZE
from scheduler.plan import Chunk, StepPlan


@dataclass(frozen=True)
class Span:
    """One sequence's share of the flat row, and the cache slots of its whole context."""

    start: int  # first flat token
    end: int  # after the last flat token
    context: slice | torch.Tensor  # C slots; a slice when the blocks are neighbours
    mask: torch.Tensor | None  # [end - start, C] bool, what each token may see; None: everything


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass."""

    token_ids: torch.Tensor  # [1, T] int64
    positions: torch.Tensor  # [1, T] int64, of each token in its own sequence
    slots: torch.Tensor  # [T] int64, where each token's keys and values are written
    spans: tuple[Span, ...]
    sampled: torch.Tensor  # [N] int64, flat tokens whose logits are wanted
    sampled_rows: torch.Tensor  # [N] int64, table row of each
    output_indices: torch.Tensor  # [N] int64, number of each token in its answer


class BlockTables:
    """The block table of every row, kept across steps and grown by each plan's new blocks."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self._device = device
        self._tables: list[list[int]] = [[] for _ in range(num_rows)]
        self._is_contiguous = [True] * num_rows

    def begin(self, row: int) -> None:
        """Empties the row for another sequence."""
        self._tables[row] = []
        self._is_contiguous[row] = True

    def extend(self, chunk: Chunk) -> None:
        """Appends the chunk's new blocks to its row."""
        table = self._tables[chunk.row]
        for block in chunk.new_blocks:
            if table and block != table[-1] + 1:
                self._is_contiguous[chunk.row] = False
            table.append(block)

    def slots(self, row: int, start: int, end: int) -> list[int]:
        """Cache slots of the tokens at positions `start` to `end` - 1."""
        table = self._tables[row]
        return [
            table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for position in range(start, end)
        ]

    def context(self, row: int, length: int) -> slice | torch.Tensor:
        """Cache slots of the first `length` tokens: a view's slice where the blocks allow it."""
        if self._is_contiguous[row]:
            first = self._tables[row][0] * BLOCK_SIZE
            return slice(first, first + length)
        blocks = torch.tensor(self._tables[row], device=self._device)
        offsets = torch.arange(BLOCK_SIZE, device=self._device)
        return (blocks[:, None] * BLOCK_SIZE + offsets).flatten()[:length]


def prepare(plan: StepPlan, tables: BlockTables, device: torch.device) -> Batch:
    """Lays the plan's chunks side by side and updates the block tables."""
    for admission in plan.admissions:
        tables.begin(admission.row)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    spans: list[Span] = []
    for chunk in plan.chunks:
        tables.extend(chunk)
        end = chunk.start + len(chunk.token_ids)
        spans.append(_span(len(token_ids), chunk, tables, device))
        token_ids += chunk.token_ids
        positions += range(chunk.start, end)
        slots += tables.slots(chunk.row, chunk.start, end)
    pairs = zip(spans, plan.chunks, strict=True)
    sampling = [(span, chunk) for span, chunk in pairs if chunk.samples]

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Batch(
        token_ids=tensor(token_ids)[None],
        positions=tensor(positions)[None],
        slots=tensor(slots),
        spans=tuple(spans),
        sampled=tensor([span.end - 1 for span, _ in sampling]),
        sampled_rows=tensor([chunk.row for _, chunk in sampling]),
        output_indices=tensor([chunk.output_index for _, chunk in sampling]),
    )


def _span(start: int, chunk: Chunk, tables: BlockTables, device: torch.device) -> Span:
    length = len(chunk.token_ids)
    context_length = chunk.start + length
    mask = None if length == 1 else _causal_mask(length, context_length, device)
    return Span(start, start + length, tables.context(chunk.row, context_length), mask)


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """[num_queries, num_keys]: the last query sees every key, each one before it one key less."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)
