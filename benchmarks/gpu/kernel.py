"""Our Triton attention against dense attention in float64, then its speed against the memory's.

Every step of a case is compared: a prefill of all sequences, a decode, a mixed step. Blocks lie in
random order, and inputs are drawn in the precision that is tested.
"""

import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Unavailable, Values, Wrong
from gpu_worker.attention.backend import AttentionBackend, AttentionRules
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.cuda_graphs import CudaGraphDevice
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from scheduler.plan import Admission, Chunk, StepPlan
from shared.sampling import SamplingParams

# Largest ‖output − reference‖ / ‖reference‖ that rounding explains.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CONTEXTS = (1, 15, 16, 17, 300, 1100)  # tokens of each sequence after the first step
MOST_TOKENS = 32768  # of one sequence
GRAPH_CALLS = 20  # timed as one CUDA graph, as decoding runs them: without launches from Python
LATE_CHUNK = 37  # tokens with which one sequence joins the decoding others


@dataclass(frozen=True)
class Case:
    """Heads, sizes and rules of one layer."""

    num_heads: int = 8
    num_kv_heads: int = 2
    key_size: int = 128
    value_size: int = 128
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    has_sinks: bool = False

    def rules(self, device: torch.device) -> AttentionRules:
        """As stock code would pass them on."""
        sinks = torch.randn(self.num_heads, device=device) if self.has_sinks else None
        return AttentionRules(
            self.key_size**-0.5, self.window, self.chunk, self.softcap, sinks=sinks
        )

    def geometry(self, dtype: torch.dtype, device: torch.device) -> KVGeometry:
        """One layer's."""
        layer = LayerGeometry(self.num_kv_heads, self.key_size, self.value_size)
        return KVGeometry((layer,), dtype, device)

    def tokens(self, count: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
        """Random query [1, H, T, Dk], key [1, Hkv, T, Dk] and value [1, Hkv, T, Dv]."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        sizes = (self.key_size, self.key_size, self.value_size)
        return [
            torch.randn(1, count, number, size, device=device).to(dtype).transpose(1, 2)
            for number, size in zip(heads, sizes, strict=True)
        ]


CASES = {
    "grouped heads": Case(),
    "one kv head": Case(num_kv_heads=1),
    "as many kv heads": Case(num_kv_heads=8, key_size=64, value_size=64),
    "odd group of 3, heads of 80": Case(9, 3, 80, 80),
    "heads of 256, softcap": Case(8, 4, 256, 256, softcap=50.0),
    "sliding window": Case(window=100),
    "chunks of positions": Case(chunk=128),
    "sinks and window": Case(key_size=64, value_size=64, window=128, has_sinks=True),
    "other value heads": Case(8, 8, 192, 128),
}


def stage(machine: Machine) -> Stage:
    """One row a case and precision, then the decode speed."""
    return Stage("kernel", 120.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    rows = [
        Row(f"{name}, {str(dtype).removeprefix('torch.')}", partial(check, machine, case, dtype))
        for name, case in CASES.items()
        for dtype in TOLERANCES
    ]
    shapes = [(1, 16384), (8, 4096), (64, 1024), (256, 1024)]
    speeds = [
        Row(f"decode {batch} × {context} tokens", partial(decode_speed, machine, batch, context))
        for batch, context in (shapes[:1] if machine.is_rehearsal else shapes)
    ]
    return [*rows, *speeds]


def make_backend(
    machine: Machine, geometry: KVGeometry, num_blocks: int, num_rows: int
) -> AttentionBackend:
    """What is tested: our Triton kernels, in a rehearsal the plain torch ones."""
    machine.require()
    if machine.is_rehearsal:
        return TorchAttention(geometry, num_blocks)
    try:
        module: Any = importlib.import_module("gpu_worker.attention.triton_paged")
    except ImportError as error:
        raise Unavailable(str(error)) from error
    backend: AttentionBackend = module.TritonPagedAttention(
        geometry, num_blocks, num_rows=num_rows, max_model_len=MOST_TOKENS
    )
    return backend


class _Sequences:
    """Sequences that grow step by step, over blocks from all over the pool."""

    def __init__(self, num_rows: int, num_blocks: int, device: torch.device) -> None:
        self._rows = Rows(num_rows)
        self._lengths = [0] * num_rows
        self._free = random.Random(0).sample(range(1, num_blocks + 1), num_blocks)
        self._device = device

    def grow(self, *lengths: int) -> Batch:
        """The batch in which each row grows by as many tokens; decodes must come first."""
        admissions = tuple(self._admit(row) for row, old in enumerate(self._lengths) if old == 0)
        chunks = tuple(self._chunk(row, count) for row, count in enumerate(lengths))
        num_decodes = next((n for n, count in enumerate(lengths) if count != 1), len(lengths))
        plan = StepPlan(1, admissions, chunks, num_decodes)
        self._rows.update(plan)
        return prepare(plan, self._rows, self._device)

    def _admit(self, row: int) -> Admission:
        return Admission(row, SamplingParams(seed=0), (0,), 1, frozenset(), ())

    def _chunk(self, row: int, count: int) -> Chunk:
        start = self._lengths[row]
        self._lengths[row] = end = start + count
        num_new = -(-end // BLOCK_SIZE) - -(-start // BLOCK_SIZE)
        blocks = tuple(self._free.pop() for _ in range(num_new))
        return Chunk(row, start, (0,) * count, blocks, 0, samples=True)


def check(machine: Machine, case: Case, dtype: torch.dtype) -> Values:
    """The largest relative error of three steps; raises Wrong where rounding cannot explain it."""
    machine.require()
    torch.manual_seed(0)
    device = machine.device
    num_blocks = sum(-(-(context + 1 + LATE_CHUNK) // BLOCK_SIZE) for context in CONTEXTS)
    backend = make_backend(machine, case.geometry(dtype, device), num_blocks, len(CONTEXTS))
    sequences = _Sequences(len(CONTEXTS), num_blocks, device)
    rules = case.rules(device)
    history: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in CONTEXTS]
    ones = [1] * (len(CONTEXTS) - 1)
    errors = []
    for lengths in (CONTEXTS, (*ones, 1), (*ones, LATE_CHUNK)):
        batch = sequences.grow(*lengths)
        query, key, value = case.tokens(sum(lengths), dtype, device)
        backend.begin(batch)
        output = backend.attend(0, query, key, value, rules)[0]  # [T, H, Dv]
        start, expected = 0, []
        for row, count in enumerate(lengths):
            own = slice(start, start + count)
            history[row].append((key[0, :, own].double(), value[0, :, own].double()))
            expected.append(_dense(query[0, :, own].double(), history[row], rules))
            start += count
        errors.append(_error(output, torch.cat(expected)))
    worst = max(errors)
    if not worst <= TOLERANCES[dtype]:  # NaN is not
        raise Wrong(f"relative error {worst:.2e} above {TOLERANCES[dtype]:.0e} in {errors}")
    return {"relative_error": worst}


def _error(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float((output.double() - reference).norm() / reference.norm())


def _dense(
    query: torch.Tensor,  # [H, t, Dk]
    history: list[tuple[torch.Tensor, torch.Tensor]],  # [Hkv, t', Dk], [Hkv, t', Dv] a step
    rules: AttentionRules,
) -> torch.Tensor:
    """Attention of the newest tokens, spelt out; [t, H, Dv]."""
    group = query.shape[0] // history[0][0].shape[0]
    keys = torch.cat([key for key, _ in history], 1).repeat_interleave(group, 0)
    values = torch.cat([value for _, value in history], 1).repeat_interleave(group, 0)
    scores = query @ keys.transpose(1, 2) * rules.scaling  # [H, t, C]
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    seen = torch.arange(keys.shape[1], device=query.device)
    asking = seen[-query.shape[1] :, None]
    hidden = seen > asking
    if rules.window is not None:
        hidden |= asking - seen >= rules.window
    if rules.chunk is not None:
        hidden |= asking // rules.chunk != seen // rules.chunk
    scores = scores.masked_fill(hidden, float("-inf"))
    if rules.sinks is None:
        return (scores.softmax(-1) @ values).transpose(0, 1)
    sinks = rules.sinks.double()[:, None, None].expand(-1, scores.shape[1], 1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    return (weights @ values).transpose(0, 1)


def decode_speed(machine: Machine, batch_size: int, context: int) -> Values:
    """One layer of the 8-billion shape: bytes of keys and values a second, against a copy's."""
    machine.require()
    case = Case(32, 8, 128, 128)
    geometry = case.geometry(torch.bfloat16, machine.device)
    blocks_each = -(-(context + 1) // BLOCK_SIZE)
    backend = make_backend(machine, geometry, batch_size * blocks_each, batch_size)
    sequences = _Sequences(batch_size, batch_size * blocks_each, machine.device)
    sequences.grow(*[context] * batch_size)
    backend.begin(sequences.grow(*[1] * batch_size))
    query, key, value = case.tokens(batch_size, torch.bfloat16, machine.device)
    rules = case.rules(machine.device)
    attend = partial(backend.attend, 0, query, key, value, rules)
    if machine.is_rehearsal:
        seconds = machine.seconds(attend, 3)
    else:
        calls = CudaGraphDevice().capture(lambda: [attend() for _ in range(GRAPH_CALLS)][-1])
        seconds = machine.seconds(calls, 30) / GRAPH_CALLS
    num_bytes = batch_size * (context + 1) * geometry.block_bytes / BLOCK_SIZE
    return {
        "microseconds": seconds * 1e6,
        "bytes_per_second": num_bytes / seconds,
        "share_of_measured_bandwidth": num_bytes / seconds / machine.bytes_per_second,
    }
