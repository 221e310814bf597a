"""A step waits for the device once, for its sampled ids: nothing else asks what a tensor holds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import Batch
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.paged_attention import ATTENTION
from scheduler.plan import Chunk, StepPlan
from shared.sampling import SamplingParams
from tests.builders import GREEDY, make_admission, make_model

NUM_ROWS = 3
# Operators whose result, or its shape, the host learns from the device.
WAITING = {
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero", "aten.masked_select",
    "aten.unique_consecutive", "aten._unique2", "aten.equal", "aten.repeat_interleave.Tensor",
}  # fmt: skip
RANDOM = SamplingParams(
    seed=1, top_p=0.8, top_k=40, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.3,
    presence_penalty=0.2, logit_bias=((3, 2.0),), min_tokens=5,
)  # fmt: skip

TOLD = SamplingParams(seed=3, num_logprobs=5, num_prompt_logprobs=5)


class Blind:
    """Attention that sees nothing."""

    def begin(self, batch: Batch) -> None:
        """Keeps nothing."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        return query.transpose(1, 2).contiguous()


class Waits(TorchDispatchMode):
    """Writes down every operator that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        if name.rsplit(".", 1)[0] in WAITING or name in WAITING or _has_mask(name, args):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _has_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Indexing by a mask asks the device how much of it is set."""
    if not name.startswith(("aten.index.", "aten.index_put")):
        return False
    indices = [index for index in args[1] if index is not None]
    return any(index.dtype == torch.bool for index in indices)


def decode_step(step: int) -> StepPlan:
    """Every row decodes its next token."""
    chunks = tuple(
        Chunk(row, 3 + step, (7 + row,), (), output_index=step, samples=True)
        for row in range(NUM_ROWS)
    )
    return StepPlan(1 + step, (), chunks, NUM_ROWS)


@pytest.mark.parametrize(
    "settings",
    [GREEDY, RANDOM, replace(RANDOM, top_k=0), SamplingParams(seed=3), TOLD],
    ids=["greedy", "everything", "no top k", "plain", "logprobs"],
)
def test_neither_prefill_nor_decode_asks_the_device(settings: SamplingParams) -> None:
    model = make_model("llama", num_hidden_layers=1)
    model.set_attn_implementation(ATTENTION)
    runner = CausalLM(model, Blind(), NUM_ROWS)
    admissions = tuple(
        make_admission(row, replace(settings, seed=row), token_ids=(4, 5, 6), num_prompt_tokens=3)
        for row in range(NUM_ROWS)
    )
    targets = () if settings.num_prompt_logprobs is None else (5, 6)
    prefills = tuple(
        Chunk(row, 0, (4, 5, 6), (row + 1,), 0, samples=True, targets=targets) for row in range(3)
    )
    with Waits() as waits:
        runner.execute(StepPlan(1, admissions, prefills, 0))
        for step in range(1, 4):
            runner.execute(decode_step(step))
    assert waits.seen == []


def test_the_count_would_notice() -> None:
    numbers = torch.arange(4)
    with Waits() as waits:
        numbers.max().item()
        numbers.nonzero()
        numbers[numbers > 2] = 0
        bool(numbers[0] == 0)
        numbers[torch.tensor([0, 1])] = 1
    assert [name.partition(".")[2].partition(".")[0] for name in waits.seen] == [
        "_local_scalar_dense", "nonzero", "index_put_", "_local_scalar_dense",
    ]  # fmt: skip
