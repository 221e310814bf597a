"""The engine without its room: a scheduler and a served model, and `generate()` to compare with."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loaded import LoadedModel
from gpu_worker.loading import serve
from gpu_worker.pipeline import Pipeline
from gpu_worker.recovery import IsolatingRunner
from gpu_worker.runner import Runner
from gpu_worker.step_times import StepTimes
from scheduler.outcome import Counters
from scheduler.plan import StepPlan, TokenScore
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import GREEDY

NEAR_TIE = 1e-4  # top-2 logit gap below which float32 sums in another order may decide otherwise
BUDGET = 40  # tokens a step: prompts are cut at other places than blocks
NUM_ROWS = 6
SETTINGS = WorkerConfig(continuous_batching_batch_size=NUM_ROWS, model=ModelConfig("-"))
PLAIN_TORCH = dataclasses.replace(SETTINGS, cpu_kernels=False)


@dataclass(frozen=True)
class Request:
    """What one caller wants."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = GREEDY
    num_choices: int = 1
    end_token_ids: frozenset[int] = frozenset()  # beside the model's own


@dataclass
class Run:
    """What was answered, and how it was computed."""

    counters: Counters
    answers: list[list[int]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of input_ids, one a forward pass
    blocks: list[list[int]] = field(default_factory=list)  # every table that a request had
    scores: list[list[TokenScore | None]] = field(default_factory=list)  # of the answers
    prompt_scores: list[tuple[TokenScore, ...]] = field(default_factory=list)


def run(
    model: PreTrainedModel,
    wanted: list[Request],
    *,
    num_blocks: int = 0,
    is_fragmented: bool = False,
    prefix_caching: bool = False,
    settings: WorkerConfig = SETTINGS,
    wrap: Callable[[Runner], Runner] = lambda runner: runner,
    overlaps: bool = False,
) -> Run:
    """Serves the requests; one arrives with every step while the others run.

    What is found is in the order of the requests and their answers.
    """
    served = copy.deepcopy(model)  # the caller's own stays stock
    loaded = serve(served, settings)
    scheduler = Scheduler(
        num_blocks=num_blocks or loaded.cache.num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=settings.continuous_batching_batch_size,
        max_tokens_per_step=BUDGET,
        prefix_caching=prefix_caching,
    )
    if is_fragmented:
        for block in range(1, loaded.cache.num_blocks + 1, 2):
            scheduler.pool.allocate(block)
    done = Run(scheduler.counters)
    served.register_forward_pre_hook(
        lambda _, __, kwargs: done.shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    arrivals = [_siblings(number, request, loaded) for number, request in enumerate(wanted)]
    runner = wrap(loaded.runner)
    if overlaps:
        _serve_ahead(scheduler, runner, arrivals, done)
    else:
        _serve(scheduler, runner, arrivals, done)
    sequences = [sequence for siblings in arrivals for sequence in siblings]
    done.answers = [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in sequences]
    done.states = [sequence.state for sequence in sequences]
    done.prompt_scores = [sequence.take_prompt_scores() for sequence in sequences]
    return done


def _siblings(number: int, request: Request, loaded: LoadedModel) -> list[Sequence]:
    first = Sequence(
        str(number),
        request.prompt,
        request.max_tokens,
        loaded.end_token_ids | request.end_token_ids,
        request.sampling,
        cache_salt=loaded.rope_class(len(request.prompt)),
    )
    return [first, *(first.fork(choice) for choice in range(1, request.num_choices))]


def _serve(scheduler: Scheduler, runner: Runner, requests: list[list[Sequence]], done: Run) -> None:
    arrivals = iter(requests)
    sequences = [sequence for siblings in requests for sequence in siblings]
    done.blocks, done.scores = [[] for _ in sequences], [[] for _ in sequences]
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        if arrived is not None:
            scheduler.add(*arrived)
        plan = scheduler.schedule()
        for sequence, blocks in zip(sequences, done.blocks, strict=True):
            blocks[:] = sequence.blocks or blocks
        for output in scheduler.apply(plan, runner.execute(plan)):
            done.scores[sequences.index(output.sequence)].append(output.score)
        done.plans.append(plan)


def _serve_ahead(
    scheduler: Scheduler, runner: Runner, requests: list[list[Sequence]], done: Run
) -> None:
    """The same with overlap; the tables of blocks are not noted."""
    arrivals = iter(requests)
    sequences = [sequence for siblings in requests for sequence in siblings]
    done.scores = [[] for _ in sequences]
    pipeline = Pipeline(scheduler, IsolatingRunner(runner), StepTimes(), overlaps=True)
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        if arrived is not None:
            scheduler.add(*arrived)
        finished = pipeline.advance()
        scheduler.check()
        for output in finished.outputs if finished else ():
            done.scores[sequences.index(output.sequence)].append(output.score)
        done.plans += [finished.plan] if finished else []


@dataclass(frozen=True)
class Reference:
    """What `generate()` answers, and by how much each best token led."""

    token_ids: list[int]
    leads: list[float]  # top-2 gaps of the logits after penalties


def generated(model: PreTrainedModel, request: Request) -> Reference:
    """The stock answer, greedy. Some models remember how long the last input was: give a copy."""
    prompt = torch.tensor([request.prompt])
    generate: Any = model.generate
    found = generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        repetition_penalty=request.sampling.repetition_penalty,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best, second = torch.cat(found.scores).topk(2).values.unbind(-1)
    return Reference(found.sequences[0, len(request.prompt) :].tolist(), (best - second).tolist())


def assert_equal(answer: list[int], expected: Reference) -> None:
    """The answer is the expected one, but for what follows a near tie."""
    for position, (token_id, wanted) in enumerate(zip(answer, expected.token_ids, strict=False)):
        if token_id != wanted:
            lead = expected.leads[position]
            assert lead < NEAR_TIE, f"token {position} of {len(expected.token_ids)} differs"
            return
    assert len(answer) == len(expected.token_ids)


def assert_as_generated(model: PreTrainedModel, request: Request, answer: list[int]) -> None:
    """The answer is `generate()`'s, but for what follows a near tie."""
    assert_equal(answer, generated(model, request))


def decoder_of(loaded: LoadedModel) -> Any:
    """The decoder behind a runner."""
    assert isinstance(loaded.runner, CausalLM)
    return loaded.runner._model
