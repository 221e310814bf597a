"""A real model whose steps raise: running parts of a step again changes nobody's answer."""

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import serve
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.runner import Runner
from scheduler.plan import StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import make_model

BOMB = 5  # no prompt holds it but the culprits', and no answer may
NUM_ROWS = 6
BUDGET = 40  # tokens a step: prompts are cut at other places than blocks
SETTINGS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.8, frequency_penalty=0.7, presence_penalty=0.4),
    SamplingParams(seed=3, temperature=0.0, repetition_penalty=1.4),
    SamplingParams(seed=4, temperature=1.0, top_k=20, top_p=0.9, frequency_penalty=-0.3),
)
NO_BOMB = ((BOMB, -1000.0),)

Wrap = Callable[[PreTrainedModel, Runner], Runner]


class RaisesAtTheEnd:
    """Computes and samples the whole plan, and then forgets it where the bomb is in it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._runner.execute(plan)
        if any(BOMB in chunk.token_ids for chunk in plan.chunks):
            raise RuntimeError("too late to be harmless")
        return result


def raise_in_the_forward(model: PreTrainedModel, runner: Runner) -> Runner:
    def refuse(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        if (arguments["input_ids"] == BOMB).any():
            raise RuntimeError("this token breaks the model")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    return runner


def raise_in_the_last_layer(model: PreTrainedModel, runner: Runner) -> Runner:
    """By then the other layers have written their keys and values."""
    seen: list[torch.Tensor] = []

    def note(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        seen[:] = [arguments["input_ids"]]

    def refuse(*_: Any) -> None:
        if (seen[0] == BOMB).any():
            raise RuntimeError("this token breaks the last layer")

    model.register_forward_pre_hook(note, with_kwargs=True)
    decoder: Any = model.get_decoder()
    decoder.layers[-1].mlp.register_forward_hook(refuse)
    return runner


def raise_after_sampling(_: PreTrainedModel, runner: Runner) -> Runner:
    return RaisesAtTheEnd(runner)


def harmless(_: PreTrainedModel, runner: Runner) -> Runner:
    return runner


def make_sequences() -> list[Sequence]:
    """Sixteen sequences, four of them culprits; most prompts begin with the same two blocks."""
    numbers = random.Random(7)
    shared = numbers.choices(range(10, 200), k=2 * BLOCK_SIZE)
    sequences = []
    for number in range(16):
        own = numbers.choices(range(10, 200), k=1 + 5 * number % 37)
        prompt = [*(shared if number % 3 else []), *own]
        if number % 4 == 2:
            prompt[-1 if number % 8 == 2 else len(prompt) // 2] = BOMB
        sampling = dataclasses.replace(SETTINGS[number % 4], logit_bias=NO_BOMB)
        max_tokens = 4 + number % 9
        sequences.append(Sequence(str(number), tuple(prompt), max_tokens, frozenset(), sampling))
    return sequences


def run(model: PreTrainedModel, sequences: list[Sequence], wrap: Wrap) -> int:
    """Serves them, one arriving with every step; returns how many prompt tokens were cached."""
    served = copy.deepcopy(model)
    settings = WorkerConfig(continuous_batching_batch_size=NUM_ROWS, model=ModelConfig("-", 256))
    loaded = serve(served, settings)
    runner = IsolatingRunner(wrap(served, loaded.runner))
    scheduler = Scheduler(
        num_blocks=loaded.cache.num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=BUDGET,
    )
    arrivals = iter(sequences)
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        if arrived is not None:
            scheduler.add(arrived)
        plan = scheduler.schedule()
        scheduler.apply(plan, runner.execute(plan))
        scheduler.check()
    return scheduler.counters.num_cached_tokens


def answer(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens :]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="module")
def alone(model: PreTrainedModel) -> list[Sequence]:
    """Every sequence by itself on a fresh cache."""
    sequences = make_sequences()
    for sequence in sequences:
        run(model, [sequence], harmless)
    return sequences


@pytest.mark.parametrize(
    "wrap", [raise_in_the_forward, raise_in_the_last_layer, raise_after_sampling]
)
def test_a_step_that_is_run_again_in_parts_changes_no_other_answer(
    model: PreTrainedModel, alone: list[Sequence], wrap: Wrap
) -> None:
    sequences = make_sequences()
    assert run(model, sequences, wrap) > 0, "some prompts share their beginning"
    for sequence, expected in zip(sequences, alone, strict=True):
        if BOMB in sequence.token_ids:
            assert (sequence.state, answer(sequence)) == (State.FAILED, [])
        else:
            assert (sequence.state, answer(sequence)) == (State.LENGTH, answer(expected))
    assert sum(sequence.state is State.FAILED for sequence in sequences) == 4


def test_memory_for_nine_tokens_a_step_changes_no_answer(
    model: PreTrainedModel, alone: list[Sequence]
) -> None:
    def limit(served: PreTrainedModel, runner: Runner) -> Runner:
        def refuse(_: Any, __: Any, arguments: dict[str, Any]) -> None:
            if arguments["input_ids"].shape[1] > 9:
                raise torch.OutOfMemoryError

        served.register_forward_pre_hook(refuse, with_kwargs=True)
        return runner

    sequences = make_sequences()
    run(model, sequences, limit)
    assert [answer(s) for s in sequences] == [answer(s) for s in alone]
