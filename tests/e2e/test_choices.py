"""Several answers to one prompt, and prompts that were seen before, through the official client."""

from collections import defaultdict
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.e2e.server import RunningServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
BLOCK_SIZE = 16
COUNT = "Count from 1 to 20."
NONSENSE = "xyzzy plugh plover frotz rezrov"  # the model has no settled answer; longer than a block
FREE: dict[str, Any] = {"temperature": 1.0, "seed": 40, "max_tokens": 24}
EVERY_SETTING: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.95,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"300": -100, "301": 2.5},
    "seed": 1,
    "max_tokens": 12,
    "n": 2,
}
EXTENSIONS: dict[str, Any] = {
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "min_tokens": 4,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "cache_salt": "e2e",
}


def ask(client: openai.OpenAI, content: str, **options: Any) -> ChatCompletion:
    """An answer, or several, in one piece."""
    messages: Any = [{"role": "user", "content": content}]
    completion: ChatCompletion = client.chat.completions.create(
        model="demo", messages=messages, **options
    )
    return completion


def texts(completion: ChatCompletion) -> list[str | None]:
    """Every answer, in order; their numbers have no gap."""
    assert [choice.index for choice in completion.choices] == [*range(len(completion.choices))]
    return [choice.message.content for choice in completion.choices]


def cached_tokens(completion: ChatCompletion) -> int:
    """Tokens of the prompt that did not have to be computed."""
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    return completion.usage.prompt_tokens_details.cached_tokens or 0


def test_each_of_three_answers_is_the_one_of_its_own_seed(client: openai.OpenAI) -> None:
    together = ask(client, NONSENSE, n=3, **FREE)
    alone = [ask(client, NONSENSE, **{**FREE, "seed": FREE["seed"] + n}) for n in range(3)]
    assert texts(together) == [completion.choices[0].message.content for completion in alone]
    assert len(set(texts(together))) == 3, "each has noise of its own"
    assert together.usage is not None
    usages = [completion.usage for completion in alone if completion.usage is not None]
    assert together.usage.prompt_tokens == usages[0].prompt_tokens, "the prompt counts once"
    assert together.usage.completion_tokens == sum(usage.completion_tokens for usage in usages)


def test_streamed_answers_equal_the_whole_ones(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": NONSENSE}]
    whole = ask(client, NONSENSE, n=2, **FREE)
    *body, last = client.chat.completions.create(
        model="demo",
        messages=messages,
        n=2,
        stream=True,
        stream_options={"include_usage": True},
        **FREE,
    )
    pieces: defaultdict[int, list[Any]] = defaultdict(list)
    for chunk in body:
        for choice in chunk.choices:
            pieces[choice.index].append(choice)
    for choice in whole.choices:
        parts = pieces.pop(choice.index)
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [
            choice.finish_reason
        ]
        assert [part.delta.role for part in parts if part.delta.role] == ["assistant"]
    assert not pieces
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_string_ends_each_answer_where_it_comes(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    whole = texts(ask(client, NONSENSE, n=4, **FREE))
    stop = str(whole[0])[2:4]
    stopped = texts(ask(client, NONSENSE, n=4, stop=[stop], **FREE))
    assert stopped == [str(text).partition(stop)[0] for text in whole]
    assert stopped[0] != whole[0]
    wait_until(demo_server.is_at_rest, 5.0)


def test_a_long_prompt_that_was_seen_is_not_computed_again(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    hits = demo_server.metric("vllm:prefix_cache_hits_total")
    prompt = "Sort these numbers: " + ", ".join(str(37 * n % 101) for n in range(1, 40))
    first, second = (ask(client, prompt, temperature=0, max_tokens=20) for _ in range(2))
    assert second.usage is not None
    num_prompt = second.usage.prompt_tokens
    assert num_prompt > 3 * BLOCK_SIZE
    assert cached_tokens(second) == (num_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert cached_tokens(second) > cached_tokens(first)
    assert texts(second) == texts(first)
    wait_until(lambda: demo_server.metric("vllm:prefix_cache_hits_total") > hits, 5.0)
    assert demo_server.metric("vllm:prompt_tokens_cached_total") >= cached_tokens(second)


def test_a_salt_of_ones_own_finds_nothing_of_others(client: openai.OpenAI) -> None:
    prompt = "Reverse the word: " + "stone " * 20
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    ask(client, prompt, **options)
    salted = {"extra_body": {"cache_salt": "a tenant's secret"}}
    first, second = (ask(client, prompt, **options, **salted) for _ in range(2))
    assert cached_tokens(first) == 0
    assert cached_tokens(second) > 0
    assert texts(second) == texts(first) == texts(ask(client, prompt, **options))


def test_more_answers_than_the_server_makes_are_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, COUNT, n=101)
    assert caught.value.param == "n"


def test_every_setting_at_once_is_obeyed(client: openai.OpenAI) -> None:
    first, second = (ask(client, COUNT, extra_body=EXTENSIONS, **EVERY_SETTING) for _ in range(2))
    assert len(first.choices) == 2
    assert texts(first) == texts(second), "the seed decides"
    assert first.usage is not None
    assert 2 * EXTENSIONS["min_tokens"] <= first.usage.completion_tokens
    assert first.usage.completion_tokens <= 2 * EVERY_SETTING["max_tokens"]


def test_a_client_that_leaves_takes_all_answers_with_it(
    client: openai.OpenAI, demo_server: RunningServer
) -> None:
    messages: Any = [{"role": "user", "content": "Count from 1 to 50."}]
    stream = client.chat.completions.create(
        model="demo", messages=messages, n=8, max_tokens=200, temperature=0, stream=True
    )
    for number, _ in enumerate(stream):
        if number == 20:
            break
    stream.close()
    wait_until(demo_server.is_at_rest, 5.0)
