"""`/v1/embeddings`: what is asked of the rooms, and what comes back."""

import base64
import json
import threading
from array import array
from typing import Any

import httpx
import pytest

from frontend import translate
from frontend.schemas import MAX_INPUTS
from frontend.submission import Embedding
from shared.errors import BadRequest, ErrorCode, RequestError
from shared.messages import CreditGranted, Embed, Pooled, PromptAccepted, RequestFailed
from shared.parts import Prompt, Route, TextPrompt
from tests.frontend.bench import Bench
from tests.frontend.conftest import RunningServer
from tests.frontend.fakes import make_book
from tests.frontend.test_translate import MODEL
from tests.waiting import wait_until

PATH = "/v1/embeddings"


def embedding(**given: Any) -> tuple[Embedding, bool, str]:
    return translate.embedding(json.dumps(given).encode(), MODEL)


def text(content: str) -> Prompt:
    return Prompt(text=TextPrompt(content), param="input")


def ids(*token_ids: int) -> Prompt:
    return Prompt(token_ids=token_ids, param="input")


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", (text("a"),)),
        (["a", "b"], (text("a"), text("b"))),
        ([1, 2], (ids(1, 2),)),
        ([[1, 2], [3]], (ids(1, 2), ids(3))),
        (["a", [3]], (text("a"), ids(3))),
    ],
)
def test_one_or_several_texts_or_the_ids_of_texts(given: Any, inputs: tuple[Prompt, ...]) -> None:
    wanted, is_base64, ignored = embedding(input=given)
    assert wanted == Embedding(inputs, None, "")
    assert not is_base64, "OpenAI's default"
    assert ignored == ""


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a", "messages": []}, "messages"),
        ({"input": "a", "truncate": True}, "truncate"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_field(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embedding(**given)
    assert caught.value.param == param


def test_as_many_inputs_as_openai_takes() -> None:
    assert len(embedding(input=["a"] * MAX_INPUTS)[0].inputs) == MAX_INPUTS


def vectors_of(order: Embed) -> bytes:
    """For input n the vector (n + 0.5, -n - 0.25)."""
    return array("f", [x for n in range(len(order.inputs)) for x in (n + 0.5, -n - 0.25)]).tobytes()


def ask(ready: RunningServer, body: dict[str, Any], *, early: bool = False) -> httpx.Response:
    """The response, after the rooms have been asked and have answered."""
    before = len(ready.mailbox.sent)
    responses: list[httpx.Response] = []
    post = threading.Thread(target=lambda: responses.append(ready.http.post(PATH, json=body)))
    post.start()
    wait_until(lambda: len(ready.mailbox.sent) > before, 5)
    _, order = ready.mailbox.sent[before]
    assert isinstance(order, Embed)
    assert order.route == Route(0, 1, None)
    accepted = PromptAccepted(order.request_id, 5, None)
    pooled = Pooled(order.request_id, 0, 1, vectors_of(order))
    messages = (pooled, accepted) if early else (accepted, pooled)
    ready.mailbox.deliver(*messages, CreditGranted("tokenizer-0", 1, 1))
    post.join(5)
    return responses[0]


@pytest.mark.parametrize("early", [False, True])
def test_vectors_come_in_the_order_of_their_inputs(ready: RunningServer, early: bool) -> None:
    body = {"input": ["a", "b", "c"], "model": "model", "user": "u"}
    response = ask(ready, body, early=early)
    assert response.status_code == 200
    assert response.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": n, "embedding": [n + 0.5, -n - 0.25]} for n in range(3)
        ],
        "model": "org/tiny",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    assert "x-ignored-fields" not in response.headers


def test_base64_is_of_little_endian_float32(ready: RunningServer) -> None:
    response = ask(ready, {"input": ["a", "b"], "encoding_format": "base64", "foo": 1})
    found = [base64.b64decode(entry["embedding"]) for entry in response.json()["data"]]
    assert found == [array("f", (0.5, -0.25)).tobytes(), array("f", (1.5, -1.25)).tobytes()]
    assert response.headers["x-ignored-fields"] == "foo"


def test_the_rooms_are_told_what_is_wanted(ready: RunningServer) -> None:
    ask(ready, {"input": [1, 2], "dimensions": 2, "cache_salt": "mine"})
    order = [m for _, m in ready.mailbox.sent if isinstance(m, Embed)][-1]
    assert (order.inputs, order.dimensions, order.cache_salt) == ((ids(1, 2),), 2, "mine")


def test_a_refusal_of_the_tokenizer_is_the_answer(ready: RunningServer) -> None:
    responses: list[httpx.Response] = []
    before = len(ready.mailbox.sent)
    post = threading.Thread(
        target=lambda: responses.append(ready.http.post(PATH, json={"input": "a"}))
    )
    post.start()
    wait_until(lambda: len(ready.mailbox.sent) > before, 5)
    _, order = ready.mailbox.sent[before]
    assert isinstance(order, Embed)
    failed = RequestFailed(order.request_id, ErrorCode.UNSUPPORTED_PARAMETER, "None.", "model")
    ready.mailbox.deliver(failed, CreditGranted("tokenizer-0", 1, 1))
    post.join(5)
    assert responses[0].status_code == 400
    assert responses[0].json()["error"]["param"] == "model"


def test_the_metrics_count_it_as_a_request(ready: RunningServer) -> None:
    name = "vllm:request_success_total"
    before = ready.metric(name)
    ask(ready, {"input": "a"})
    assert ready.metric(name) == before + 1


def num_open(bench: Bench) -> float:
    return bench.value("transformers_openai_api:open_requests")


def test_embeddings_leave_places_to_answers(bench: Bench) -> None:
    wanted, _, _ = embedding(input="a")
    held = [bench.engine.submit(wanted) for _ in range(2)]  # half of the places
    with pytest.raises(RequestError, match="at most 2 requests for embeddings") as caught:
        bench.engine.submit(wanted)
    assert caught.value.code == ErrorCode.QUEUE_FULL
    bench.submit(2)
    with held[0]:
        pass  # its caller leaves
    bench.engine.submit(wanted)


def test_vectors_may_take_longer_than_a_first_token() -> None:
    bench = Bench(first_token_timeout=5.0)
    wanted, _, _ = embedding(input="a")
    bench.engine.submit(wanted)
    bench.now = 50.0
    bench.engine.sweep()
    assert num_open(bench) == 1
    bench.now = 101.0  # beyond --request-timeout
    bench.engine.sweep()
    assert num_open(bench) == 0
    bench.mailbox.close()


@pytest.mark.parametrize("room", ["worker-0", "tokenizer-0"])
def test_the_death_of_a_room_that_has_it_ends_it_and_another_does_not(
    bench: Bench, room: str
) -> None:
    wanted, _, _ = embedding(input="a")
    bench.engine.submit(wanted)
    bench.arrive(make_book({"detokenizer-0": 2}))
    assert num_open(bench) == 1
    bench.arrive(make_book({"detokenizer-0": 2, room: 2}))
    assert num_open(bench) == 0


def test_vectors_of_another_life_of_the_worker_are_not_taken(bench: Bench) -> None:
    wanted, _, _ = embedding(input="a")
    bench.engine.submit(wanted)
    (order,) = [m for m in bench.mailbox.sent_to("tokenizer-0") if isinstance(m, Embed)]
    bench.arrive(Pooled(order.request_id, 0, 2, vectors_of(order)))
    assert num_open(bench) == 0
    assert bench.value("vllm:request_success_total", finished_reason="error") == 1
