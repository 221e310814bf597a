"""Decoding under graphs, on a device that repeats what it recorded by calling it again."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.batch import Batch, Rows, prepare
from gpu_worker.cuda_graphs import CudaGraphDevice, DecodeGraphs, batch_sizes, padding_row
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from gpu_worker.paged_attention import ATTENTION
from scheduler.plan import Chunk, StepPlan
from scheduler.scheduler import Scheduler
from tests.builders import GREEDY, make_admission, make_model, make_sequence

CPU = torch.device("cpu")
NUM_ROWS = 5
NUM_BLOCKS = 40
SCRATCH_ROW = NUM_ROWS
PROMPTS = ((15, 5), (3, 8), (18, 4), (30, 3))  # tokens, and most tokens of the answer
TOLD = replace(GREEDY, num_logprobs=3)
PADDING = [0, 0, 0, 1, SCRATCH_ROW, 1]


class FakeGraphDevice:
    """Repeats by calling again: on fixed inputs that is what a graph does."""

    def __init__(self) -> None:
        self.captured: list[int] = []  # batch sizes
        self.replayed: list[int] = []

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        size = run().shape[0]
        self.captured.append(size)

        def replay() -> torch.Tensor:
            self.replayed.append(size)
            return run()

        return replay


class RefusingDevice:
    """A device on which the forward pass of this model cannot be recorded."""

    def __init__(self, captures: int) -> None:
        self._captures = captures

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        if self._captures == 0:
            raise RuntimeError("called a synchronizing CUDA operation\nand what C++ adds")
        self._captures -= 1
        return run


def echo(batch: Batch) -> torch.Tensor:
    """Logits that are the inputs: [T, 6]."""
    fields = (
        batch.token_ids[0], batch.positions[0], batch.slots,
        batch.rope_lengths, batch.span_rows, batch.context_lengths,
    )  # fmt: skip
    return torch.stack(fields, 1).double()


def decodes(*rows: int) -> Batch:
    """A batch in which these rows decode their third token."""
    tables = Rows(NUM_ROWS)
    admissions = tuple(make_admission(row) for row in rows)
    first = tuple(Chunk(row, 0, (4, 5), (row + 1,), 0, samples=True) for row in rows)
    tables.update(StepPlan(1, admissions, first, 0))
    chunks = tuple(Chunk(row, 2, (10 + row,), (), 1, samples=True) for row in rows)
    return prepare(StepPlan(2, (), chunks, len(rows)), tables, CPU)


def row_inputs(row: int) -> list[int]:
    """What `decodes` makes of a row."""
    return [10 + row, 2, (row + 1) * BLOCK_SIZE + 2, 3, row, 3]


def graphs_over(
    device: FakeGraphDevice | RefusingDevice,
    forward: Callable[[Batch], torch.Tensor] = echo,
    max_batch_size: int = NUM_ROWS,
) -> DecodeGraphs:
    """Captured graphs of a forward pass."""
    padding = padding_row(SCRATCH_ROW, CPU)
    graphs = DecodeGraphs(forward, device, max_batch_size=max_batch_size, padding=padding)
    graphs.capture()
    return graphs


def test_batches_are_padded_to_few_sizes() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(4) == [1, 2, 4]
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert all(b - a <= 8 for a, b in pairwise(batch_sizes(255)))


def test_the_largest_size_is_captured_first() -> None:
    device = FakeGraphDevice()
    graphs_over(device, max_batch_size=9)
    assert device.captured == [9, 8, 4, 2, 1]


def test_the_next_larger_graph_runs_and_only_real_rows_come_back() -> None:
    device = FakeGraphDevice()
    graphs = graphs_over(device)
    logits = graphs.run(decodes(2, 0, 4))
    assert device.replayed == [4]
    assert logits.tolist() == [row_inputs(2), row_inputs(0), row_inputs(4)]


def test_rows_behind_the_batch_are_padding_whatever_ran_before() -> None:
    seen: list[torch.Tensor] = []

    def forward(batch: Batch) -> torch.Tensor:
        seen.append(echo(batch))
        return seen[-1]

    graphs = graphs_over(FakeGraphDevice(), forward)
    graphs.run(decodes(0, 1, 2, 3))
    graphs.run(decodes(3, 1, 2))
    assert seen[-1].tolist() == [row_inputs(3), row_inputs(1), row_inputs(2), PADDING]
    graphs.run(decodes(0, 1, 2, 3))
    assert seen[-1].tolist() == [row_inputs(row) for row in range(4)]


def test_only_batches_of_nothing_but_decodes_are_covered() -> None:
    graphs = graphs_over(FakeGraphDevice(), max_batch_size=2)
    assert graphs.covers(decodes(0, 1))
    assert not graphs.covers(decodes(0, 1, 2))
    rows = Rows(NUM_ROWS)
    plan = StepPlan(1, (make_admission(0),), (Chunk(0, 0, (4,), (1,), 0, samples=True),), 0)
    rows.update(plan)
    assert not graphs.covers(prepare(plan, rows, CPU)), "a prompt of one token is no decode"


@pytest.mark.parametrize("captures", [0, 1])
def test_a_model_that_cannot_be_captured_decodes_without(
    captures: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gpu_worker.cuda_graphs"):
        graphs = graphs_over(RefusingDevice(captures))
    assert not graphs.covers(decodes(0))
    announced, refused = caplog.messages
    assert announced == "capturing CUDA graphs for decode: 4 batch sizes up to 5"
    assert refused.endswith("capture failed: called a synchronizing CUDA operation")


def test_an_error_in_the_program_is_not_taken_for_a_failed_capture() -> None:
    def broken(batch: Batch) -> torch.Tensor:
        raise AttributeError("a slip of the pen")

    with pytest.raises(AttributeError):
        graphs_over(FakeGraphDevice(), broken)


def answers(runner: CausalLM) -> tuple[list[list[int]], list[int], list[float]]:
    """What four prompts become when one arrives with every step; how many decoded in pure steps.

    And the logprobs of all that was sampled.
    """
    scheduler = Scheduler(
        num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_sequences=NUM_ROWS, max_tokens_per_step=24
    )
    sequences = [make_sequence(str(n), n, max_tokens, TOLD) for n, max_tokens in PROMPTS]
    logprobs = []
    arrivals = iter(sequences)
    num_decodes = []
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        if arrived is not None:
            scheduler.add(arrived)
        plan = scheduler.schedule()
        for output in scheduler.apply(plan, runner.execute(plan)):
            assert output.score is not None
            logprobs += [output.score.logprob, *output.score.top_logprobs]
        if plan.num_decodes == len(plan.chunks):
            num_decodes.append(plan.num_decodes)
    return [sequence.token_ids for sequence in sequences], num_decodes, logprobs


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is off: there is a GPU"
)
def test_a_model_answers_the_same_under_graphs_as_without() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from gpu_worker.attention.triton_paged import TritonPagedAttention

    geometry = KVGeometry((LayerGeometry(2, 16, 16),), torch.float32, CPU)
    device = FakeGraphDevice()
    triton = TritonPagedAttention(geometry, NUM_BLOCKS, num_rows=NUM_ROWS, max_model_len=64)
    graphed = served(triton)
    graphed.capture(device)
    token_ids, num_decodes, logprobs = answers(graphed)
    *expected, stock = answers(served(TorchAttention(geometry, NUM_BLOCKS)))
    assert [token_ids, num_decodes] == expected
    assert logprobs == pytest.approx(stock, abs=1e-4)
    assert len(device.replayed) == len(num_decodes), "mixed steps are eager, all others are not"
    assert (4, 3) in zip(device.replayed, num_decodes, strict=True), "no batch was padded"


def served(backend: AttentionBackend) -> CausalLM:
    """The same small model over this backend."""
    model = make_model("llama", num_hidden_layers=1)
    model.set_attn_implementation(ATTENTION)
    return CausalLM(model, backend, NUM_ROWS)


@pytest.mark.gpu
def test_cuda_repeats_what_it_captured_on_new_inputs() -> None:
    inputs = torch.ones(3, device="cuda")
    output = torch.empty(3, device="cuda")
    replay = CudaGraphDevice().capture(lambda: output.copy_(inputs * 2))
    inputs.fill_(4)
    assert replay().tolist() == [8.0, 8.0, 8.0]


@pytest.mark.gpu
def test_cuda_refuses_to_capture_what_waits_for_the_device() -> None:
    inputs = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="synchroniz"):
        CudaGraphDevice().capture(lambda: inputs * inputs.sum().item())
