"""A step on a device without numbers (torch's `meta`): no tensor is elsewhere, nothing is read."""

from typing import Any

import pytest
import torch

from gpu_worker.attention.backend import AttentionRules
from gpu_worker.batch import DECODE_FIELDS, Batch, over_fixed_inputs
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.probe import probe
from scheduler.plan import Chunk, StepPlan
from shared.sampling import SamplingParams
from tests.builders import GREEDY, make_admission, make_model
from tests.gpu_worker.test_architectures import ARCHITECTURES

META = torch.device("meta")
NUM_ROWS = 3
PROMPT = (4, 5, 6)
EVERYTHING = SamplingParams(
    seed=1, top_p=0.8, top_k=40, min_p=0.01, repetition_penalty=1.2, frequency_penalty=0.3,
    presence_penalty=0.2, logit_bias=((3, 2.0),), min_tokens=5,
)  # fmt: skip

TOLD = SamplingParams(seed=3, num_logprobs=5, num_prompt_logprobs=5)


class Strict:
    """Attention that sees nothing and refuses what is not on the device."""

    def begin(self, batch: Batch) -> None:
        assert batch.packed.device == META

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        tensors = [query, key, value, *([] if rules.sinks is None else [rules.sinks])]
        assert {tensor.device for tensor in tensors} == {META}
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def served(name: str) -> CausalLM:
    """A small model on the device, in the precision of GPUs."""
    model: Any = make_model(name.partition(",")[0], **ARCHITECTURES[name])
    probe(model)
    return CausalLM(model.to(META, torch.bfloat16), Strict(), NUM_ROWS)


def plans(settings: SamplingParams) -> list[StepPlan]:
    """Prompts, then two steps of decoding."""
    rows = range(NUM_ROWS)
    admissions = tuple(
        make_admission(row, settings, token_ids=PROMPT, num_prompt_tokens=len(PROMPT))
        for row in rows
    )
    targets = () if settings.num_prompt_logprobs is None else PROMPT[1:]
    prefills = tuple(
        Chunk(row, 0, PROMPT, (row + 1,), 0, samples=True, targets=targets) for row in rows
    )
    decodes = [
        tuple(Chunk(row, 2 + step, (7,), (), output_index=step, samples=True) for row in rows)
        for step in (1, 2)
    ]
    later = [StepPlan(2 + n, (), chunks, NUM_ROWS) for n, chunks in enumerate(decodes)]
    return [StepPlan(1, admissions, prefills, 0), *later]


@pytest.mark.parametrize(
    "settings",
    [GREEDY, EVERYTHING, SamplingParams(seed=3), SamplingParams(seed=3, top_p=0.5), TOLD],
    ids=["greedy", "everything", "plain", "whole vocabulary", "logprobs"],
)
def test_a_step_stays_on_the_device_until_it_asks_for_its_results(
    settings: SamplingParams,
) -> None:
    runner = served("llama")
    for plan in plans(settings):
        with pytest.raises((NotImplementedError, RuntimeError), match="meta") as caught:
            runner.execute(plan)  # nobody can say what it sampled
        assert ".tolist()" in str(caught.traceback[-1].statement)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_graph_records_asks_for_nothing(name: str) -> None:
    inputs = torch.empty(DECODE_FIELDS, 4, dtype=torch.long, device=META)
    with torch.inference_mode():
        logits = served(name)._forward(over_fixed_inputs(inputs))
    assert logits.shape == (4, 200)
    assert logits.device == META
