"""The best tokens are those of torch's `max`, whatever the size, ties and broken numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.best import best_tokens


def assert_as_torch(logits: torch.Tensor) -> None:
    """Both values and first indices."""
    expected = logits.max(-1)
    values, indices = best_tokens(logits)
    assert torch.equal(values.nan_to_num(9e9), expected.values.nan_to_num(9e9))
    assert torch.equal(indices, expected.indices)


@given(
    num_rows=st.integers(1, 5),
    vocab_size=st.integers(1, 2000),
    num_different=st.integers(1, 50),
    seed=st.integers(0, 2**31),
)
def test_equals_torch_with_many_ties(
    num_rows: int, vocab_size: int, num_different: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, vocab_size)
    assert_as_torch(torch.randint(num_different, shape, generator=generator).float())


@pytest.mark.parametrize("place", [0, 255, 256, 700, 767, 768, 799])
@pytest.mark.parametrize("odd", [math.nan, math.inf, 5.0])
def test_finds_an_odd_number_wherever_it_is(place: int, odd: float) -> None:
    logits = torch.full((3, 800), -math.inf)
    logits[1, place] = odd
    assert_as_torch(logits)


def test_a_row_without_a_finite_number_says_so() -> None:
    values, _ = best_tokens(torch.full((1, 800), -math.inf))
    assert values.isneginf().all()
