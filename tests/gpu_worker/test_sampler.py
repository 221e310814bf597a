"""Each row is sampled by its own settings, from the distribution that they describe."""

import itertools

import numpy as np
import pytest
import torch

from gpu_worker import sampler as sampler_module
from gpu_worker.sampler import Sampler, _exponential, _filter, _mix
from scheduler.plan import NO_TOKEN, Admission
from shared.sampling import GREEDY_BELOW, SamplingParams

CPU = torch.device("cpu")
INF = float("inf")
HOT = SamplingParams(seed=11)


def make_sampler(settings: list[SamplingParams], vocab_size: int) -> Sampler:
    """A sampler whose rows 0, 1, … have these settings."""
    sampler = Sampler(len(settings), vocab_size, CPU)
    for row, sampling in enumerate(settings):
        sampler.begin(Admission(row, sampling))
    return sampler


def sample(
    logits: torch.Tensor, settings: list[SamplingParams], indices: list[int] | None = None
) -> list[int]:
    """One token for every row of `logits`."""
    rows = list(range(len(settings)))
    output_indices = torch.tensor(indices or [0] * len(rows))
    sampler = make_sampler(settings, logits.shape[1])
    return sampler.sample(logits, torch.tensor(rows), output_indices, rows).tolist()


def draw(logits: torch.Tensor, sampling: SamplingParams, count: int) -> list[int]:
    """The first tokens of an answer whose logits [V] are always the same."""
    sampler = make_sampler([sampling], len(logits))
    rows = torch.zeros(count, dtype=torch.long)
    tokens = sampler.sample(logits.repeat(count, 1), rows, torch.arange(count), [0] * count)
    return tokens.tolist()


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Normal logits, three wide."""
    return 3.0 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def chi_square(tokens: list[int], probabilities: torch.Tensor) -> float:
    """Pearson's distance between what was drawn and what should be."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(probabilities))
    expected = probabilities * len(tokens)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(seed=1, temperature=0.0),
        SamplingParams(seed=1, temperature=GREEDY_BELOW / 2),
        SamplingParams(seed=1, top_k=1),
        SamplingParams(seed=1, top_p=0.0),
        SamplingParams(seed=1, top_p=1e-9),
        SamplingParams(seed=1, temperature=GREEDY_BELOW),
        SamplingParams(seed=1, temperature=0.0, top_p=0.5, top_k=7),
    ],
)
def test_settings_that_leave_no_choice_take_the_best(sampling: SamplingParams) -> None:
    logits = random_logits(50, 97)
    for index, row in enumerate(logits):
        assert sample(row[None], [sampling], [index]) == [int(row.argmax())]


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


def noise(seeds: list[int], indices: list[int], vocab_size: int) -> torch.Tensor:
    """[N, V] of the noise that the sampler would use."""
    hashes = make_sampler([], vocab_size)._token_hashes
    return _exponential(torch.tensor(seeds), torch.tensor(indices), hashes)


def test_every_seed_index_and_token_has_its_own_noise() -> None:
    seeds = [seed for seed in (0, 1, 2, 2**63 - 1) for _ in range(8)]
    values = noise(seeds, list(range(8)) * 4, 1000).flatten()
    # 32,000 draws of 2**32: about a tenth of a pair is expected to meet; float32 merges some more.
    assert len(values.unique()) > 0.999 * len(values)


def test_a_seeds_next_token_is_not_the_next_seeds_token() -> None:
    ours, theirs = noise([5], [1], 1000), noise([6], [0], 1000)
    assert not torch.isclose(ours, theirs).any()


def test_noise_is_exponential() -> None:
    values = noise([1, 2, 3, 4], [0, 1, 2, 3], 50_000).double()
    assert values.mean().item() == pytest.approx(1.0, abs=0.01)
    assert values.var().item() == pytest.approx(1.0, abs=0.03)
    assert (values < 0.1).double().mean().item() == pytest.approx(1 - np.exp(-0.1), abs=0.003)


@pytest.mark.parametrize("bits", [0, -1, 2**63 - 1, -(2**63), (1 << 32) - 1, -(1 << 32)])
def test_noise_is_positive_and_finite_whatever_the_hash(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "_mix", lambda x: torch.full_like(x, bits))
    values = _exponential(torch.tensor([1]), torch.tensor([1]), torch.tensor([1, 2]))
    assert (values > 0).all()
    assert values.log().isfinite().all()


def test_the_hash_is_splitmix64() -> None:
    state = torch.tensor([1234567]) + sampler_module._GOLDEN
    # First output of the reference implementation, https://prng.di.unimi.it/splitmix64.c
    assert _mix(state).item() % 2**64 == 6457827717110365317


MIXED = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.0),
    SamplingParams(seed=3, temperature=0.3, top_p=0.9),
    SamplingParams(seed=4, temperature=2.5, top_k=20),
    SamplingParams(seed=5, temperature=1.5, top_k=5, top_p=0.5),
    SamplingParams(seed=6, temperature=9.0),
]


@pytest.mark.parametrize("vocab_size", [2, 7, 97, 1003])
def test_a_row_does_not_depend_on_its_neighbours(vocab_size: int) -> None:
    for trial in range(20):
        logits = random_logits(len(MIXED), vocab_size, seed=trial)
        together = sample(logits, MIXED, [trial] * len(MIXED))
        alone = [sample(logits[n : n + 1], [MIXED[n]], [trial]) for n in range(len(MIXED))]
        assert [[token] for token in together] == alone


def test_a_neighbours_filter_leaves_an_unfiltered_row_bit_for_bit() -> None:
    # A tail so thin that the float32 sum over what comes before it is 1.0.
    thin = torch.cat([torch.zeros(1), torch.full((999,), -40.0)])
    logits = torch.stack([thin, random_logits(1, 1000)[0]])
    filtered = _filter(logits, torch.tensor([1000, 5]), torch.tensor([1.0, 0.5]))
    assert torch.equal(filtered[0], thin)
    assert filtered[1].isfinite().sum() <= 5


def test_rows_are_found_by_number_not_by_place() -> None:
    logits = random_logits(2, 300)
    sampler = make_sampler(MIXED, 300)
    one_way = sampler.sample(logits, torch.tensor([4, 0]), torch.tensor([7, 8]), [4, 0])
    other_way = sampler.sample(logits.flip(0), torch.tensor([0, 4]), torch.tensor([8, 7]), [0, 4])
    assert one_way.tolist() == other_way.flip(0).tolist()


def test_a_row_that_begins_again_forgets_its_settings() -> None:
    logits = random_logits(1, 300)
    sampler = make_sampler([SamplingParams(seed=1, temperature=50.0, top_k=2, top_p=0.1)], 300)
    row = torch.tensor([0])
    for sampling in (SamplingParams(seed=9, temperature=0.0), SamplingParams(seed=9), MIXED[3]):
        sampler.begin(Admission(0, sampling))
        tokens = [sampler.sample(logits, row, torch.tensor([n]), [0]).item() for n in range(30)]
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
        ([-INF, 0.0, -INF], 1),
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


def kept_by_oracle(logits: torch.Tensor, top_k: int, top_p: float) -> set[int]:
    """The smallest set of the best tokens with at least this probability, naively."""
    values = logits.double().numpy()
    best = np.argsort(-values, kind="stable")[: top_k or None]
    weights = np.exp(values[best] - values[best[0]])
    total, kept = 0.0, set()
    for token, weight in zip(best, weights / weights.sum(), strict=True):
        kept.add(int(token))
        total += weight
        if total >= top_p:
            break
    return kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("top_k", [2, 5, 60, 61, 10**6])
def test_filters_keep_exactly_the_smallest_set(top_k: int, top_p: float) -> None:
    logits = random_logits(20, 61)
    sampler = make_sampler([SamplingParams(seed=0, top_k=top_k, top_p=top_p)], 61)
    top_ks, top_ps = sampler._top_ks.repeat(20), sampler._top_ps.repeat(20)
    for row, filtered in zip(logits, _filter(logits, top_ks, top_ps), strict=True):
        kept = set(filtered.isfinite().nonzero().flatten().tolist())
        assert kept == kept_by_oracle(row, top_k, top_p)
        assert torch.equal(filtered[list(kept)], row[list(kept)])


def test_a_set_that_has_exactly_top_p_is_not_widened() -> None:
    kept = _filter(torch.zeros(1, 4), torch.tensor([4]), torch.tensor([0.5])).isfinite()
    assert kept.sum() == 2


def test_equal_logits_do_not_widen_top_k() -> None:
    kept = _filter(torch.zeros(1, 50), torch.tensor([3]), torch.tensor([1.0])).isfinite()
    assert kept.sum() == 3


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
