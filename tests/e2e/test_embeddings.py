"""Embeddings through the official client: a decoder's last state, and the mean of T5's encoder."""

import asyncio
import base64
import math
from array import array
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.server import RunningServer

pytestmark = pytest.mark.e2e
TEXTS = ["spell: banana", "sum: 17 + 25", "a", "translate English to German: the old woman"]


@pytest.fixture(params=["demo", "demo-t5"])
def served(
    request: pytest.FixtureRequest, demo_server: RunningServer, t5_server: RunningServer
) -> RunningServer:
    """The server on a decoder, and the one on an encoder-decoder."""
    return demo_server if request.param == "demo" else t5_server


@pytest.fixture
def embedder(served: RunningServer) -> Iterator[openai.OpenAI]:
    """The official client, without its retries."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def embed(client: openai.OpenAI, given: Any, **options: Any) -> list[list[float]]:
    """The vectors, after a look at everything around them."""
    found = client.embeddings.create(input=given, model="model", **options)
    assert found.object == "list"
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0
    assert [entry.index for entry in found.data] == list(range(len(found.data)))
    assert all(entry.object == "embedding" for entry in found.data)
    return [entry.embedding for entry in found.data]


def assert_close(one: list[float], other: list[float]) -> None:
    assert len(one) == len(other)
    assert max(abs(x - y) for x, y in zip(one, other, strict=True)) < 1e-6


def test_the_clients_default_is_the_list_of_numbers(embedder: openai.OpenAI) -> None:
    packed = embed(embedder, TEXTS)  # the client asks for base64 and unpacks it
    plain = embed(embedder, TEXTS, encoding_format="float")
    raw = embedder.embeddings.create(input=TEXTS[0], model="model", encoding_format="base64")
    text: Any = raw.data[0].embedding
    assert_close(array("f", base64.b64decode(text)).tolist(), plain[0])
    for one, other in zip(packed, plain, strict=True):
        assert_close(one, other)
        assert math.isclose(math.hypot(*one), 1, abs_tol=1e-5)


def test_each_of_several_is_what_it_is_alone(embedder: openai.OpenAI) -> None:
    together = embed(embedder, TEXTS)
    for number, text in enumerate(TEXTS):
        (alone,) = embed(embedder, text)
        cosine = sum(x * y for x, y in zip(alone, together[number], strict=True))
        assert cosine > 1 - 1e-5
    (first, *rest) = together
    assert all(sum(x * y for x, y in zip(first, other, strict=True)) < 0.999 for other in rest)


def test_the_ids_of_a_text_are_the_text(embedder: openai.OpenAI) -> None:
    ids = [
        embedder.post("/tokenize", body={"prompt": text}, cast_to=dict[str, Any])["tokens"]
        for text in TEXTS[:2]
    ]
    by_text = embed(embedder, TEXTS[:2])
    for one, other in zip(embed(embedder, ids), by_text, strict=True):
        assert_close(one, other)
    assert_close(embed(embedder, ids[0])[0], by_text[0])


def test_dimensions_are_the_first_ones_of_length_one(embedder: openai.OpenAI) -> None:
    (whole,) = embed(embedder, TEXTS[0])
    (short,) = embed(embedder, TEXTS[0], dimensions=5)
    scale = math.hypot(*whole[:5])
    assert_close(short, [number / scale for number in whole[:5]])
    with pytest.raises(openai.BadRequestError, match=f"have {len(whole)}") as caught:
        embed(embedder, TEXTS[0], dimensions=len(whole) + 1)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("given", ["", [], ["a", ""], [[]], [-1], [10**6], ["a", 5]])
def test_what_is_no_text_is_refused(embedder: openai.OpenAI, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        embed(embedder, given)
    assert str(caught.value.param).startswith("input")


def test_an_input_over_the_limit_is_refused_and_can_be_truncated(
    embedder: openai.OpenAI,
) -> None:
    long = "banana " * 3000
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        embed(embedder, ["a", long])
    assert caught.value.code == "context_length_exceeded"
    assert len(embed(embedder, long, extra_body={"truncate_prompt_tokens": -1})) == 1


def test_many_at_once_beside_answers(served: RunningServer) -> None:
    texts = [f"sum: {n} + {n + 1}" for n in range(300)]
    vectors, answers, alone = asyncio.run(_embed_beside_answers(served, texts))
    assert len(vectors) == len(texts)
    assert len(set(answers)) == 1
    assert sum(x * y for x, y in zip(alone, vectors[-1], strict=True)) > 1 - 1e-5


async def _embed_beside_answers(
    served: RunningServer, texts: list[str]
) -> tuple[list[list[float]], list[str | None], list[float]]:
    """All vectors, what was answered meanwhile, and the last text's vector by itself."""
    messages: Any = [{"role": "user", "content": "spell: banana"}]
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        chats = [
            client.chat.completions.create(
                model="model", messages=messages, temperature=0, max_tokens=12
            )
            for _ in range(3)
        ]
        vectors = client.embeddings.create(input=texts, model="model")
        found, answers = await asyncio.gather(vectors, asyncio.gather(*chats))
        alone = await client.embeddings.create(input=texts[-1], model="model")
    return (
        [entry.embedding for entry in found.data],
        [answer.choices[0].message.content for answer in answers],
        alone.data[0].embedding,
    )
