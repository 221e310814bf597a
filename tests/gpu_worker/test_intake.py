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
GENERATE = Generate("r", (0, 50, 99), 7, SAMPLING, 1, "", TextStart("r", 0, (), ()))


def test_a_request_that_just_fits_becomes_a_sequence() -> None:
    sequence = to_sequence(GENERATE, LIMITS)
    assert (sequence.request_id, sequence.token_ids) == ("r", [0, 50, 99])
    assert (sequence.max_tokens, sequence.sampling) == (7, SAMPLING)
    assert sequence.end_token_ids == {1, 2}
    assert sequence.state is State.WAITING


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, {1, 2}),
        ({"stop_token_ids": (7, 2)}, {1, 2, 7}),
        ({"ignore_eos": True}, set()),
        ({"ignore_eos": True, "stop_token_ids": (7, 2)}, {2, 7}),
    ],
)
def test_what_ends_the_answer(settings: dict[str, Any], ends: set[int]) -> None:
    wanted = dataclasses.replace(GENERATE, sampling=SamplingParams(seed=5, **settings))
    assert to_sequence(wanted, LIMITS).end_token_ids == ends


NAN, INF = float("nan"), float("inf")
EXTREME: dict[str, tuple[Any, ...]] = {
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "logit_bias": (((0, -100.0), (99, 100.0)), tuple((n, 1.0) for n in range(100))),
    "min_tokens": (0, 7),
    "stop_token_ids": ((0, 99), tuple(range(100))),
}
IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.1, NAN, INF),
    "top_p": (-0.1, NAN, INF),
    "min_p": (-0.1, 1.1, NAN, INF),
    "repetition_penalty": (0.0, -1.0, 0.009, 10.1, NAN, INF),
    "frequency_penalty": (-2.1, 2.1, NAN, INF),
    "presence_penalty": (-2.1, 2.1, NAN, -INF),
    "logit_bias": (((5, 100.1),), ((5, -100.1),), ((5, NAN),), ((5, INF),)),
}
IMPOSSIBLE_TOKENS: dict[str, tuple[Any, ...]] = {
    "logit_bias": (((100, 1.0),), ((-1, 1.0),), ((2**62, 1.0),), ((5, 1.0), (5, 2.0))),
    "stop_token_ids": ((100,), (-1,), (5, 2**62), (5,) * 129),
    "min_tokens": (-1, 8, 2**62),
}


@pytest.mark.parametrize("name", EXTREME)
def test_the_furthest_settings_are_taken(name: str) -> None:
    for value in EXTREME[name]:
        sampling = SamplingParams(seed=5, **{name: value})
        found = to_sequence(dataclasses.replace(GENERATE, sampling=sampling), LIMITS)
        assert found.sampling == sampling


@pytest.mark.parametrize(
    ("table", "reason"),
    [(IMPOSSIBLE, "impossible settings"), (IMPOSSIBLE_TOKENS, "impossible tokens")],
)
def test_settings_that_no_request_may_have_are_refused(
    table: dict[str, tuple[Any, ...]], reason: str
) -> None:
    for name, values in table.items():
        for value in values:
            sampling = SamplingParams(seed=5, **{name: value})
            with pytest.raises(RequestError, match=reason):
                to_sequence(dataclasses.replace(GENERATE, sampling=sampling), LIMITS)


def test_a_bias_on_too_many_tokens_is_refused() -> None:
    limits = dataclasses.replace(LIMITS, vocab_size=5000)
    for number in (1024, 1025):
        bias = tuple((token_id, 1.0) for token_id in range(number))
        wanted = dataclasses.replace(GENERATE, sampling=SamplingParams(seed=5, logit_bias=bias))
        if number == 1024:
            assert to_sequence(wanted, limits).sampling.logit_bias == bias
        else:
            with pytest.raises(RequestError, match="impossible tokens"):
                to_sequence(wanted, limits)


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
