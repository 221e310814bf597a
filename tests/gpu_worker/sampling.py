"""Samplers in one line, and a slow reference of what they should do, in float64 numpy."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.noise import exponential, token_hashes
from gpu_worker.sampler import Sampler
from scheduler.plan import Admission, Chunk, StepPlan
from shared.sampling import SamplingParams
from tests.builders import make_admission

CPU = torch.device("cpu")
Floats = npt.NDArray[np.float64]


def make_sampler(settings: Sequence[SamplingParams], vocab_size: int) -> Sampler:
    """A sampler whose rows 0, 1, … have these settings."""
    sampler = Sampler(len(settings), vocab_size, CPU)
    for row, sampling in enumerate(settings):
        sampler.begin(make_admission(row, sampling, token_ids=(0,)))
    return sampler


def ask(sampler: Sampler, logits: torch.Tensor, rows: list[int], indices: list[int]) -> list[int]:
    """The sampled tokens of these rows."""
    return sampler.sample(logits, torch.tensor(rows), torch.tensor(indices), rows).tolist()


def sample(
    logits: torch.Tensor, settings: Sequence[SamplingParams], indices: list[int] | None = None
) -> list[int]:
    """One token for every row of `logits`."""
    rows = list(range(len(settings)))
    return ask(make_sampler(settings, logits.shape[1]), logits, rows, indices or [0] * len(rows))


def draw(logits: torch.Tensor, sampling: SamplingParams, count: int) -> list[int]:
    """The first tokens of an answer whose logits [V] are always the same."""
    sampler = make_sampler([sampling], len(logits))
    return ask(sampler, logits.repeat(count, 1), [0] * count, list(range(count)))


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Normal logits, three wide."""
    return 3.0 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def chi_square(tokens: list[int], probabilities: torch.Tensor) -> float:
    """Pearson's distance between what was drawn and what should be."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(probabilities))
    expected = probabilities * len(tokens)
    return float(((counts - expected) ** 2 / expected).sum())


def decode_plan(chunks: list[tuple[int, int, int]]) -> StepPlan:
    """A step that feeds (row, output index, token) to decoding rows."""
    return StepPlan(
        1, (), tuple(Chunk(row, 5, (token,), (), index, True) for row, index, token in chunks),
        len(chunks),
    )  # fmt: skip


# ── the reference ────────────────────────────────────────────────────────────────────────────────


def edited(logits: torch.Tensor, admission: Admission, answer: Sequence[int]) -> Floats:
    """Logits [V] after penalties, bias and held back end tokens, one token at a time."""
    sampling = admission.sampling
    prompt = admission.token_ids[: admission.num_prompt_tokens]
    values = logits.double().numpy().copy()
    for token in {*prompt, *answer}:
        penalty = sampling.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token, count in Counter(answer).items():
        values[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        values[token] += bias
    if len(answer) < sampling.min_tokens:
        for token in admission.end_token_ids:
            values[token] = -np.inf
    return values


def kept(scaled: Floats, sampling: SamplingParams, margin: float = 0.0) -> set[int]:
    """Ids that may be sampled after temperature; with a margin, the borders of p lie lower."""
    order = [int(token) for token in np.argsort(-scaled, kind="stable")]
    weights = np.exp(scaled - scaled[order[0]])
    order = [token for token in order if weights[token] >= sampling.min_p * (1.0 - margin)]
    order = order[: sampling.top_k or None]
    total = sum(weights[token] for token in order)
    found, reached = set[int](), 0.0
    for token in order:
        found.add(token)
        reached += weights[token] / total
        if reached >= sampling.top_p * (1.0 - margin):
            break
    return found if sampling.top_p < 1.0 else set(order)


def scores(logits: torch.Tensor, admission: Admission, answer: Sequence[int]) -> Floats:
    """What the sampled token is the largest of, [V]; -inf where it may not be sampled."""
    sampling = admission.sampling
    values = edited(logits, admission, answer)
    if sampling.is_greedy:
        return values
    scaled = values / sampling.temperature
    allowed = kept(scaled, sampling)
    hashes = token_hashes(len(values), CPU)
    noise = exponential(torch.tensor([sampling.seed]), torch.tensor([len(answer)]), hashes)[0]
    return np.where(
        [token in allowed for token in range(len(values))],
        scaled - np.log(noise.double().numpy()),
        -np.inf,
    )


def after(admission: Admission, answer: Sequence[int]) -> Admission:
    """The admission of the same sequence when it returns with a part of its answer."""
    prompt = admission.token_ids[: admission.num_prompt_tokens]
    return dataclasses.replace(admission, token_ids=(*prompt, *answer))
