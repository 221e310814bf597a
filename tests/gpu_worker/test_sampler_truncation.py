"""min_p, top_k and top_p keep exactly the tokens that they describe, by either way of computing."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gpu_worker.truncation import Limits, narrow, wide
from shared.sampling import SamplingParams
from tests.gpu_worker.sampling import draw, kept, random_logits

INF = float("inf")


def limits_of(sampling: SamplingParams, vocab_size: int) -> Limits:
    """One row's limits, all of them given."""
    return Limits(
        torch.tensor([[sampling.min_p]]).log(),
        torch.tensor([[min(sampling.top_k or vocab_size, vocab_size)]]),
        torch.tensor([[sampling.top_p]], dtype=torch.float64),
    )


def survivors(logits: torch.Tensor, sampling: SamplingParams, way: str) -> set[int]:
    """Ids of one row [V] that are not cut."""
    temperatures = torch.tensor([[sampling.temperature]])
    limits = limits_of(sampling, len(logits))
    if way == "wide":
        return set(wide(logits[None], temperatures, limits)[0].isfinite().nonzero()[:, 0].tolist())
    scaled, token_ids = narrow(logits[None], temperatures, len(logits), limits)
    return set(token_ids[scaled.isfinite()].tolist())


@pytest.mark.parametrize("way", ["wide", "narrow"])
@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("top_k", [2, 5, 60, 61, 10**6])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
def test_exactly_the_smallest_set_is_kept(top_k: int, top_p: float, min_p: float, way: str) -> None:
    sampling = SamplingParams(seed=0, top_k=top_k, top_p=top_p, min_p=min_p, temperature=1.5)
    for logits in random_logits(20, 61):
        expected = kept(logits.double().numpy() / 1.5, sampling)
        assert survivors(logits, sampling, way) == expected


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
    st.floats(0.0, 0.99),
    st.sampled_from([0.25, 1.0, 2.0]),
    st.sampled_from(["wide", "narrow"]),
)
def test_ties_are_kept_by_id(
    halves: list[int], top_k: int, top_p: float, min_p: float, temperature: float, way: str
) -> None:
    logits = torch.tensor(halves) / 2
    sampling = SamplingParams(
        seed=0, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature
    )
    scaled = logits.double().numpy() / temperature
    expected = kept(scaled, sampling)
    # Rounding decides what lies on a border, here and in the reference.
    assume(all(kept(scaled, sampling, margin) == expected for margin in (-1e-5, 1e-5)))
    assert survivors(logits, sampling, way) == expected


@pytest.mark.parametrize("way", ["wide", "narrow"])
def test_a_set_that_has_exactly_top_p_is_not_widened(way: str) -> None:
    assert survivors(torch.zeros(4), SamplingParams(seed=0, top_p=0.5), way) == {0, 1}


@pytest.mark.parametrize("way", ["wide", "narrow"])
def test_equal_logits_do_not_widen_top_k(way: str) -> None:
    assert survivors(torch.zeros(50), SamplingParams(seed=0, top_k=3), way) == {0, 1, 2}


@pytest.mark.parametrize("way", ["wide", "narrow"])
def test_signs_of_zero_do_not_decide(way: str) -> None:
    logits = torch.tensor([-0.0, 0.0, -0.0, -1.0])
    assert survivors(logits, SamplingParams(seed=0, top_k=2), way) == {0, 1}


@pytest.mark.parametrize("way", ["wide", "narrow"])
def test_min_p_is_a_share_of_the_best_token(way: str) -> None:
    logits = torch.tensor([0.5, 0.25, 0.051, 0.049]).log()
    assert survivors(logits, SamplingParams(seed=0, min_p=0.1), way) == {0, 1, 2}
    assert survivors(torch.zeros(4), SamplingParams(seed=0, min_p=1.0), way) == {0, 1, 2, 3}


@pytest.mark.parametrize("way", ["wide", "narrow"])
def test_top_p_is_a_share_of_what_min_p_and_top_k_left(way: str) -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    half = SamplingParams(seed=0, top_p=0.55)
    assert survivors(logits, half, way) == {0, 1}
    # Of 0.4 + 0.3 the best has 0.57.
    assert survivors(logits, SamplingParams(seed=0, top_p=0.55, min_p=0.6), way) == {0}
    assert survivors(logits, SamplingParams(seed=0, top_p=0.55, top_k=2), way) == {0}


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_rows_that_are_not_numbers_do_no_harm(bad: float) -> None:
    good = random_logits(1, 50)[0]
    temperatures = torch.ones(2, 1)
    one = limits_of(SamplingParams(seed=0, top_k=20, top_p=0.8, min_p=0.01), 50)
    assert one.log_min_ps is not None
    assert one.top_ks is not None
    assert one.top_ps is not None
    two = Limits(one.log_min_ps.repeat(2, 1), one.top_ks.repeat(2, 1), one.top_ps.repeat(2, 1))
    alone = wide(good[None], temperatures[:1], one)[0]
    for row in (torch.full((50,), bad), torch.cat([good[:49], torch.tensor([bad])])):
        assert torch.equal(wide(torch.stack([row, good]), temperatures, two)[1], alone)


def test_large_vocabularies_are_cut_like_small_ones() -> None:
    logits = random_logits(1, 40_000)[0]
    for settings in ({"top_p": 0.95}, {"top_k": 3000}, {"top_k": 3000, "top_p": 0.6}):
        sampling = SamplingParams(seed=0, **settings)
        assert survivors(logits, sampling, "wide") == kept(logits.double().numpy(), sampling)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"min_p": 0.3}, {0, 1}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.8}, {0, 1}),
        ({"top_p": 0.8, "temperature": 4.0}, {0, 1, 2}),  # temperature comes first
        ({"min_p": 1.0}, {0}),
    ],
)
def test_only_what_is_kept_is_sampled(asked: dict[str, Any], expected: set[int]) -> None:
    logits = torch.tensor([4.0, 3.0, 1.0, -2.0])  # 0.70, 0.26, 0.03, 0.002
    assert set(draw(logits, SamplingParams(seed=1, **asked), 2000)) == expected
