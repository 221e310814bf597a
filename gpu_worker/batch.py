"""StepPlan to tensors: one flat row of tokens, and where each token's keys and values go.

Dimension names used in this room: T tokens of a step, B sequences of a step, N sampled tokens of a
step, S prompt tokens that a step scores, P prompts that a step pools, R rows of the runner's tables
(one a running sequence), C context tokens of one sequence, V vocabulary.
"""

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.upload import upload
from scheduler.plan import Chunk, StepPlan

# Of a batch of decodes alone, the first 6 x T numbers of `packed` are one [6, T] table: the inputs
# that a CUDA graph of B = T sequences reads from its own buffer.
DECODE_FIELDS = 6


class Span(NamedTuple):
    """One sequence's share of the flat row."""

    row: int
    start: int  # first flat token
    end: int  # after the last flat token
    context_length: int  # tokens of the sequence up to the last one here
    blocks: list[int]  # the row's block table, which covers the context; not to be changed


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass; decoding sequences come first, with one token each.

    Every tensor is int64, and a view of `packed`.
    """

    token_ids: torch.Tensor  # [1, T]
    positions: torch.Tensor  # [1, T], of each token in its own sequence
    slots: torch.Tensor  # [T], where each token's keys and values are written
    rope_lengths: torch.Tensor  # [T], see `Rows.rope_length`
    span_rows: torch.Tensor  # [B], table row of each sequence
    context_lengths: torch.Tensor  # [B], tokens of each sequence up to its last one here
    span_starts: torch.Tensor  # [B + 1], first flat token of each sequence, then T
    kept: torch.Tensor  # [N + S], flat tokens whose logits are wanted: to sample, then to score
    sampled_rows: torch.Tensor  # [N], table row of each
    output_indices: torch.Tensor  # [N], number of each token in its answer
    targets: torch.Tensor  # [S], the tokens to score
    pooled: torch.Tensor  # [P], flat tokens whose states are wanted
    table_updates: torch.Tensor  # [3, U]: row, index in the row's block table, block
    packed: torch.Tensor  # all of the above in this order
    spans: tuple[Span, ...]
    num_decodes: int  # the first spans

    @property
    def is_decode(self) -> bool:
        """True when every sequence decodes, so that every token is sampled."""
        return self.num_decodes == self.slots.shape[0]


class Rows:
    """The block table and the prompt's length of every row, kept from step to step."""

    def __init__(self, num_rows: int) -> None:
        self.tables: list[list[int]] = [[] for _ in range(num_rows)]
        self._prompt_lengths = [0] * num_rows

    def update(self, plan: StepPlan) -> None:
        """Takes in the plan's admissions and new blocks; a second time changes nothing."""
        for admission in plan.admissions:
            self.tables[admission.row] = list(admission.cached_blocks)
            self._prompt_lengths[admission.row] = admission.num_prompt_tokens
        for chunk in plan.chunks:
            self.tables[chunk.row][_num_blocks(chunk.start) :] = chunk.new_blocks

    def rope_length(self, row: int, position: int) -> int:
        """Length of the sequence that the angles of its token at `position` may depend on.

        As in `generate()`: the whole prompt for its tokens, up to itself for a generated one.
        """
        return max(self._prompt_lengths[row], position + 1)


def prepare(plan: StepPlan, rows: Rows, device: torch.device) -> Batch:
    """Lays the plan's chunks side by side, in one transfer; `rows` has taken in the plan."""
    spans = _spans(plan, rows)
    sampling = [pair for pair in zip(spans, plan.chunks, strict=True) if pair[1].samples]
    updates = _table_updates(plan)
    scored, targets = _scored(plan)
    fields = (
        [token_id for chunk in plan.chunks for token_id in chunk.token_ids],
        *_places(plan.chunks, rows),
        [span.row for span in spans],
        [span.context_length for span in spans],
        [0, *(span.end for span in spans)],
        [*(span.end - 1 for span, _ in sampling), *scored],
        [span.row for span, _ in sampling],
        [chunk.output_index for _, chunk in sampling],
        targets,
        [s.end - 1 for s, chunk in zip(spans, plan.chunks, strict=True) if chunk.pools],
        [number for column in zip(*updates, strict=True) for number in column],
    )
    packed = upload(list(chain.from_iterable(fields)), torch.long, device)
    views = packed.split([len(field) for field in fields])
    return Batch(
        token_ids=views[0][None],
        positions=views[1][None],
        slots=views[2],
        rope_lengths=views[3],
        span_rows=views[4],
        context_lengths=views[5],
        span_starts=views[6],
        kept=views[7],
        sampled_rows=views[8],
        output_indices=views[9],
        targets=views[10],
        pooled=views[11],
        table_updates=views[12].view(3, -1),
        packed=packed,
        spans=spans,
        num_decodes=plan.num_decodes,
    )


def over_fixed_inputs(inputs: torch.Tensor) -> Batch:
    """The batch of decodes whose numbers `inputs`, [DECODE_FIELDS, T], hold when it is computed.

    The host does not know them, so `spans` is empty: for backends that ask the device alone.
    """
    token_ids, positions, slots, rope_lengths, span_rows, context_lengths = inputs
    span_starts = torch.arange(inputs.shape[1] + 1, device=inputs.device)
    return Batch(
        token_ids=token_ids[None],
        positions=positions[None],
        slots=slots,
        rope_lengths=rope_lengths,
        span_rows=span_rows,
        context_lengths=context_lengths,
        span_starts=span_starts,
        kept=span_starts[:-1],
        sampled_rows=span_rows,
        output_indices=span_starts.new_empty(0),
        targets=span_starts.new_empty(0),
        pooled=span_starts.new_empty(0),
        table_updates=span_starts.new_empty(3, 0),
        packed=inputs.view(-1),
        spans=(),
        num_decodes=inputs.shape[1],
    )


def _spans(plan: StepPlan, rows: Rows) -> tuple[Span, ...]:
    spans = []
    start = 0
    for chunk in plan.chunks:
        length = len(chunk.token_ids)
        context_length, blocks = chunk.start + length, rows.tables[chunk.row]
        spans.append(Span(chunk.row, start, start + length, context_length, blocks))
        start += length
    return tuple(spans)


def _places(chunks: tuple[Chunk, ...], rows: Rows) -> tuple[list[int], list[int], list[int]]:
    """Position, slot and rope length of every token."""
    positions: list[int] = []
    slots: list[int] = []
    rope_lengths: list[int] = []
    for chunk in chunks:
        row, table = chunk.row, rows.tables[chunk.row]
        for position in range(chunk.start, chunk.start + len(chunk.token_ids)):
            positions.append(position)
            slots.append(table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
            rope_lengths.append(rows.rope_length(row, position))
    return positions, slots, rope_lengths


def _scored(plan: StepPlan) -> tuple[list[int], list[int]]:
    """The flat tokens whose logits score the targets, and the targets; decodes have none."""
    scored: list[int] = []
    targets: list[int] = []
    flat = plan.num_decodes
    for chunk in plan.chunks[plan.num_decodes :]:
        first = flat + chunk.first_scored - chunk.start
        scored += range(first, first + len(chunk.targets))
        targets += chunk.targets
        flat += len(chunk.token_ids)
    return scored, targets


def _table_updates(plan: StepPlan) -> list[tuple[int, int, int]]:
    """What the plan writes to the block tables: (row, index, block), nothing twice."""
    cached = [(admission.row, 0, admission.cached_blocks) for admission in plan.admissions]
    new = [
        (chunk.row, _num_blocks(chunk.start), chunk.new_blocks)
        for chunk in plan.chunks
        if chunk.new_blocks
    ]
    return [
        (row, first + index, block)
        for row, first, blocks in (*cached, *new)
        for index, block in enumerate(blocks)
    ]


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)
