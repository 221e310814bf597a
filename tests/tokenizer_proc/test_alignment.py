"""The path through an attention matrix and the times of its tokens are transformers' own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import (
    WhisperGenerationMixin,
    _dynamic_time_warping,
    _median_filter,
)
from transformers.utils.generic import ModelOutput

from tokenizer_proc.alignment import Floats, token_times, warping_path

POSITION_SECONDS = 0.02
PROMPT = 4  # tokens before those that are timed
RANDOM = np.random.default_rng(5)
SHAPES = [(1, 1), (1, 40), (12, 1), (2, 2), (40, 3), (3, 40), (20, 60)]


def with_gaps(shape: tuple[int, int]) -> Floats:
    """What is left of heads that attend to everything alike is no number."""
    values = RANDOM.normal(size=shape)
    return np.where(RANDOM.random(shape) < 0.1, np.nan, values).astype(np.float32)


KINDS: dict[str, Callable[[tuple[int, int]], Floats]] = {
    "all different": lambda shape: RANDOM.normal(size=shape).astype(np.float32),
    "many ties": lambda shape: RANDOM.integers(-2, 3, shape).astype(np.float32),
    "most tied": lambda shape: RANDOM.integers(0, 2, shape).astype(np.float32),
    "all tied": lambda shape: np.zeros(shape, np.float32),
    "large and small": lambda shape: (10 ** RANDOM.uniform(-9, 9, shape)).astype(np.float32),
    "not all numbers": with_gaps,
}


def expected_path(cost: Floats) -> tuple[list[int], list[int]]:
    with np.errstate(all="ignore"):
        tokens, positions = _dynamic_time_warping(cost.astype(np.float64))
    return tokens.tolist(), positions.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_path_is_transformers_own(kind: str, shape: tuple[int, int]) -> None:
    for _ in range(8):
        cost = KINDS[kind](shape)
        assert warping_path(cost) == expected_path(cost)


def test_the_path_of_a_long_window_is_transformers_own() -> None:
    cost = KINDS["all different"]((120, 400))
    assert warping_path(cost) == expected_path(cost)


@pytest.mark.parametrize("num_tokens", [1, 2, 9, 31])
def test_the_times_are_transformers_own(num_tokens: int) -> None:
    """Two layers of two heads each, of which three align."""
    attention = torch.from_numpy(RANDOM.dirichlet(np.ones(50), (2, 2, PROMPT + num_tokens))).float()
    heads = [(0, 1), (1, 0), (1, 1)]
    found = token_times(_matrix(attention, heads), POSITION_SECONDS)
    expected = _expected_times(attention, heads)
    assert expected[:PROMPT] == [0.0] * PROMPT
    assert list(found) == pytest.approx(expected[PROMPT:], abs=1e-6)
    assert list(found) == sorted(found)


def _matrix(attention: torch.Tensor, heads: list[tuple[int, int]]) -> Floats:
    """As a worker hands it over."""
    weights = torch.stack([attention[layer, head] for layer, head in heads])[:, PROMPT:]
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    filtered = _median_filter(((weights - mean) / std)[None], 7)
    matrix: Floats = filtered[0].mean(dim=0).numpy()
    return matrix


def _expected_times(attention: torch.Tensor, heads: list[tuple[int, int]]) -> list[float]:
    steps = [slice(0, PROMPT), *(slice(n, n + 1) for n in range(PROMPT, attention.shape[2]))]
    outputs: Any = ModelOutput(
        cross_attentions=tuple(
            tuple(layer[None, :, step] for layer in attention) for step in steps
        ),
        sequences=torch.zeros(1, attention.shape[2] + 1),
    )
    whisper: Any = SimpleNamespace(
        config=SimpleNamespace(decoder_layers=2, median_filter_width=7),
    )
    times = WhisperGenerationMixin._extract_token_timestamps(
        whisper, outputs, heads, POSITION_SECONDS, num_input_ids=PROMPT
    )
    return [float(time) for time in times[0]]


@pytest.mark.parametrize(("shape", "expected"), [((0, 40), 1), ((3, 0), 4), ((0, 0), 1)])
def test_what_is_not_there_has_no_time(shape: tuple[int, int], expected: int) -> None:
    assert token_times(np.zeros(shape, np.float32), POSITION_SECONDS) == (0.0,) * expected
