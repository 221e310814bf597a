"""What a request says about sampling reaches the sampler as it was said, or is refused by name."""

import json
from typing import Any

import pytest

from frontend import translate
from frontend.served_model import ServedModel
from shared.config import FrontendConfig, ModelConfig
from shared.errors import FAILURES, BadRequest, ErrorCode

MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
RULES = translate.Rules(MODEL, max_choices=8, sampling_defaults={})


def chat(**values: Any) -> translate.Ask:
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], **values}).encode()
    return translate.chat(body, RULES, random_seed=5)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 2}, "temperature", 2.0),
        ({"top_p": 0}, "top_p", 0.0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 2**40}, "top_k", 2**31 - 1),
        ({"min_p": 0.25}, "min_p", 0.25),
        ({"min_p": 1}, "min_p", 1.0),
        ({"repetition_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 2.0}, "presence_penalty", 2.0),
        (
            {"logit_bias": {"50256": -100, "0": 0.5}},
            "logit_bias",
            ((50256, -100.0), (0, 0.5)),
        ),
        ({"min_tokens": 7}, "min_tokens", 7),
        ({"min_tokens": 7, "max_tokens": 7}, "min_tokens", 7),
        ({"min_tokens": 2**40}, "min_tokens", 2**31 - 1),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"stop_token_ids": [5, 6]}, "stop_token_ids", (5, 6)),
        ({"seed": 7}, "seed", 7),
        ({"seed": -1}, "seed", 2**63 - 1),
        ({"seed": -(2**63)}, "seed", 0),
    ],
)
def test_sampling(given: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(chat(**given).submission.sampling, field) == value


def test_min_tokens_is_within_max_tokens() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(BadRequest) as caught:
            chat(**{"min_tokens": 8, name: 7})
        assert (caught.value.param, caught.value.code) == ("min_tokens", ErrorCode.INVALID_VALUE)


@pytest.mark.parametrize("token", [-1, 2**31, "x", 1.5])
def test_a_bad_stop_token_is_named_by_its_place(token: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(stop_token_ids=[5, token])
    assert str(caught.value.param).startswith("stop_token_ids[")


def test_as_many_biased_and_stop_tokens_as_are_allowed() -> None:
    found = chat(logit_bias={str(n): 1 for n in range(1024)}, stop_token_ids=list(range(128)))
    assert len(found.submission.sampling.logit_bias) == 1024
    assert len(found.submission.sampling.stop_token_ids) == 128


BAD_VALUES = [
    ("temperature", 3, ErrorCode.INVALID_VALUE),
    ("temperature", -1, ErrorCode.INVALID_VALUE),
    ("temperature", "1", ErrorCode.INVALID_TYPE),
    ("temperature", True, ErrorCode.INVALID_TYPE),
    ("top_p", 1.5, ErrorCode.INVALID_VALUE),
    ("top_k", -2, ErrorCode.INVALID_VALUE),
    ("seed", "x", ErrorCode.INVALID_TYPE),
    ("seed", 2**63, ErrorCode.INVALID_VALUE),
    ("seed", -(2**63) - 1, ErrorCode.INVALID_TYPE),
    ("seed", 10**30, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"abc": 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"-1": 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"05": 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"٥": 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"9" * 9999: 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {"5\n": 1}, ErrorCode.INVALID_VALUE),
    ("logit_bias", {str(n): 1 for n in range(1025)}, ErrorCode.INVALID_VALUE),
    ("logit_bias", [5], ErrorCode.INVALID_TYPE),
    ("min_p", -0.1, ErrorCode.INVALID_VALUE),
    ("min_p", 1.1, ErrorCode.INVALID_VALUE),
    ("repetition_penalty", 0, ErrorCode.INVALID_VALUE),
    ("repetition_penalty", -1, ErrorCode.INVALID_VALUE),
    ("repetition_penalty", 10.5, ErrorCode.INVALID_VALUE),
    ("frequency_penalty", 2.5, ErrorCode.INVALID_VALUE),
    ("frequency_penalty", "x", ErrorCode.INVALID_TYPE),
    ("presence_penalty", -2.5, ErrorCode.INVALID_VALUE),
    ("min_tokens", -1, ErrorCode.INVALID_VALUE),
    ("min_tokens", 1.5, ErrorCode.INVALID_TYPE),
    ("ignore_eos", 1, ErrorCode.INVALID_TYPE),
    ("stop_token_ids", 5, ErrorCode.INVALID_TYPE),
    ("stop_token_ids", [1] * 129, ErrorCode.INVALID_VALUE),
]


@pytest.mark.parametrize(
    ("bias", "code"),
    [
        (100.5, ErrorCode.INVALID_VALUE),
        (-101, ErrorCode.INVALID_VALUE),
        ("1", ErrorCode.INVALID_TYPE),
        (None, ErrorCode.INVALID_TYPE),
    ],
)
def test_a_bad_bias_is_named_by_its_token(bias: Any, code: ErrorCode) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(logit_bias={"4": 1, "5": bias, "6": "x"})
    assert (caught.value.param, caught.value.code) == ("logit_bias.5", code)


@pytest.mark.parametrize("given", ["max_tokens", "max_completion_tokens"])
def test_the_bound_of_min_tokens_is_the_field_that_was_sent(given: str) -> None:
    with pytest.raises(BadRequest, match=f"at most '{given}', which is 2 here") as caught:
        chat(min_tokens=3, **{given: 2})
    assert caught.value.param == "min_tokens"
    assert chat(min_tokens=2, **{given: 2}).submission.max_tokens_param == given


@pytest.mark.parametrize(("name", "value", "code"), BAD_VALUES)
def test_bad_values(name: str, value: Any, code: ErrorCode) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**{name: value})
    assert (caught.value.param, caught.value.code) == (name, code)
    assert name in caught.value.message
    assert len(caught.value.message) < 350
    assert FAILURES[caught.value.code].status == 400


@pytest.mark.parametrize(
    "name",
    [
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
    ],
)
def test_null_is_the_default(name: str) -> None:
    assert chat(**{name: None}) == chat()
