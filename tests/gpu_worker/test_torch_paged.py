"""The torch backend equals attention computed densely, in float64, one query and head at a time."""

import math
from typing import Any

import pytest
import torch

from gpu_worker.attention import torch_paged
from gpu_worker.attention.backend import AttentionRules
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.kv_cache import BLOCK_SIZE
from tests.gpu_worker.paged_steps import CPU, NUM_BLOCKS, GrowingSequences, Shape, attend

SHAPES = [Shape(4, 4, 16, 16), Shape(6, 2, 16, 16), Shape(5, 1, 8, 8), Shape(4, 2, 24, 16)]
GROUPED = SHAPES[1]
SINKS = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 5.0])
RULES: dict[str, dict[str, Any]] = {
    "causal": {},
    "another scaling": {"scaling": 0.7},
    "window of 1": {"window": 1},
    "window of 12": {"window": 12},
    "window of a block": {"window": BLOCK_SIZE},
    "window beyond the context": {"window": 10_000},
    "chunk of 20": {"chunk": 20},
    "chunk of a block": {"chunk": BLOCK_SIZE},
    "softcap": {"softcap": 0.5},
    "sinks": {"sinks": SINKS},
    "window, softcap and sinks": {"window": 12, "softcap": 0.5, "sinks": SINKS},
    "chunk and sinks": {"chunk": 20, "sinks": SINKS},
}
# Every step is (row, number of new tokens)…: prompts whole and in chunks, decodes beside them.
STEPS = [
    [(0, 40)],
    [(0, 1), (1, 7), (2, 1)],
    [(0, 1), (2, 1), (1, 25), (3, 16)],
    [(0, 1), (1, 1), (2, 30), (3, 17)],
    [(0, 1), (1, 1), (2, 1), (3, 1)],
]


class Dense:
    """Remembers every sequence's keys and values, and attends by the definition."""

    def __init__(self, num_rows: int, rules: AttentionRules) -> None:
        self._keys: list[list[torch.Tensor]] = [[] for _ in range(num_rows)]  # [Hkv, Dk] each
        self._values: list[list[torch.Tensor]] = [[] for _ in range(num_rows)]
        self._rules = rules

    def step(self, growth: list[tuple[int, int]], tokens: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """[1, T, H, Dv] of rows that grow by as many tokens."""
        query, key, value = (part[0].double() for part in tokens)
        rows = [row for row, num_tokens in growth for _ in range(num_tokens)]
        outputs = []
        for token, row in enumerate(rows):
            self._keys[row].append(key[:, token])
            self._values[row].append(value[:, token])
            outputs.append(self._attended(query[:, token], row))
        return torch.stack(outputs)[None].float()

    def _attended(self, query: torch.Tensor, row: int) -> torch.Tensor:
        group = query.shape[0] // self._keys[row][0].shape[0]
        position = len(self._keys[row]) - 1
        seen = [n for n in range(position + 1) if self._sees(position, n)]
        heads = []
        for head, own in enumerate(query):
            keys = torch.stack([self._keys[row][n][head // group] for n in seen])
            values = torch.stack([self._values[row][n][head // group] for n in seen])
            heads.append(self._weights(keys @ own, head) @ values)
        return torch.stack(heads)

    def _sees(self, position: int, other: int) -> bool:
        window, chunk = self._rules.window, self._rules.chunk
        if window is not None and position - other >= window:
            return False
        return chunk is None or position // chunk == other // chunk

    def _weights(self, products: torch.Tensor, head: int) -> torch.Tensor:
        scores = [float(product) * self._rules.scaling for product in products]
        if (softcap := self._rules.softcap) is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        exponentials = [math.exp(score) for score in scores]
        total = sum(exponentials)
        if self._rules.sinks is not None:
            total += math.exp(float(self._rules.sinks[head]))
        return torch.tensor([e / total for e in exponentials], dtype=torch.float64)


def assert_dense(
    shape: Shape, rules: AttentionRules, *, dtype: torch.dtype = torch.float32, atol: float = 1e-5
) -> None:
    """Runs `STEPS` through the backend and through the definition."""
    backend = TorchAttention(shape.geometry(dtype), NUM_BLOCKS)
    sequences, dense = GrowingSequences(4), Dense(4, rules)
    for number, growth in enumerate(STEPS):
        batch = sequences.step(*growth)
        tokens = shape.tokens(sum(num_tokens for _, num_tokens in growth), number, dtype)
        actual = attend(backend, batch, tokens, rules)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.float(), dense.step(growth, tokens), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_share_keys_in_groups_and_values_have_a_size_of_their_own(shape: Shape) -> None:
    assert_dense(shape, shape.rules())


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_its_definition(name: str) -> None:
    rules = {"scaling": GROUPED.key_size**-0.5, **RULES[name]}
    assert_dense(GROUPED, AttentionRules(**rules))


@pytest.mark.parametrize("name", ["causal", "window of 12", "softcap", "sinks"])
def test_scores_made_tile_by_tile_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_paged, "_TILE_SCORES", 3 * 6 * 40)  # three queries of the first step
    shape = Shape(6, 2, 16, 8)  # another size of values: scores are made in any case
    rules = {"scaling": 0.25, **RULES[name]}
    assert_dense(shape, AttentionRules(**rules))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["causal", "window, softcap and sinks"])
def test_half_precision_is_near(name: str, dtype: torch.dtype) -> None:
    rules = {"scaling": 0.25, **RULES[name]}
    assert_dense(GROUPED, AttentionRules(**rules), dtype=dtype, atol=3e-2)


def test_neighbouring_blocks_are_read_in_place() -> None:
    sequences = GrowingSequences(1, num_blocks=3)
    batch = sequences.step((0, 48))
    batch.spans[0].blocks[:] = [1, 2, 3]
    reach = torch_paged._reach(batch.spans[0], GROUPED.rules(), CPU)
    pool = torch.zeros(64, 2, 16)
    assert torch_paged._read(pool, reach).untyped_storage().data_ptr() == pool.data_ptr()


def test_a_window_reads_no_more_than_its_blocks() -> None:
    sequences = GrowingSequences(1)
    sequences.step((0, 200))
    batch = sequences.step((0, 1))
    reach = torch_paged._reach(batch.spans[0], GROUPED.rules(window=12), CPU)
    pool = torch.zeros(NUM_BLOCKS * BLOCK_SIZE + BLOCK_SIZE, 2, 16)
    assert torch_paged._read(pool, reach).shape == (2, 12, 16)
    assert reach.blocks is None or len(reach.blocks) <= 2
    assert reach.mask is None
