"""Triton's paged attention equals plain torch's, rule by rule; without a GPU it is interpreted."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.batch import DECODE_FIELDS, Batch, Rows, over_fixed_inputs, prepare
from gpu_worker.kv_cache import KVGeometry, LayerGeometry
from scheduler.plan import Chunk, StepPlan
from tests.builders import make_admission

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and Triton was told too late to interpret", allow_module_level=True)

from gpu_worker.attention.triton_paged import TritonPagedAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_ROWS = 4
NUM_BLOCKS = 60
PLAIN = AttentionRules(scaling=0.3)
SLOW = pytest.mark.slow


class Duel:
    """Both backends under the same steps, with random queries, keys and values."""

    def __init__(
        self,
        layer: LayerGeometry,
        num_heads: int,
        rules: AttentionRules = PLAIN,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        geometry = KVGeometry((layer,), dtype, DEVICE)
        self.triton = TritonPagedAttention(
            geometry, NUM_BLOCKS, num_rows=NUM_ROWS, max_model_len=320
        )
        self.torch = TorchAttention(geometry, NUM_BLOCKS)
        self._layer, self._num_heads, self._rules, self._dtype = layer, num_heads, rules, dtype
        self._rows = Rows(NUM_ROWS)
        self._lengths: dict[int, int] = {}
        self._free = iter(torch.randperm(NUM_BLOCKS, generator=seeded(1)).add(1).tolist())

    def step(self, *work: tuple[int, int]) -> float:
        """Computes `tokens` more of each `row`; the largest difference of the two."""
        batch = self.batch(*work)
        inputs = self.inputs(batch.slots.shape[0])
        return self.difference(batch, *inputs)

    def batch(self, *work: tuple[int, int]) -> Batch:
        """One token of a row that has tokens decodes; everything else prefills."""
        new = tuple(make_admission(row) for row, _ in work if row not in self._lengths)
        num_decodes = sum(n == 1 and row in self._lengths for row, n in work)
        plan = StepPlan(1, new, tuple(self._chunk(row, n) for row, n in work), num_decodes)
        self._rows.update(plan)
        return prepare(plan, self._rows, DEVICE)

    def inputs(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random query, key and value, laid out as models do: [1, heads, T, size]."""
        layer, generator = self._layer, seeded(num_tokens)

        def heads(count: int, size: int) -> torch.Tensor:
            flat = torch.randn(1, num_tokens, count, size, generator=generator)
            return flat.to(DEVICE, self._dtype).transpose(1, 2)

        query = heads(self._num_heads, layer.key_size)
        key = heads(layer.num_kv_heads, layer.key_size)
        return query, key, heads(layer.num_kv_heads, layer.value_size)

    def difference(
        self, batch: Batch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> float:
        """The largest difference of the two backends' outputs."""
        outputs = []
        for backend in (self.triton, self.torch):
            backend.begin(batch)
            outputs.append(backend.attend(0, query, key, value, self._rules).float())
        assert outputs[0].shape == outputs[1].shape
        return float((outputs[0] - outputs[1]).abs().max())

    def _chunk(self, row: int, num_tokens: int) -> Chunk:
        start = self._lengths.get(row, 0)
        self._lengths[row] = start + num_tokens
        num_new = -(-(start + num_tokens) // 16) - -(-start // 16)
        blocks = tuple(next(self._free) for _ in range(num_new))
        return Chunk(row, start, (3,) * num_tokens, blocks, 0, samples=True)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


RULES = {
    "plain": PLAIN,
    "window": replace(PLAIN, window=21),
    "narrow window": replace(PLAIN, window=1),
    "chunk": replace(PLAIN, chunk=24),
    "softcap": replace(PLAIN, softcap=5.0),
    "sinks": replace(PLAIN, sinks=torch.tensor([0.5, -2.0, 9.0, 0.0], device=DEVICE)),
    "all": AttentionRules(
        0.7, 37, softcap=3.0, sinks=torch.tensor([1.0, 3.0, -1.0, 6.0], device=DEVICE)
    ),
}
FAST = ("plain", "chunk", "all")  # the last has windows, a soft cap and sinks at once


@pytest.mark.parametrize(
    "rules",
    [pytest.param(RULES[name], marks=() if name in FAST else SLOW) for name in RULES],
    ids=RULES,
)
def test_every_rule_holds_in_prefill_decode_and_both_together(rules: AttentionRules) -> None:
    duel = Duel(LayerGeometry(2, 16, 16), 4, rules)
    assert duel.step((0, 47), (1, 18)) < 1e-5
    assert duel.step((0, 1), (1, 1)) < 1e-5
    assert duel.step((1, 1), (0, 30), (2, 5)) < 1e-5


@pytest.mark.parametrize(
    "length",
    [1, 15, 16, 17, 31, 32, 33, 128, *(pytest.param(n, marks=SLOW) for n in (63, 64, 127))],
)
def test_contexts_around_the_borders_of_blocks_tiles_and_splits(length: int) -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 1)
    assert duel.step((0, length)) < 1e-5
    assert duel.step((0, 1)) < 1e-5


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(PLAIN, marks=SLOW),
        replace(PLAIN, sinks=torch.tensor([2.0], device=DEVICE)),
        pytest.param(replace(PLAIN, window=150), marks=SLOW),
    ],
    ids=["plain", "sinks", "window"],
)
def test_a_long_context_is_read_in_several_splits(rules: AttentionRules) -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 1, rules)
    duel.step((0, 200), (1, 3))
    assert duel.step((0, 1), (1, 1)) < 1e-5


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (7, 1), (8, 1), (16, 1), (18, 1)])
def test_any_number_of_queries_shares_a_key(num_heads: int, num_kv_heads: int) -> None:
    duel = Duel(LayerGeometry(num_kv_heads, 16, 16), num_heads)
    assert duel.step((0, 20)) < 1e-5
    assert duel.step((0, 1)) < 1e-5


@pytest.mark.parametrize(
    "sizes",
    [(8, 8), (24, 16), (192, 128), (256, 256)]
    + [pytest.param((n, n), marks=SLOW) for n in (80, 96)],
)
def test_any_size_of_key_and_value_heads(sizes: tuple[int, int]) -> None:
    duel = Duel(LayerGeometry(2, *sizes), 4, AttentionRules(sizes[0] ** -0.5))
    assert duel.step((0, 20), (1, 3)) < 1e-5
    assert duel.step((0, 1), (1, 1)) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        pytest.param(
            torch.bfloat16,
            3e-2,
            marks=pytest.mark.skipif(
                DEVICE.type == "cpu", reason="Triton's interpreter multiplies bfloat16 as integers"
            ),
        ),
        (torch.float16, 3e-3),
    ],
)
def test_half_precisions_differ_by_their_rounding(dtype: torch.dtype, most: float) -> None:
    duel = Duel(LayerGeometry(2, 32, 32), 4, dtype=dtype)
    assert duel.step((0, 40)) < most
    assert duel.step((0, 1)) < most


def test_one_token_of_a_prompt_is_a_prefill_like_any_other() -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 2)
    assert duel.step((0, 1), (1, 1), (2, 33)) < 1e-5


def test_many_prompts_share_a_step() -> None:
    duel = Duel(LayerGeometry(1, 8, 8), 1)
    assert duel.step((0, 32), (1, 1), (2, 31), (3, 66)) < 1e-5


@pytest.mark.parametrize(
    "rules",
    [pytest.param(PLAIN, marks=SLOW), RULES["window"]],
    ids=["plain", "window"],
)
def test_a_decoding_row_is_the_same_to_the_bit_in_any_company(rules: AttentionRules) -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 1, rules)
    duel.step((0, 200), (1, 9), (2, 130))
    together = duel.batch((0, 1), (1, 1), (2, 1))
    query, key, value = duel.inputs(3)
    duel.triton.begin(together)
    expected = duel.triton.attend(0, query, key, value, rules)
    for row in range(3):
        alone = alone_in(together, row)
        duel.triton.begin(alone)
        one = slice(row, row + 1)
        output = duel.triton.attend(0, query[:, :, one], key[:, :, one], value[:, :, one], rules)
        assert output[0, 0].equal(expected[0, row])


def alone_in(batch: Batch, row: int) -> Batch:
    """One decode of a batch of decodes, by itself."""
    width = batch.num_decodes
    inputs = batch.packed[: DECODE_FIELDS * width].view(DECODE_FIELDS, width)
    return over_fixed_inputs(inputs[:, row : row + 1].contiguous())


def test_padding_writes_to_the_scratch_block_and_harms_nobody() -> None:
    duel = Duel(LayerGeometry(2, 16, 16), 4)
    duel.step((0, 40), (1, 17))
    batch = duel.batch((0, 1), (1, 1))
    query, key, value = duel.inputs(4)
    real_inputs = (query[:, :, :2], key[:, :, :2], value[:, :, :2])
    assert duel.difference(batch, *real_inputs) < 1e-5
    padding = torch.tensor([0, 0, 0, 1, duel.triton.scratch_row, 1], device=DEVICE)
    real = batch.packed[: DECODE_FIELDS * 2].view(DECODE_FIELDS, 2)
    padded = over_fixed_inputs(torch.cat([real, padding[:, None].expand(-1, 2)], 1))
    alone = duel.triton.attend(0, *real_inputs, PLAIN)
    duel.triton.begin(padded)
    output = duel.triton.attend(0, query, key, value, PLAIN)
    assert output[:, :2].equal(alone)
    assert output.isfinite().all()
    assert duel.step((0, 3), (1, 20)) < 1e-5


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_keys_that_are_not_numbers_stay_in_their_own_row() -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 2)
    duel.step((0, 20), (1, 20))
    batch = duel.batch((0, 1), (1, 1))
    query, key, value = duel.inputs(2)
    key[0, :, 0] = float("nan")
    duel.triton.begin(batch)
    output = duel.triton.attend(0, query, key, value, PLAIN)
    assert output[0, 0].isnan().all()
    assert output[0, 1].isfinite().all()


def test_a_row_that_is_given_away_reads_its_new_table() -> None:
    duel = Duel(LayerGeometry(1, 16, 16), 2)
    duel.step((0, 40), (1, 5))
    duel._lengths.pop(0)
    assert duel.step((1, 1), (0, 17)) < 1e-5
    assert duel.step((0, 1), (1, 1)) < 1e-5
