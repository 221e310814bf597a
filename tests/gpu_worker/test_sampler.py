"""Each row is sampled by its own settings, from the distribution that they describe."""

import itertools

import pytest
import torch

from scheduler.plan import NO_TOKEN
from shared.sampling import GREEDY_BELOW, SamplingParams
from tests.builders import make_admission
from tests.gpu_worker.sampling import (
    ask,
    chi_square,
    draw,
    make_sampler,
    random_logits,
    sample,
)

INF = float("inf")
HOT = SamplingParams(seed=11)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(seed=1, temperature=0.0),
        SamplingParams(seed=1, temperature=GREEDY_BELOW / 2),
        SamplingParams(seed=1, top_k=1),
        SamplingParams(seed=1, top_p=0.0),
        SamplingParams(seed=1, min_p=1.0),
        SamplingParams(seed=1, top_p=1e-9),
        SamplingParams(seed=1, temperature=GREEDY_BELOW),
        SamplingParams(seed=1, temperature=0.0, top_p=0.5, top_k=7),
    ],
)
def test_settings_that_leave_no_choice_take_the_best(sampling: SamplingParams) -> None:
    logits = random_logits(50, 97)
    for index, row in enumerate(logits):
        assert sample(row[None], [sampling], [index]) == [int(row.argmax())]


def test_of_equal_best_tokens_the_first_is_taken() -> None:
    logits = torch.zeros(20, 500)
    for sampling in ({"temperature": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-9}):
        settings = [SamplingParams(seed=seed, **sampling) for seed in range(20)]
        assert sample(logits, settings) == [0] * 20


def test_what_is_greedy() -> None:
    assert SamplingParams(seed=0, top_p=0.0).is_greedy
    assert SamplingParams(seed=0, top_k=1).is_greedy
    assert SamplingParams(seed=0, temperature=0.0).is_greedy
    assert not SamplingParams(seed=0, temperature=GREEDY_BELOW, top_p=1e-9, top_k=2).is_greedy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, 0.5, -0.5, 2.0])
    tokens = draw(logits, SamplingParams(seed=3, temperature=temperature), 20_000)
    assert chi_square(tokens, (logits / temperature).softmax(0)) < 30  # 7 degrees: once in 10,000


def test_draws_over_seeds_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    settings = [SamplingParams(seed=seed) for seed in range(4000)]
    tokens = sample(logits.repeat(4000, 1), settings)
    assert chi_square(tokens, logits.softmax(0)) < 21  # 3 degrees: once in 10,000


def test_draws_from_a_large_vocabulary_reach_every_part_of_it() -> None:
    tokens = draw(torch.zeros(1000), HOT, 4000)
    assert chi_square([token // 50 for token in tokens], torch.full((20,), 0.05)) < 50


def test_successive_draws_do_not_depend_on_each_other() -> None:
    tokens = draw(torch.zeros(4), HOT, 20_000)
    pairs = [4 * a + b for a, b in itertools.pairwise(tokens)]
    assert chi_square(pairs, torch.full((16,), 1 / 16)) < 45  # 15 degrees: once in 10,000


def test_filtered_draws_follow_what_is_left() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])
    tokens = draw(logits, SamplingParams(seed=5, top_k=3), 10_000)
    assert set(tokens) == {0, 1, 2}
    assert chi_square(tokens, logits[:3].softmax(0)) < 19  # 2 degrees


def test_the_same_seed_draws_the_same() -> None:
    logits = random_logits(1, 500)[0]
    assert draw(logits, HOT, 64) == draw(logits, HOT, 64)


@pytest.mark.parametrize("other", [0, 10, 12, 2**32 + 11, 2**62 + 11, 2**63 - 1])
def test_another_seed_draws_something_else(other: int) -> None:
    logits = torch.zeros(1000)
    ours, theirs = draw(logits, HOT, 64), draw(logits, SamplingParams(seed=other), 64)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) < 4


MIXED = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.0),
    SamplingParams(seed=3, temperature=0.3, top_p=0.9),
    SamplingParams(seed=4, temperature=2.5, top_k=20),
    SamplingParams(seed=5, temperature=1.5, top_k=5, top_p=0.5),
    SamplingParams(seed=6, temperature=9.0),
    SamplingParams(seed=7, temperature=2.0, min_p=0.1),
    SamplingParams(seed=8, temperature=2.0, min_p=0.01, top_p=0.8, top_k=30),
    SamplingParams(seed=9, temperature=4.0, repetition_penalty=2.0, frequency_penalty=1.0),
    SamplingParams(seed=10, temperature=4.0, logit_bias=((1, 5.0),), min_tokens=3),
    SamplingParams(seed=11, temperature=1.5, top_k=1500, top_p=0.9),
]


@pytest.mark.parametrize("vocab_size", [2, 7, 97, 1003])
def test_a_row_does_not_depend_on_its_neighbours(vocab_size: int) -> None:
    for trial in range(20):
        logits = random_logits(len(MIXED), vocab_size, seed=trial)
        together = sample(logits, MIXED, [trial] * len(MIXED))
        alone = [sample(logits[n : n + 1], [MIXED[n]], [trial]) for n in range(len(MIXED))]
        assert [[token] for token in together] == alone


def test_rows_are_found_by_number_not_by_place() -> None:
    logits = random_logits(2, 300)
    sampler = make_sampler(MIXED, 300)
    one_way = ask(sampler, logits, [4, 0], [7, 8])
    assert one_way == ask(sampler, logits.flip(0), [0, 4], [8, 7])[::-1]


def test_a_row_that_begins_again_forgets_its_settings() -> None:
    logits = random_logits(1, 300)
    sampler = make_sampler([SamplingParams(seed=1, temperature=50.0, top_k=2, top_p=0.1)], 300)
    for sampling in (SamplingParams(seed=9, temperature=0.0), SamplingParams(seed=9), *MIXED):
        sampler.begin(make_admission(0, sampling, token_ids=(0,)))
        tokens = [ask(sampler, logits, [0], [n])[0] for n in range(30)]
        assert tokens == [sample(logits, [sampling], [n])[0] for n in range(30)]


@pytest.mark.parametrize("sampling", MIXED, ids=repr)
@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ([float("nan"), 1.0, 2.0], NO_TOKEN),
        ([float("nan"), -INF, -INF], NO_TOKEN),
        ([INF, 1.0, 2.0], NO_TOKEN),
        ([INF, float("nan"), -INF], NO_TOKEN),
        ([-INF, -INF, -INF], NO_TOKEN),
        ([-INF, -INF, 0.0], 2),
    ],
)
def test_a_row_without_numbers_has_no_token_and_harms_nobody(
    sampling: SamplingParams, broken: list[float], expected: int
) -> None:
    good = random_logits(2, 3)
    logits = torch.stack([good[0], torch.tensor(broken), good[1]])
    tokens = sample(logits, [MIXED[0], sampling, MIXED[2]])
    assert tokens[1] == expected
    assert [tokens[0], tokens[2]] == sample(good, [MIXED[0], MIXED[2]])


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(100)
    logits[::2] = -INF
    assert all(token % 2 for token in draw(logits, SamplingParams(seed=1, temperature=9.0), 2000))


def test_temperature_comes_before_top_p() -> None:
    logits = torch.tensor([4.0, 2.0, 0.0, -2.0])  # at 1: 0.86, so top_p 0.8 is the best token only
    assert set(draw(logits, SamplingParams(seed=1, top_p=0.8), 500)) == {0}
    assert set(draw(logits, SamplingParams(seed=1, top_p=0.8, temperature=4.0), 500)) == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_sampled_in_float32(dtype: torch.dtype) -> None:
    logits = random_logits(len(MIXED), 500).to(dtype)
    assert sample(logits, MIXED) == sample(logits.float(), MIXED)


def test_the_logits_are_left_as_they_were() -> None:
    logits = random_logits(len(MIXED), 50)
    before = logits.clone()
    sample(logits, MIXED)
    assert torch.equal(logits, before)
