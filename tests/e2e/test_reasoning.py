"""The demo model thinks when it is told to: its thoughts come apart from its answer."""

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e
QUESTION = "What is 17 + 25?"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


def ask(client: openai.OpenAI, *earlier: Any, **options: Any) -> Any:
    """A greedy answer of the demo model, which is told to think unless the options say more."""
    return client.chat.completions.create(
        model="demo",
        messages=[*earlier, {"role": "user", "content": QUESTION}],
        temperature=0,
        extra_body=THINKING | options.pop("extra_body", {}),
        **options,
    )


def thoughts_of(said: Any) -> str | None:
    """Under both names the thoughts are the same."""
    extra = said.model_extra
    assert extra.get("reasoning_content") == extra.get("reasoning")
    thoughts: str | None = extra.get("reasoning")
    return thoughts


def reasoning_tokens(completion: Any) -> int:
    """As the usage counts them."""
    tokens: int = completion.usage.completion_tokens_details.reasoning_tokens
    return tokens


def test_thoughts_come_apart_from_the_answer(client: openai.OpenAI) -> None:
    completion = ask(client)
    message = completion.choices[0].message
    thoughts = thoughts_of(message)
    assert thoughts
    assert thoughts == thoughts.strip()
    assert message.content == "17 + 25 = 42"
    assert "think>" not in thoughts + message.content
    assert 0 < reasoning_tokens(completion) < completion.usage.completion_tokens


def test_a_stream_says_the_same_in_the_same_order(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks: Any = ask(client, stream=True, stream_options={"include_usage": True})
    deltas, last = [], None
    for chunk in chunks:
        deltas += [choice.delta for choice in chunk.choices]
        last = chunk
    thoughts = [thoughts_of(delta) or "" for delta in deltas]
    answer = [delta.content or "" for delta in deltas]
    assert "".join(thoughts) == thoughts_of(whole.choices[0].message)
    assert "".join(answer) == whole.choices[0].message.content
    assert sum(map(bool, thoughts)) > 5
    assert max(i for i, text in enumerate(thoughts) if text) <= min(
        i for i, text in enumerate(answer) if text
    )
    assert reasoning_tokens(last) == reasoning_tokens(whole)


def test_an_answer_without_thoughts_has_no_such_key(client: openai.OpenAI) -> None:
    completion = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert completion.choices[0].message.content == "17 + 25 = 42"
    assert not {"reasoning", "reasoning_content"} & completion.choices[0].message.to_dict().keys()
    assert reasoning_tokens(completion) == 0


def test_thoughts_may_stay_in_the_content_or_be_left_out(client: openai.OpenAI) -> None:
    usual = ask(client).choices[0].message
    raw = ask(client, extra_body={"separate_reasoning": False}).choices[0].message
    assert raw.content == f"<think>\n{thoughts_of(usual)}\n</think>\n\n{usual.content}"
    assert thoughts_of(raw) is None
    short = ask(client, extra_body={"include_reasoning": False})
    assert short.choices[0].message.content == usual.content
    assert thoughts_of(short.choices[0].message) is None
    assert reasoning_tokens(short) > 0


def test_an_answer_that_ends_in_its_thoughts_has_no_content(client: openai.OpenAI) -> None:
    completion = ask(client, max_completion_tokens=6)
    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert thoughts_of(choice.message)
    assert reasoning_tokens(completion) == 6


def test_a_stop_string_ends_thoughts_as_well(client: openai.OpenAI) -> None:
    thoughts = thoughts_of(ask(client).choices[0].message)
    assert thoughts is not None
    (choice,) = ask(client, stop=[thoughts[5:8]]).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", "")
    assert thoughts_of(choice.message) == thoughts[:5].rstrip()


@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_conversation_has_as_many_tokens_as_the_prompt_of_its_chat(
    client: openai.OpenAI, effort: str
) -> None:
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "reasoning_effort": effort,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "none",
    }
    found: Any = client.post("/tokenize", body=body, cast_to=object)
    answer: Any = client.post("/chat/completions", body={**body, "max_tokens": 1}, cast_to=object)
    assert found["count"] == len(found["tokens"]) == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thoughts_may_be_sent_back(client: openai.OpenAI, key: str) -> None:
    message = ask(client).choices[0].message
    earlier = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": message.content, key: thoughts_of(message)},
    ]
    assert ask(client, *earlier).choices[0].message.content == "17 + 25 = 42"
