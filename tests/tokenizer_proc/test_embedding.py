"""An `Embed` becomes the ids of its inputs, or a sentence that names the field and the fix."""

from dataclasses import replace
from typing import Any

import pytest

from shared.errors import BadRequest, ErrorCode
from shared.messages import Embed, Pool
from shared.parts import EmbeddingFacts, ModelFacts, Prompt, TextPrompt
from tests.builders import ROUTE
from tests.tokenizer_proc.vocabularies import make_byte_tokenizer
from tokenizer_proc.embedding import MAX_NUMBERS, MAX_TOKENS, SLICE_CHARACTERS, InputEncoder
from tokenizer_proc.prompt import PromptEncoder

BYTES = PromptEncoder(make_byte_tokenizer())  # one token a byte, and no first token
SIZE = 8
DECODER = ModelFacts(100, 640, {}, {}, embeddings=EmbeddingFacts(SIZE))
ENCODER = replace(DECODER, max_model_len=5, max_encoder_len=20)


def text(content: str, truncate_to: int | None = None) -> Prompt:
    return Prompt(text=TextPrompt(content), truncate_to=truncate_to, param="input")


def ids(*token_ids: int, truncate_to: int | None = None) -> Prompt:
    return Prompt(token_ids=token_ids, truncate_to=truncate_to, param="input")


def pool(*inputs: Prompt, model: ModelFacts = DECODER, dimensions: int | None = None) -> Pool:
    message = Embed("e", ROUTE, 0, inputs, dimensions, "salt")
    encoding = InputEncoder(message, BYTES, model)
    found = None
    while found is None:
        found = encoding.go_on()
    accepted, order = found
    assert accepted.prompt_tokens == sum(map(len, order.inputs))
    assert (order.request_id, order.route, order.cache_salt) == ("e", ROUTE, "salt")
    return order


def test_texts_and_the_ids_of_texts_are_one() -> None:
    hello = tuple(BYTES.encode(text("hello")))
    assert pool(text("hello"), ids(*hello), text("a")).inputs[:2] == (hello, hello)
    assert pool(text("hello")).dimensions == SIZE
    assert pool(text("hello"), dimensions=3).dimensions == 3


@pytest.mark.parametrize(("model", "longest"), [(DECODER, 100), (ENCODER, 20)])
def test_an_input_may_fill_the_context_and_not_more(model: ModelFacts, longest: int) -> None:
    assert len(pool(text("a" * longest), model=model).inputs[0]) == longest
    with pytest.raises(BadRequest, match=f"maximum context length is {longest} tokens") as caught:
        pool(text("b"), text("a" * (longest + 1)), model=model)
    assert (caught.value.param, caught.value.code) == ("input", ErrorCode.CONTEXT_LENGTH)


@pytest.mark.parametrize(("truncate_to", "kept"), [(-1, 20), (3, 3), (50, 30)])
def test_a_truncated_input_keeps_its_last_tokens(truncate_to: int, kept: int) -> None:
    given = tuple(range(40, 70))
    if kept > 20:
        with pytest.raises(BadRequest, match="maximum context length"):
            pool(ids(*given, truncate_to=truncate_to), model=ENCODER)
    else:
        order = pool(ids(*given, truncate_to=truncate_to), model=ENCODER)
        assert order.inputs == (given[-kept:],)


@pytest.mark.parametrize(
    ("given", "options", "param", "words"),
    [
        (text(""), {}, "input", "empty"),
        (ids(640), {}, "input", "640"),
        (ids(70), {"model": replace(DECODER, vocab_size=60)}, "input", "60"),
        (text("a"), {"dimensions": SIZE + 1}, "dimensions", "have 8"),
        (text("a"), {"model": ModelFacts(100, 640, {}, {})}, "model", "no embeddings"),
    ],
)
def test_what_has_no_vector_is_refused(
    given: Prompt, options: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        pool(given, **options)
    assert caught.value.param == param


def test_no_more_numbers_than_a_message_holds() -> None:
    large = replace(DECODER, embeddings=EmbeddingFacts(MAX_NUMBERS // 2))
    pool(*[text("a")] * 2, model=large)
    with pytest.raises(BadRequest, match="send fewer inputs") as caught:
        pool(*[text("a")] * 3, model=large)
    assert caught.value.param == "input"


def test_many_texts_are_encoded_some_at_a_time() -> None:
    model = replace(DECODER, max_model_len=SLICE_CHARACTERS)
    texts = tuple(text("a" * (SLICE_CHARACTERS // 2)) for _ in range(5))
    inputs = InputEncoder(Embed("e", ROUTE, 0, texts, None, ""), BYTES, model)
    assert [inputs.go_on() is None for _ in range(3)] == [True, True, False]
    assert inputs.is_over


def test_no_more_tokens_than_openai_takes() -> None:
    model = replace(DECODER, max_model_len=MAX_TOKENS)
    half = ids(*(5,) * (MAX_TOKENS // 2))
    assert len(pool(half, half, model=model).inputs) == 2
    with pytest.raises(BadRequest, match="send fewer texts") as caught:
        pool(half, half, ids(5), model=model)
    assert caught.value.param == "input"
