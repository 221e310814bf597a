"""Flags of the API on a whole server, which has all of them at once."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.models import copy_demo
from tests.e2e.server import RunningServer, running_server

pytestmark = pytest.mark.e2e
THINK = {"enable_thinking": True}


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The demo model with all these flags; its makers asked for a top_k of 1."""
    directory = copy_demo(tmp_path_factory.mktemp("flagged"), temperature=1.5, top_k=1)
    with running_server(
        *("--hf-model", str(directory)),
        *("--served-model-name", "first,second"),
        *("--api-key", "key-1,key-2"),
        *("--override-generation-config", '{"temperature": 2.0}'),
        *("--default-completion-max-tokens", "3"),
        "--strict-max-tokens",
        *("--reasoning-field", "reasoning"),
    ) as server:
        yield server


@pytest.fixture
def caller(flagged: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{flagged.url}/v1", api_key="key-2", max_retries=0) as client:
        yield client


def info(flagged: RunningServer) -> dict[str, Any]:
    answer = httpx.get(f"{flagged.url}/server_info", headers={"x-api-key": "key-1"})
    found: dict[str, Any] = answer.json()
    return found


def test_a_caller_needs_one_of_the_keys(flagged: RunningServer, caller: openai.OpenAI) -> None:
    assert [model.id for model in caller.models.list()] == ["first"]
    with pytest.raises(openai.AuthenticationError) as caught:
        caller.with_options(api_key="key-3").models.list()
    assert caught.value.code == "invalid_api_key"
    assert httpx.get(f"{flagged.url}/health").status_code == 200


def test_every_name_is_the_models(caller: openai.OpenAI) -> None:
    for name in ("first", "second", "model"):
        answer = caller.completions.create(model=name, prompt="Hello")
        assert answer.model == "first"
    with pytest.raises(openai.NotFoundError):
        caller.completions.create(model="third", prompt="Hello")


def test_a_completion_that_does_not_say_is_as_long_as_the_flag_says(caller: openai.OpenAI) -> None:
    answer = caller.completions.create(
        model="first", prompt="Hello", extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_too_many_tokens_are_refused_where_the_flag_is_strict(caller: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        caller.completions.create(model="first", prompt="Hello", max_tokens=10**6)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")


def test_the_models_own_sampling(flagged: RunningServer, caller: openai.OpenAI) -> None:
    assert info(flagged)["sampling_defaults"]["top_k"] == 1
    texts = {
        caller.completions.create(model="first", prompt="Once", seed=seed).choices[0].text
        for seed in range(4)
    }
    assert len(texts) == 1, "a top_k of 1 leaves nothing to chance"


def test_the_flags_come_before_the_models_makers(flagged: RunningServer) -> None:
    assert info(flagged)["sampling_defaults"] == {"temperature": 2.0, "top_k": 1}


def test_thoughts_are_where_the_flag_says(caller: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is 17 plus 25?"}]
    answer = caller.chat.completions.create(
        model="first",
        messages=messages,
        temperature=0,
        extra_body={"chat_template_kwargs": THINK},
    )
    message = answer.choices[0].message.model_dump()
    assert message["reasoning"]
    assert "reasoning_content" not in message
    assert "<think>" not in message["content"]
