"""Nothing that would break a step comes through the door."""

import dataclasses
from typing import Any

import pytest

from gpu_worker.intake import IntakeLimits, to_sequence
from scheduler.sequence import State
from shared.errors import ErrorCode, RequestError
from shared.messages import Generate, TextStart
from shared.sampling import SamplingParams

LIMITS = IntakeLimits(max_model_len=10, vocab_size=100, end_token_ids=frozenset({1, 2}))
SAMPLING = SamplingParams(seed=5, temperature=0.5)
GENERATE = Generate("r", (0, 50, 99), 7, SAMPLING, TextStart("r", 0, (), ()))


def test_a_request_that_just_fits_becomes_a_sequence() -> None:
    sequence = to_sequence(GENERATE, LIMITS)
    assert (sequence.request_id, sequence.token_ids) == ("r", [0, 50, 99])
    assert (sequence.max_tokens, sequence.sampling) == (7, SAMPLING)
    assert sequence.end_token_ids == {1, 2}
    assert sequence.state is State.WAITING


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_token_ids": ()}, "empty"),
        ({"max_tokens": 0}, "empty"),
        ({"max_tokens": -1}, "empty"),
        ({"max_tokens": 8}, r"3 \+ 8 tokens exceed 10"),
        ({"max_tokens": 2**62}, "exceed 10"),
        ({"prompt_token_ids": (5,) * 10, "max_tokens": 1}, "exceed 10"),
        ({"prompt_token_ids": (5, 100)}, "vocabulary"),
        ({"prompt_token_ids": (-1, 5)}, "vocabulary"),
        ({"text": TextStart("r", 0, (-1,), ())}, "beginning of its text"),
        ({"text": TextStart("r", 0, (), ("",))}, "beginning of its text"),
        ({"sampling": SamplingParams(seed=2**63)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=-1)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, temperature=float("nan"))}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, top_p=1.5)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, top_k=-2)}, "impossible settings"),
    ],
)
def test_what_could_harm_a_step_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        to_sequence(dataclasses.replace(GENERATE, **changes), LIMITS)
    assert caught.value.code is ErrorCode.INTERNAL
