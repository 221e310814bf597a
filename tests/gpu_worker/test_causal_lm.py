"""Batched, chunked, staggered answers equal `generate()`'s, token for token."""

import copy
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import refuse_unsupported, serve
from gpu_worker.paged_attention import ATTENTION
from scheduler.plan import StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence, State
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import END_TOKEN, GREEDY, RANDOM_MODEL, make_model

NEAR_TIE = 1e-4  # top-2 logit gap below which float32 sums in another order may decide otherwise
BUDGET = 40  # tokens a step: prompts are cut at other places than blocks
NUM_ROWS = 6
PROMPT_LENGTHS = (1, 100, 15, 16, 17, 31, 32, 33, 2, 47, 48, 49, 63, 64, 65, 39)
ANSWER_LENGTHS = (20, 3, 17, 16, 1, 9, 33, 2, 15, 5, 18, 12, 1, 7, 24, 10)
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 32}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama linear": {"rope_parameters": LINEAR},
    "llama yarn": {"rope_parameters": YARN},
    "llama llama3": {"rope_parameters": LLAMA3},
    "llama one kv head": {"num_key_value_heads": 1},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": None},
}


@dataclass(frozen=True)
class Request:
    """What one caller wants."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = GREEDY


@dataclass
class Run:
    """What was answered, and how it was computed."""

    answers: list[list[int]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of input_ids, one a forward pass
    blocks: list[list[int]] = field(default_factory=list)  # every table that a request had


def model_of(name: str) -> PreTrainedModel:
    """A random model of `MODELS`."""
    return make_model(name.split()[0], **MODELS[name])


def requests(*, sampling: tuple[SamplingParams, ...] = (GREEDY,)) -> list[Request]:
    """Sixteen requests whose lengths lie around the borders of blocks and chunks."""
    numbers = random.Random(5)
    lengths = list(zip(PROMPT_LENGTHS, ANSWER_LENGTHS, strict=True))
    prompts = [tuple(numbers.choices(range(3, 200), k=length)) for length, _ in lengths]
    return [
        Request(prompt, max_tokens, sampling[n % len(sampling)])
        for n, (prompt, (_, max_tokens)) in enumerate(zip(prompts, lengths, strict=True))
    ]


def run(model: PreTrainedModel, wanted: list[Request], *, is_fragmented: bool = False) -> Run:
    """Serves the requests; one arrives with every step while the others run."""
    served = copy.deepcopy(model)
    served.set_attn_implementation(ATTENTION)
    settings = WorkerConfig(continuous_batching_batch_size=NUM_ROWS, model=ModelConfig("-", 256))
    loaded = serve(served, settings)
    scheduler = Scheduler(
        num_blocks=loaded.num_blocks,
        block_size=BLOCK_SIZE,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=BUDGET,
    )
    if is_fragmented:
        for block in range(1, loaded.num_blocks + 1, 2):
            scheduler.pool.allocate(block)
    done = Run()
    served.register_forward_pre_hook(
        lambda _, __, kwargs: done.shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    sequences = [
        Sequence(str(n), request.prompt, request.max_tokens, loaded.end_token_ids, request.sampling)
        for n, request in enumerate(wanted)
    ]
    arrivals = iter(sequences)
    done.blocks = [[] for _ in sequences]
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        if arrived is not None:
            scheduler.add(arrived)
        plan = scheduler.schedule()
        for sequence, blocks in zip(sequences, done.blocks, strict=True):
            blocks[:] = sequence.blocks or blocks
        scheduler.apply(plan, loaded.runner.execute(plan))
        done.plans.append(plan)
    done.answers = [sequence.token_ids[sequence.num_prompt_tokens :] for sequence in sequences]
    done.states = [sequence.state for sequence in sequences]
    return done


def assert_as_generated(model: PreTrainedModel, request: Request, answer: list[int]) -> None:
    """The answer is `generate()`'s, but for what follows a near tie."""
    prompt = torch.tensor([request.prompt])
    generate: Any = model.generate
    generated = generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    expected = generated.sequences[0, len(request.prompt) :].tolist()
    for position, (token_id, wanted) in enumerate(zip(answer, expected, strict=False)):
        if token_id != wanted:
            best, second = generated.logits[position][0].topk(2).values.tolist()
            assert best - second < NEAR_TIE, f"token {position} of {len(expected)} differs"
            return
    assert len(answer) == len(expected)


@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_generate(name: str) -> None:
    model = model_of(name)
    refuse_unsupported(model.config)
    wanted = requests()
    done = run(model, wanted)
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)
    assert sum(plan.is_mixed for plan in done.plans) > 5
    assert sum(not chunk.samples for plan in done.plans for chunk in plan.chunks) > 5


def test_random_models_are_worth_comparing() -> None:
    answers = run(model_of("llama"), requests()).answers
    assert len({token_id for answer in answers for token_id in answer}) > 20
    assert any(answer[-1] == END_TOKEN or len(set(answer)) > 5 for answer in answers)


def test_an_end_token_of_the_model_ends_the_answer() -> None:
    model = model_of("llama")
    wanted = Request(tuple(range(3, 20)), 30)
    free = run(model, [wanted]).answers[0]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [END_TOKEN, free[4]]
    assert run(model, [wanted]).answers[0] == free[: free.index(free[4]) + 1]


def test_a_step_is_one_forward_pass_of_one_row_without_padding() -> None:
    done = run(model_of("llama"), requests())
    steps = [plan for plan in done.plans if not plan.is_empty]
    assert done.shapes == [(1, plan.num_tokens) for plan in steps]
    assert max(len(plan.chunks) for plan in steps) == NUM_ROWS


def test_scattered_blocks_give_the_same_answers() -> None:
    model, wanted = model_of("qwen3"), requests()
    done = run(model, wanted, is_fragmented=True)
    scattered = [blocks for blocks in done.blocks if len(blocks) > 1]
    assert len(scattered) > 8
    assert all(b != a + 1 for blocks in scattered for a, b in itertools.pairwise(blocks))
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_as_generated(model, request, answer)


def test_a_seeded_answer_is_the_same_alone_and_in_company() -> None:
    model = model_of("llama")
    settings = (
        SamplingParams(seed=1, temperature=2.0),
        SamplingParams(seed=2, temperature=1.0, top_p=0.8),
        SamplingParams(seed=2**63 - 1, temperature=3.0, top_k=40),
        GREEDY,
    )
    wanted = requests(sampling=settings)
    together = run(model, wanted).answers
    assert [run(model, [request]).answers[0] for request in wanted] == together
    assert together != run(model, requests()).answers


def test_a_row_that_is_taken_again_remembers_nothing() -> None:
    model = model_of("llama")
    hot = SamplingParams(seed=3, temperature=5.0, top_k=3)
    first = [Request((7, 8, 9), 4, hot) for _ in range(NUM_ROWS)]
    second = requests()[:NUM_ROWS]
    assert run(model, first + second).answers[NUM_ROWS:] == run(model, second).answers


def test_logits_that_are_no_numbers_fail_their_sequence_and_none_that_follows() -> None:
    model = model_of("llama")
    broken_token = 199
    with torch.no_grad():
        embedding: Any = model.get_input_embeddings()
        embedding.weight[broken_token] = float("nan")
    good, bad = Request(tuple(range(3, 20)), 5), Request((5, broken_token, 6), 5)
    done = run(model, [good, *[bad] * NUM_ROWS, *[good] * NUM_ROWS])
    assert done.states.count(State.FAILED) == NUM_ROWS
    assert done.answers[1 : 1 + NUM_ROWS] == [[]] * NUM_ROWS
    for answer in (done.answers[0], *done.answers[1 + NUM_ROWS :]):
        assert_as_generated(model, good, answer)


def test_the_models_are_small() -> None:
    assert RANDOM_MODEL["max_position_embeddings"] >= max(PROMPT_LENGTHS) + max(ANSWER_LENGTHS)
