"""What each setting of a request does to the demo model's answer, through the official client."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.e2e.server import RunningServer

pytestmark = pytest.mark.e2e
COUNT = "Count from 1 to 20."
CAPITAL = "What is the capital of France?"
ENDLESS: dict[str, Any] = {"extra_body": {"ignore_eos": True}}


def ask(client: openai.OpenAI, content: str = CAPITAL, **options: Any) -> ChatCompletion:
    """An answer, greedy unless told otherwise."""
    messages: Any = [{"role": "user", "content": content}]
    options = {"temperature": 0, **options}
    completion: ChatCompletion = client.chat.completions.create(
        model="demo", messages=messages, **options
    )
    return completion


def text(completion: ChatCompletion) -> str:
    """Its only answer."""
    return completion.choices[0].message.content or ""


def length(completion: ChatCompletion) -> tuple[int, str]:
    """How long it is, and why it ended."""
    assert completion.usage is not None
    return completion.usage.completion_tokens, completion.choices[0].finish_reason


def ids_of(server: RunningServer, words: str) -> list[int]:
    """The tokens of a text."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        found = client.post("/tokenize", body={"prompt": words}, cast_to=dict[str, Any])
    tokens: list[int] = found["tokens"]
    return tokens


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 9, "max_completion_tokens": 6}, 6),
    ],
)
def test_limits_are_exact(client: openai.OpenAI, limits: dict[str, Any], tokens: int) -> None:
    assert length(ask(client, **limits, **ENDLESS)) == (tokens, "length")


def test_a_limit_beyond_the_context_is_lowered_to_it(client: openai.OpenAI) -> None:
    card: Any = client.models.retrieve("demo")
    answer = ask(client, max_tokens=10**6)
    assert answer.usage is not None
    assert answer.usage.total_tokens <= card.max_model_len
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_forces_a_token_or_bans_it(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    whole = text(ask(client))
    first = ids_of(demo_server, whole)[0]
    forced = ids_of(demo_server, " z")[-1]
    assert text(ask(client, logit_bias={str(forced): 100}, max_tokens=3)).strip() == "zzz"
    assert not text(ask(client, logit_bias={str(first): -100})).startswith(whole[:2])


def test_a_bias_on_a_token_that_does_not_exist_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, logit_bias={"999999999": 1})
    assert caught.value.param == "logit_bias"


@pytest.mark.parametrize(
    "penalty",
    [
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"extra_body": {"repetition_penalty": 3.0, "ignore_eos": True}},
    ],
)
def test_penalties_make_an_answer_repeat_itself_less(
    client: openai.OpenAI, demo_server: RunningServer, penalty: dict[str, Any]
) -> None:
    def num_different(completion: ChatCompletion) -> int:
        return len(set(ids_of(demo_server, text(completion))))

    plain = ask(client, "Hello!", max_tokens=60, **ENDLESS)
    other = ask(client, "Hello!", max_tokens=60, **{**ENDLESS, **penalty})
    assert num_different(other) > num_different(plain)


@pytest.mark.parametrize(
    "narrow", [{"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1}}, {"top_p": 0}]
)
def test_settings_that_leave_one_token_are_greedy(
    client: openai.OpenAI, narrow: dict[str, Any]
) -> None:
    assert text(ask(client, COUNT, temperature=1, **narrow)) == text(ask(client, COUNT))


@pytest.mark.parametrize(
    "stop",
    ["\n", "4", ["5", "4"], " 7, 8", ", 1", "3, 4, 5, 6, 7, 8, 9, 10"],
    ids=repr,
)
def test_an_answer_ends_before_its_first_stop_string(
    client: openai.OpenAI, stop: str | list[str]
) -> None:
    whole = text(ask(client, COUNT))
    stops = [stop] if isinstance(stop, str) else stop
    cuts = {words: whole.index(words) for words in stops if words in whole}
    answer = ask(client, COUNT, stop=stop)
    assert text(answer) == whole[: min(cuts.values(), default=len(whole))]
    assert answer.choices[0].finish_reason == "stop"
    reason = min(cuts, key=cuts.__getitem__, default=None)
    assert answer.choices[0].stop_reason == reason  # type: ignore[attr-defined]  # an extension


def test_a_stop_string_that_never_comes_whole_takes_nothing_away(client: openai.OpenAI) -> None:
    whole = text(ask(client, COUNT))
    assert text(ask(client, COUNT, stop=[whole[-3:] + "x", "20!"])) == whole


def test_a_stop_string_can_be_kept(client: openai.OpenAI) -> None:
    whole = text(ask(client, COUNT))
    kept = ask(client, COUNT, stop="7", extra_body={"include_stop_str_in_output": True})
    assert text(kept) == whole[: whole.index("7") + 1]


def test_a_stop_token_is_the_reason_by_its_id(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    whole = text(ask(client))
    last = ids_of(demo_server, whole)[-1]
    answer = ask(client, extra_body={"stop_token_ids": [last]})
    assert answer.choices[0].stop_reason == last  # type: ignore[attr-defined]  # an extension
    assert whole.startswith(text(answer))


def test_special_tokens_are_shown_on_demand(client: openai.OpenAI) -> None:
    shown = {"ignore_eos": True, "skip_special_tokens": False}
    assert "<|im_end|>" in text(ask(client, max_tokens=40, extra_body=shown))
    assert "<|im_end|>" not in text(ask(client, max_tokens=40, **ENDLESS))
