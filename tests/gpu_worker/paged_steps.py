"""Steps of sequences that grow, whose blocks lie scattered in the pool: input for backends."""

import random
from dataclasses import dataclass, field

import torch

from gpu_worker.attention.backend import AttentionBackend, AttentionRules
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from scheduler.plan import Chunk, StepPlan

CPU = torch.device("cpu")
NUM_BLOCKS = 400


@dataclass(frozen=True)
class Shape:
    """Heads and sizes of one attention layer."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int

    def geometry(self, dtype: torch.dtype = torch.float32) -> KVGeometry:
        """What a model of one such layer keeps."""
        layer = LayerGeometry(self.num_kv_heads, self.key_size, self.value_size)
        return KVGeometry((layer,), dtype, CPU)

    def rules(self, **others: object) -> AttentionRules:
        """The usual scaling, and further rules."""
        return AttentionRules(scaling=self.key_size**-0.5, **others)  # type: ignore[arg-type]

    def tokens(self, num_tokens: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Random query, key and value, as stock code hands them over: [1, heads, T, size]."""
        sizes = [
            (self.num_heads, self.key_size),
            (self.num_kv_heads, self.key_size),
            (self.num_kv_heads, self.value_size),
        ]
        torch.manual_seed(seed)
        return tuple(torch.randn(1, num_tokens, *size).to(dtype).transpose(1, 2) for size in sizes)


@dataclass
class GrowingSequences:
    """Plans steps by hand; every sequence is a row, and takes blocks from all over the pool."""

    num_rows: int
    seed: int = 0
    num_blocks: int = NUM_BLOCKS
    lengths: list[int] = field(init=False)
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = [0] * self.num_rows
        self.rows = Rows(self.num_rows)
        self._free = list(range(1, self.num_blocks + 1))
        random.Random(self.seed).shuffle(self._free)

    def step(self, *growth: tuple[int, int]) -> Batch:
        """The batch in which these rows grow by as many tokens: (row, number of tokens)."""
        chunks = tuple(self._chunk(row, num_tokens) for row, num_tokens in growth)
        num_decodes = sum(num_tokens == 1 for _, num_tokens in growth)
        plan = StepPlan(0, (), chunks, num_decodes)
        self.rows.update(plan)
        return prepare(plan, self.rows, CPU)

    def _chunk(self, row: int, num_tokens: int) -> Chunk:
        start = self.lengths[row]
        self.lengths[row] += num_tokens
        num_new = -(-self.lengths[row] // BLOCK_SIZE) - -(-start // BLOCK_SIZE)
        blocks = tuple(self._free.pop() for _ in range(num_new))
        return Chunk(row, start, (7,) * num_tokens, blocks, 0, samples=True)


def attend(
    backend: AttentionBackend, batch: Batch, tokens: tuple[torch.Tensor, ...], rules: AttentionRules
) -> torch.Tensor:
    """One step of a model of one layer; [1, T, H, Dv]."""
    query, key, value = tokens
    backend.begin(batch)
    return backend.attend(0, query, key, value, rules)
