"""Completions: every kind of prompt, and what does not go together."""

import json
from typing import Any

import pytest

from frontend import translate
from frontend.served_model import ServedModel
from shared.config import FrontendConfig, ModelConfig
from shared.errors import BadRequest, ErrorCode
from shared.parts import Prompt, TextPrompt

MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
RULES = translate.Rules(MODEL, max_choices=8, sampling_defaults={})


def completion(**given: Any) -> translate.Ask:
    body = json.dumps({"prompt": "hello", **given}).encode()
    return translate.completion(body, RULES, random_seed=5)


def text(words: str) -> Prompt:
    return Prompt(text=TextPrompt(words), param="prompt")


def ids(*token_ids: int) -> Prompt:
    return Prompt(token_ids=token_ids, param="prompt")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", (text("a"),)),
        ("", (text(""),)),
        (["a", "b"], (text("a"), text("b"))),
        ([5, 6], (ids(5, 6),)),
        ([[5, 6], [7]], (ids(5, 6), ids(7))),
        (["a", [7]], (text("a"), ids(7))),
    ],
)
def test_prompts(prompt: Any, prompts: tuple[Prompt, ...]) -> None:
    assert completion(prompt=prompt).submission.prompts == prompts


def test_a_completion_has_16_tokens_unless_it_says_otherwise() -> None:
    assert completion().submission.max_tokens == 16
    assert completion(max_tokens=300).submission.max_tokens == 300


def test_only_what_was_asked_for_can_be_too_much() -> None:
    strict = translate.Rules(MODEL, 8, {}, strict_max_tokens=True)
    asked: tuple[dict[str, int], ...] = ({}, {"max_tokens": 20}, {"max_completion_tokens": 20})
    for given, is_strict in zip(asked, (False, True, True), strict=True):
        body = json.dumps({"prompt": "a", **given}).encode()
        assert translate.completion(body, strict, 5).submission.is_strict is is_strict


def test_a_prompt_may_be_scored_without_an_answer() -> None:
    ask = completion(max_tokens=0, echo=True, logprobs=1)
    assert ask.submission.max_tokens == 0
    assert ask.submission.text.only_scores_prompt
    assert not completion(echo=True).submission.text.only_scores_prompt


def test_the_length_is_called_by_the_name_that_was_sent() -> None:
    for given in ("max_tokens", "max_completion_tokens"):
        assert completion(**{given: 3}).submission.max_tokens_param == given
        with pytest.raises(BadRequest, match=f"'{given}' may be 0 only with 'echo'") as caught:
            completion(**{given: 0})
        assert caught.value.param == given
    assert completion().submission.max_tokens_param == "max_tokens"


def test_each_choice_of_each_prompt_counts() -> None:
    assert completion(prompt=["a", "b"], n=4).submission.total_choices == 8
    with pytest.raises(BadRequest, match="at most 8 answers to a request, not 9") as caught:
        completion(prompt=["a", "b", "c"], n=3)
    assert caught.value.param == "prompt"


def test_an_empty_suffix_is_none() -> None:
    assert completion(suffix="").submission.prompts == completion().submission.prompts


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"prompt": None}, "prompt", ErrorCode.MISSING_PARAMETER),
        ({"prompt": []}, "prompt", ErrorCode.EMPTY_ARRAY),
        ({"prompt": [[]]}, "prompt[0]", ErrorCode.EMPTY_ARRAY),
        ({"prompt": 5}, "prompt", ErrorCode.INVALID_TYPE),
        ({"prompt": [5, "a"]}, "prompt", ErrorCode.INVALID_TYPE),
        ({"prompt": [5, [5]]}, "prompt", ErrorCode.INVALID_TYPE),
        ({"prompt": [-1]}, "prompt[0]", ErrorCode.INVALID_VALUE),
        ({"prompt": [2**31]}, "prompt[0]", ErrorCode.INVALID_VALUE),
        ({"prompt": ["a"] * 1025, "n": 1}, "prompt", ErrorCode.INVALID_VALUE),
        ({"max_tokens": -1}, "max_tokens", ErrorCode.INVALID_VALUE),
        ({"max_tokens": 0}, "max_tokens", ErrorCode.INVALID_VALUE),
        ({"logprobs": True}, "logprobs", ErrorCode.INVALID_TYPE),
        ({"logprobs": 21}, "logprobs", ErrorCode.INVALID_VALUE),
        ({"suffix": "x", "echo": True}, "echo", ErrorCode.INVALID_VALUE),
        ({"suffix": "x", "prompt": ["a"]}, "suffix", ErrorCode.INVALID_VALUE),
        ({"suffix": "x", "truncate": 5}, "truncate", ErrorCode.INVALID_VALUE),
        (
            {"suffix": "x", "truncate_prompt_tokens": -1},
            "truncate_prompt_tokens",
            ErrorCode.INVALID_VALUE,
        ),
        ({"reasoning_effort": "low"}, "reasoning_effort", ErrorCode.UNSUPPORTED_PARAMETER),
        ({"best_of": 3, "n": 2}, "best_of", ErrorCode.UNSUPPORTED_PARAMETER),
        ({"min_tokens": 17}, "min_tokens", ErrorCode.INVALID_VALUE),
    ],
)
def test_bad_values(given: dict[str, Any], param: str, code: ErrorCode) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(**given)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(caught.value.message) < 350


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "content": "b"}, "content"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
    ],
)
def test_one_thing_is_tokenized_at_a_time(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="exactly one") as caught:
        translate.tokenize(json.dumps(given).encode(), MODEL)
    assert caught.value.param == param
