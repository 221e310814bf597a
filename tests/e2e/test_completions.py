"""Text completions and the tokenizer's own routes, through the official client."""

from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.e2e.server import RunningServer

pytestmark = pytest.mark.e2e
TURN = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
OTHER = "<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n"


def complete(client: openai.OpenAI, prompt: Any = TURN, **options: Any) -> Completion:
    """A greedy completion."""
    completion: Completion = client.completions.create(
        **{"model": "demo", "prompt": prompt, "temperature": 0, **options}
    )
    return completion


def texts(completion: Completion) -> list[str]:
    """Every answer, in the order of its number."""
    assert [choice.index for choice in completion.choices] == [*range(len(completion.choices))]
    return [choice.text for choice in completion.choices]


def tokenize(client: openai.OpenAI, **body: Any) -> dict[str, Any]:
    """What `/v1/tokenize` says."""
    return client.post("/tokenize", body=body, cast_to=dict[str, Any])


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    completion = complete(client, max_tokens=24)
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert "Paris" in texts(completion)[0]
    chat: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="demo", messages=chat, temperature=0)
    assert texts(completion) == [answer.choices[0].message.content]


def test_every_kind_of_prompt_is_the_same_prompt(client: openai.OpenAI) -> None:
    ids, other_ids = (tokenize(client, prompt=text)["tokens"] for text in (TURN, OTHER))
    (first,), (second,) = texts(complete(client)), texts(complete(client, OTHER))
    assert texts(complete(client, ids)) == [first]
    assert texts(complete(client, [TURN, OTHER])) == [first, second]
    assert texts(complete(client, [other_ids, ids])) == [second, first]


def test_choices_of_several_prompts_are_numbered_in_order(client: openai.OpenAI) -> None:
    completion = complete(client, [TURN, OTHER], n=2, temperature=1.0, seed=3, max_tokens=5)
    assert len(texts(completion)) == 4
    ids = [tokenize(client, prompt=text)["count"] for text in (TURN, OTHER)]
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == sum(ids)
    second = complete(client, OTHER, n=2, temperature=1.0, seed=5, max_tokens=5)
    assert texts(completion)[2:] == texts(second), "choice 2 has the seed 3 + 2"


def test_the_default_length_is_16(client: openai.OpenAI) -> None:
    completion = complete(client, OTHER, extra_body={"ignore_eos": True})
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    assert completion.choices[0].finish_reason == "length"


def test_an_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    prompt = "Once upon a time"
    (text,) = texts(complete(client, prompt, max_tokens=4))
    assert texts(complete(client, prompt, max_tokens=4, echo=True)) == [prompt + text]


def test_a_prompt_can_be_scored_without_an_answer(client: openai.OpenAI) -> None:
    prompt = "What is the capital of France?"
    completion = complete(client, prompt, max_tokens=0, echo=True, logprobs=1)
    (choice,) = completion.choices
    count = tokenize(client, prompt=prompt)["count"]
    assert choice.text == prompt
    assert choice.logprobs is not None
    values: list[float | None] = [*(choice.logprobs.token_logprobs or [])]
    assert len(values) == count
    assert values[0] is None
    assert all(value is not None and -9999 <= value <= 0 for value in values[1:])
    first: Any = (choice.logprobs.top_logprobs or [{}])[0]
    assert first is None
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (count, 0)
    assert choice.finish_reason == "length"


def test_scores_of_a_prompt_are_those_of_the_answer_that_it_was(client: openai.OpenAI) -> None:
    answer = complete(client, TURN, max_tokens=6, logprobs=0, extra_body={"ignore_eos": True})
    (choice,) = answer.choices
    assert choice.logprobs is not None
    ids = tokenize(client, prompt=TURN)["tokens"] + tokenize(client, prompt=choice.text)["tokens"]
    again = complete(client, ids, max_tokens=0, echo=True, logprobs=0)
    scores = again.choices[0].logprobs
    assert scores is not None
    tail = (scores.token_logprobs or [])[-6:]
    assert tail == pytest.approx(choice.logprobs.token_logprobs, abs=1e-3)


def test_offsets_point_into_the_text(client: openai.OpenAI) -> None:
    (choice,) = complete(client, OTHER, max_tokens=12, logprobs=2, echo=True).choices
    logprobs = choice.logprobs
    assert logprobs is not None
    offsets, tokens = logprobs.text_offset or [], logprobs.tokens or []
    assert offsets == sorted(offsets)
    assert "".join(tokens) == choice.text
    for offset, token in zip(offsets, tokens, strict=True):
        assert choice.text[offset : offset + len(token)] == token


@pytest.mark.parametrize(
    "options", [{}, {"logprobs": 1}, {"echo": True}, {"echo": True, "logprobs": 1}]
)
def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI, options: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {
        "prompt": [TURN, OTHER],
        "n": 2,
        "max_tokens": 8,
        "seed": 1,
        **options,
    }
    whole = complete(client, temperature=0.8, **wanted)
    collected = ["", "", "", ""]
    ends: dict[int, str] = {}
    for chunk in client.completions.create(model="demo", stream=True, temperature=0.8, **wanted):
        assert chunk.object == "text_completion"
        for choice in chunk.choices:
            collected[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert collected == texts(whole)
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}


def test_a_model_without_tokens_for_it_refuses_a_suffix(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "def f(", suffix="return x")
    assert caught.value.param == "suffix"


def test_tokens_of_a_conversation_are_those_that_its_answer_costs(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello!"}]
    answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
    found = tokenize(client, messages=messages)
    assert answer.usage is not None
    assert found["count"] == len(found["tokens"]) == answer.usage.prompt_tokens
    assert found["max_model_len"] > found["count"]


def test_template_variables_reach_the_template(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello!"}]
    plain, thinking = (
        tokenize(client, messages=messages, chat_template_kwargs={"enable_thinking": value})
        for value in (False, True)
    )
    assert thinking["count"] > plain["count"]


@pytest.mark.parametrize("text", ["Hello, world!", " é🙂漢字 ", TURN, "a\n\n\tb"])
def test_text_comes_back_from_its_tokens(
    client: openai.OpenAI, demo_server: RunningServer, text: str
) -> None:
    found = tokenize(client, prompt=text, return_token_strs=True)
    assert len(found["token_strs"]) == found["count"]
    back = client.post("/detokenize", body={"tokens": found["tokens"]}, cast_to=dict[str, Any])
    assert back == {"prompt": text, "text": text, "content": text}


def test_an_answer_goes_on_where_it_was_left(client: openai.OpenAI) -> None:
    question: Any = {"role": "user", "content": "Count from 1 to 20."}
    whole = client.chat.completions.create(model="demo", messages=[question], temperature=0)
    text = whole.choices[0].message.content or ""
    begun: Any = [question, {"role": "assistant", "content": text[:12]}]
    rest = client.chat.completions.create(
        model="demo",
        messages=begun,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert text[:12] + (rest.choices[0].message.content or "") == text


def test_a_long_prompt_is_truncated_on_demand(client: openai.OpenAI) -> None:
    card: Any = client.models.retrieve("demo")
    long = "word " * 4000 + OTHER
    with pytest.raises(openai.BadRequestError, match="maximum context length is"):
        complete(client, long)
    for keep, kept in ((50, 50), (-1, card.max_model_len - 16)):
        completion = complete(client, long, extra_body={"truncate_prompt_tokens": keep})
        assert completion.usage is not None
        assert completion.usage.prompt_tokens == kept
    ids = tokenize(client, prompt=long)["tokens"][-50:]
    assert texts(complete(client, long, extra_body={"truncate": 50})) == texts(
        complete(client, ids)
    )


def test_an_echo_is_the_same_with_and_without_its_scores(client: openai.OpenAI) -> None:
    plain, scored = (
        complete(client, TURN, max_tokens=4, echo=True, **options)
        for options in ({}, {"logprobs": 0})
    )
    assert texts(plain) == texts(scored)
    assert texts(plain)[0].startswith(TURN)


def test_scores_of_all_choices_together_are_bounded(client: openai.OpenAI) -> None:
    prompts = [[300] * 1900] * 3
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompts, n=20, max_tokens=0, echo=True, logprobs=5)
    assert caught.value.param == "logprobs"
