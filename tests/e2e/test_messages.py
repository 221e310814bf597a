"""What roles and content parts of a conversation mean, on the demo model."""

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.e2e
QUESTION = {"role": "user", "content": "What is the capital of France?"}
RULE = "Answer in one word."


def ask(client: openai.OpenAI, *messages: Any) -> tuple[str | None, int]:
    """A greedy answer, and what its prompt cost."""
    completion = client.chat.completions.create(
        model="demo", messages=list(messages), temperature=0, max_tokens=24
    )
    assert completion.usage is not None
    return completion.choices[0].message.content, completion.usage.prompt_tokens


def test_a_developer_is_the_system(client: openai.OpenAI) -> None:
    as_system = ask(client, {"role": "system", "content": RULE}, QUESTION)
    assert ask(client, {"role": "developer", "content": RULE}, QUESTION) == as_system
    assert as_system != ask(client, QUESTION)


def test_parts_are_the_text_that_they_make(client: openai.OpenAI) -> None:
    first, second = "What is the capital", " of France?"
    parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    assert ask(client, {"role": "user", "content": parts}) == ask(client, QUESTION)


def test_calls_and_their_results_are_part_of_the_conversation(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Paris"}
    content, cost = ask(client, QUESTION, asked, result)
    assert content
    assert cost > ask(client, QUESTION)[1]


def test_a_part_that_is_no_text_is_refused_by_its_type(client: openai.OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(openai.BadRequestError, match="image_url") as caught:
        ask(client, {"role": "user", "content": [part]})
    assert caught.value.param == "messages[0].content[0].type"
