"""Nothing that would break a step comes through the door."""

from dataclasses import replace
from typing import Any

import pytest

from gpu_worker.intake import EncoderLimits, IntakeLimits, to_sequence, to_window
from scheduler.sequence import State
from shared.errors import ErrorCode, RequestError
from shared.messages import Generate, Listen
from shared.parts import TextOptions, TextStart
from shared.sampling import MAX_PROMPT_LOGPROBS, SamplingParams, TranscriptRules
from tests.builders import ROUTE

LIMITS = IntakeLimits(max_model_len=10, vocab_size=100, end_token_ids=frozenset({1, 2}))
SAMPLING = SamplingParams(seed=5, temperature=0.5)
GENERATE = Generate("r", (0, 50, 99), 7, SAMPLING, 1, "", TextStart("r", ROUTE, (), TextOptions()))


def text(**options: Any) -> TextStart:
    """The beginning of a text with these options."""
    return TextStart("r", ROUTE, (), TextOptions(**options))


def scoring(
    num_prompt_logprobs: int, prompt: tuple[int, ...] = (0, 50, 99), max_tokens: int = 0
) -> Generate:
    """A request to score its prompt."""
    start = replace(text(only_scores_prompt=not max_tokens), scored_token_ids=prompt)
    sampling = SamplingParams(seed=5, num_prompt_logprobs=num_prompt_logprobs)
    return Generate("r", prompt, max_tokens, sampling, 1, "", start)


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
    wanted = replace(GENERATE, sampling=SamplingParams(seed=5, **settings))
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
        found = to_sequence(replace(GENERATE, sampling=sampling), LIMITS)
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
                to_sequence(replace(GENERATE, sampling=sampling), LIMITS)


def test_a_bias_on_too_many_tokens_is_refused() -> None:
    limits = replace(LIMITS, vocab_size=5000)
    for number in (1024, 1025):
        bias = tuple((token_id, 1.0) for token_id in range(number))
        wanted = replace(GENERATE, sampling=SamplingParams(seed=5, logit_bias=bias))
        if number == 1024:
            assert to_sequence(wanted, limits).sampling.logit_bias == bias
        else:
            with pytest.raises(RequestError, match="impossible tokens"):
                to_sequence(wanted, limits)


@pytest.mark.parametrize("asked", [scoring(0, (5,) * 10), scoring(20, (5, 6))])
def test_a_prompt_that_is_only_scored_may_fill_the_context_and_ends_by_its_length(
    asked: Generate,
) -> None:
    sequence = to_sequence(asked, LIMITS)
    assert (sequence.max_tokens, sequence.end_token_ids) == (1, frozenset())
    assert sequence.num_to_score == len(asked.prompt_token_ids) - 1
    sequence.change(State.RUNNING)
    sequence.append(1)  # an end token, which ends nothing here
    assert sequence.state is State.LENGTH


def test_an_echo_without_an_answer_needs_no_scores() -> None:
    asked = replace(GENERATE, max_tokens=0, text=text(only_scores_prompt=True))
    sequence = to_sequence(asked, LIMITS)
    assert (sequence.max_tokens, sequence.num_to_score) == (1, 0)


def test_an_answer_and_its_prompt_are_told_with_as_many_logprobs_as_asked() -> None:
    for number in (0, 20):
        asked = scoring(number, max_tokens=7)
        sampling = replace(asked.sampling, num_logprobs=number)
        assert to_sequence(replace(asked, sampling=sampling), LIMITS).sampling == sampling


@pytest.mark.parametrize(
    ("number", "length"), [(20, MAX_PROMPT_LOGPROBS // 21), (0, MAX_PROMPT_LOGPROBS)]
)
def test_a_prompt_is_told_with_so_many_logprobs_at_most(number: int, length: int) -> None:
    limits = replace(LIMITS, max_model_len=300_000)
    assert to_sequence(scoring(number, (5,) * length), limits).num_to_score == length - 1
    for asked in (scoring(number, (5,) * (length + 1)), scoring(21), scoring(-1)):
        with pytest.raises(RequestError, match="impossible settings"):
            to_sequence(asked, limits)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_token_ids": ()}, "empty"),
        ({"max_tokens": 0}, "beginning of its text"),
        ({"max_tokens": -1}, "empty"),
        ({"max_tokens": 8}, r"3 \+ 8 tokens exceed 10"),
        ({"max_tokens": 2**62}, "exceed 10"),
        ({"prompt_token_ids": (5,) * 10, "max_tokens": 1}, "exceed 10"),
        ({"prompt_token_ids": (5, 100)}, "vocabulary"),
        ({"prompt_token_ids": (-1, 5)}, "vocabulary"),
        ({"text": TextStart("r", ROUTE, (-1,), TextOptions())}, "beginning of its text"),
        ({"text": text(stop=("",))}, "beginning of its text"),
        ({"text": text(only_scores_prompt=True)}, "beginning of its text"),
        ({"text": replace(text(), scored_token_ids=(0, 50, 99))}, "beginning of its text"),
        ({"sampling": SamplingParams(seed=1, num_prompt_logprobs=0)}, "beginning of its text"),
        ({"sampling": SamplingParams(seed=1, num_logprobs=21)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, num_logprobs=-1)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=2**63)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=-1)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, temperature=float("nan"))}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, top_p=1.5)}, "impossible settings"),
        ({"sampling": SamplingParams(seed=1, top_k=-2)}, "impossible settings"),
    ],
)
def test_what_could_harm_a_step_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        to_sequence(replace(GENERATE, **changes), LIMITS)
    assert caught.value.code is ErrorCode.INTERNAL


# ── windows of sound ─────────────────────────────────────────────────────────────────────────────

HEARING = replace(LIMITS, max_model_len=20, encoder=EncoderLimits(5, (), num_feature_bytes=8))
RULES = TranscriptRules(heads=((3, 4), (5,)), end_token_id=1, suppressed=(7,), no_speech_id=8)
HEARD = SamplingParams(seed=5, temperature=0.0, transcript=RULES)
TEXT = TextStart("s#0", ROUTE, (), TextOptions())
LISTEN = Listen("s#0", (2,), 20, HEARD, (0.0, 0.5), 3, TEXT, bytes(8))


def test_a_window_becomes_a_sequence_that_ends_by_its_rules() -> None:
    sequence = to_window(LISTEN, HEARING)
    assert (sequence.request_id, sequence.token_ids) == ("s#0", [2])
    assert sequence.end_token_ids == {1}
    assert sequence.encoder_input.num_positions == 5
    assert sequence.encoder_input.features == bytes(8)
    assert sequence.max_computed == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"features": b""},
        {"features": bytes(12)},
        {"prompt_token_ids": ()},
        {"max_tokens": 0},
        {"max_tokens": 21},
        {"prompt_token_ids": (100,)},
        {"prompt_token_ids": (-1,)},
        {"sampling": replace(HEARD, transcript=None)},
        {"sampling": replace(HEARD, transcript=replace(RULES, heads=((100,),)))},
        {"sampling": replace(HEARD, transcript=replace(RULES, suppressed=(-2,)))},
        {"sampling": replace(HEARD, transcript=replace(RULES, first_time_id=101))},
        {"sampling": replace(HEARD, temperature=float("nan"))},
        {"sampling": replace(HEARD, num_prompt_logprobs=1)},
        {"temperatures": ()},
        {"temperatures": (0.0, float("nan"))},
        {"num_aligned": 6},
        {"num_aligned": -1},
    ],
)
def test_no_window_that_would_break_a_step_comes_in(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        to_window(replace(LISTEN, **changes), HEARING)
    assert caught.value.code == ErrorCode.INTERNAL


def test_a_model_of_text_hears_nothing_and_one_of_sound_reads_nothing() -> None:
    with pytest.raises(RequestError, match="bytes of sound"):
        to_window(LISTEN, LIMITS)
    with pytest.raises(RequestError, match="/v1/audio/transcriptions"):
        to_sequence(GENERATE, HEARING)
