"""The built-in T5 through the official client: an encoder-decoder answers as any model does."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.e2e.server import RunningServer, running_server

pytestmark = pytest.mark.e2e
ENGLISH = "translate English to German: the old woman sees the small dog"
GERMAN = "die alte Frau sieht den kleinen Hund"


@pytest.fixture
def t5(t5_server: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client, without its retries: what fails must be seen."""
    url = f"{t5_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, *contents: str, **options: Any) -> ChatCompletion:
    """A greedy answer to these messages."""
    messages: Any = [{"role": "user", "content": content} for content in contents]
    answer: ChatCompletion = client.chat.completions.create(
        **{"model": "demo-t5", "messages": messages, "temperature": 0, **options}
    )
    return answer


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Completion:
    """A greedy completion."""
    completion: Completion = client.completions.create(
        **{"model": "demo-t5", "prompt": prompt, "temperature": 0, "max_tokens": 40, **options}
    )
    return completion


def tokens(client: openai.OpenAI, **body: Any) -> list[int]:
    """The tokens that the model reads."""
    found: dict[str, Any] = client.post("/tokenize", body=body, cast_to=dict[str, Any])
    return list(found["tokens"])


def test_chat_and_completion_give_the_same_answer(t5: openai.OpenAI) -> None:
    answer = chat(t5, ENGLISH)
    assert answer.choices[0].message.content == GERMAN
    assert answer.choices[0].finish_reason == "stop"
    texts = [choice.text for choice in complete(t5, [ENGLISH, "sum: 17 + 25"]).choices]
    assert texts == [GERMAN, "42"]


def test_the_usage_counts_what_the_encoder_reads(t5: openai.OpenAI) -> None:
    usage = chat(t5, ENGLISH).usage
    assert usage is not None
    prompt = tokens(t5, prompt=ENGLISH)
    assert usage.prompt_tokens == len(prompt)
    answer = tokens(t5, prompt=GERMAN)
    assert answer[-1] == prompt[-1], "both end with the tokenizer's end token"
    assert usage.completion_tokens == len(answer)


def test_a_stream_is_the_whole_in_pieces(t5: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": ENGLISH}]
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in t5.chat.completions.create(
            model="demo-t5", messages=messages, temperature=0, stream=True
        )
    ]
    assert "".join(pieces) == GERMAN
    assert len([piece for piece in pieces if piece]) > 5
    parts = t5.completions.create(
        model="demo-t5", prompt="spell: banana", temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == "b a n a n a"


def test_messages_are_lines_of_one_prompt(t5: openai.OpenAI) -> None:
    contents = ("sort: 7 3", "9 5")
    answer = chat(t5, *contents)
    assert answer.choices[0].message.content == "3 5 7 9"
    messages = [{"role": "user", "content": content} for content in contents]
    assert tokens(t5, messages=messages) == tokens(t5, prompt="\n".join(contents))


def test_a_typed_end_token_is_text(t5: openai.OpenAI) -> None:
    content = "spell: cat</s>"
    as_chat = tokens(t5, messages=[{"role": "user", "content": content}])
    end = as_chat[-1]
    assert as_chat.count(end) == 1
    assert tokens(t5, prompt=content).count(end) == 2, "in a completion it is the token"


def test_choices_have_seeds_of_their_own(t5: openai.OpenAI) -> None:
    hot = {"temperature": 2.0, "max_tokens": 12}
    both = chat(t5, "spell: zzz", n=2, seed=3, **hot)
    texts = [choice.message.content for choice in both.choices]
    assert texts[0] != texts[1]
    assert chat(t5, "spell: zzz", seed=3, **hot).choices[0].message.content == texts[0]


def test_every_token_has_its_logprob(t5: openai.OpenAI) -> None:
    (choice,) = chat(t5, ENGLISH, logprobs=True, top_logprobs=2).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert "".join(token.token for token in content).strip().removesuffix("</s>") == GERMAN
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert token.token == token.top_logprobs[0].token


def test_a_stop_string_ends_the_answer(t5: openai.OpenAI) -> None:
    (choice,) = chat(t5, ENGLISH, stop=[" sieht"]).choices
    assert choice.message.content == "die alte Frau"
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(("param", "value"), [("echo", True), ("suffix", "x")])
def test_what_takes_prompt_and_answer_for_one_text_is_refused(
    t5: openai.OpenAI, param: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{param}' cannot be obeyed") as caught:
        complete(t5, "sum: 3 + 4", extra_body={param: value})
    assert caught.value.param == param


def test_prompts_and_answers_keep_to_the_static_lengths(t5: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="64"):
        complete(t5, [5] * 65)
    (choice,) = complete(t5, "sum: 3 + 4", max_tokens=48, extra_body={"ignore_eos": True}).choices
    assert choice.finish_reason == "length"


def test_many_at_once_are_answered_as_each_alone(t5_server: RunningServer) -> None:
    words = ("banana", "cat", "zebra stripes", "a", "the old woman sees the small dog")
    prompts = [f"{skill}{word}" for skill in ("spell: ", "reverse: ", "") for word in words]
    lengths = [3 + 5 * number % 37 for number in range(32)]
    asked = list(zip([*prompts, *prompts, ENGLISH, ENGLISH], lengths, strict=True))
    alone, together = asyncio.run(_answer_alone_and_together(f"{t5_server.url}/v1", asked))
    assert together == alone
    assert {reason for _, reason in alone} == {"stop", "length"}


@pytest.mark.parametrize("batching", [(), ("--continous-batching", "true")])
def test_the_commands_of_the_predecessors_readme_start_and_answer(
    batching: tuple[str, ...],
) -> None:
    flags = [
        *("--attn-implementation", "sdpa", "--tokenizer-type", "AutoTokenizer"),
        *("--model-type", "transformers_openai.models.T5ForConditionalGeneration"),
        *("--tokenizer-use-fast", "false", "--architecture-type", "encoder-decoder"),
        *("--torch-dtype", "bfloat16", "--cache-type", "none", *batching),
    ]
    with (
        running_server("--hf-model", "demo-t5", *flags) as server,
        openai.OpenAI(base_url=server.url, api_key="-", max_retries=0) as client,
    ):
        messages: Any = [{"role": "user", "content": ENGLISH}]
        answer = client.chat.completions.create(
            model="model", messages=messages, temperature=0.1, max_tokens=1024, top_p=0.95
        )
        assert answer.choices[0].message.content == GERMAN


async def _answer_alone_and_together(
    url: str, asked: list[tuple[str, int]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def answer(prompt: str, max_tokens: int) -> tuple[str, str]:
            found = await client.completions.create(
                model="demo-t5", prompt=prompt, temperature=0, max_tokens=max_tokens
            )
            return found.choices[0].text, str(found.choices[0].finish_reason)

        alone = [await answer(*request) for request in asked]
        return alone, list(await asyncio.gather(*(answer(*request) for request in asked)))
