"""Logprobs through the official client: they cover the text, and are fit for JSON."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionTokenLogprob

pytestmark = pytest.mark.e2e
COUNT = "Count from 1 to 20."
FLOOR = -9999.0


def messages(content: str = COUNT) -> Any:
    """One user message."""
    return [{"role": "user", "content": content}]


def scored(client: openai.OpenAI, **options: Any) -> tuple[str, list[ChatCompletionTokenLogprob]]:
    """A greedy answer and its tokens."""
    options = {"temperature": 0, "logprobs": True, **options}
    (choice,) = client.chat.completions.create(model="demo", messages=messages(), **options).choices
    assert choice.logprobs is not None
    return choice.message.content or "", choice.logprobs.content or []


def test_tokens_make_the_text(client: openai.OpenAI) -> None:
    content, tokens = scored(client, top_logprobs=3)
    assert "".join(token.token for token in tokens) == content
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == content
    for token in tokens:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert all(FLOOR <= value <= 0 for value in (token.logprob, *values))
        assert (token.top_logprobs[0].token, values[0]) == (token.token, token.logprob)


def test_as_many_tokens_as_the_answer_has_without_its_hidden_end(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=messages(), temperature=0, logprobs=True
    )
    assert answer.usage is not None
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) == answer.usage.completion_tokens - 1
    assert all(token.top_logprobs == [] for token in choice.logprobs.content or [])


def test_banned_and_cut_tokens_do_not_break_the_json(client: openai.OpenAI) -> None:
    _, plain = scored(client, max_tokens=4)
    options: dict[str, Any] = {"logit_bias": {"300": -100}, "extra_body": {"top_k": 1}}
    _, tokens = scored(client, max_tokens=4, top_logprobs=20, temperature=1, **options)
    assert [token.token for token in tokens] == [token.token for token in plain]
    values = [top.logprob for token in tokens for top in token.top_logprobs]
    assert len(values) == 80
    assert all(FLOOR <= value <= 0 for value in values)


def test_logprobs_are_those_of_the_model_whatever_is_asked_of_sampling(
    client: openai.OpenAI,
) -> None:
    _, plain = scored(client, max_tokens=1, top_logprobs=5)
    _, hot = scored(client, max_tokens=1, top_logprobs=5, temperature=2, seed=3, presence_penalty=1)
    for before, after in zip(plain[0].top_logprobs, hot[0].top_logprobs, strict=True):
        assert before.token == after.token
        assert before.logprob == pytest.approx(after.logprob, abs=1e-4)


def test_a_stream_tells_the_same_tokens(client: openai.OpenAI) -> None:
    content, tokens = scored(client, top_logprobs=2, stop="17")
    chunks = client.chat.completions.create(
        model="demo",
        messages=messages(),
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stop="17",
        stream=True,
    )
    streamed: list[ChatCompletionTokenLogprob] = []
    text = ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            streamed += (choice.logprobs.content or []) if choice.logprobs else []
            assert "".join(token.token for token in streamed) == text
    assert text == content
    assert [(t.token, t.bytes) for t in streamed] == [(t.token, t.bytes) for t in tokens]
    for one, other in zip(streamed, tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_the_helper_of_the_client_collects_a_stream_of_two(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=messages(), n=2, seed=5, temperature=0.5, logprobs=True
    ) as events:
        pieces = ["", ""]
        for event in events:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    pieces[choice.index] += choice.delta.content or ""
        final = events.get_final_completion()
    assert [choice.message.content for choice in final.choices] == pieces
    for parsed in final.choices:
        assert parsed.logprobs is not None
        joined = "".join(token.token for token in parsed.logprobs.content or [])
        assert joined == parsed.message.content
