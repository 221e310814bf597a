"""Several answers to one prompt, through a real server and the official client."""

import json
from collections import defaultdict
from typing import Any

import openai
import pytest

from shared.messages import Abort, CreditGranted
from tests.frontend.conftest import RunningServer
from tests.frontend.fakes import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    Piece,
    make_book,
    make_report,
    make_texts,
)
from tests.frontend.test_chat_over_http import open_request, user
from tests.waiting import wait_until

TWO_ANSWERS = "say Hel|lo/Good| |bye"
USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": 5,
    "total_tokens": PROMPT_TOKENS + 5,
    "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


def test_whole_answers_in_the_order_of_their_choices(ready: RunningServer) -> None:
    answer = ready.openai.chat.completions.create(
        model="model", messages=user(TWO_ANSWERS), n=2, extra_body={"cache_salt": "mine"}
    )
    found = [(c.index, c.message.content, c.finish_reason) for c in answer.choices]
    assert found == [(0, "Hello", "stop"), (1, "Good bye", "stop")]
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == USAGE
    request = ready.mailbox.requests[-1]
    assert (request.num_choices, request.cache_salt) == (2, "mine")


def test_streamed_answers_each_have_one_role_and_one_end(ready: RunningServer) -> None:
    chunks = list(
        ready.openai.chat.completions.create(
            model="model",
            messages=user(TWO_ANSWERS),
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *body, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.model_dump(exclude_none=True) == USAGE
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in body)
    by_index: dict[int, list[Any]] = defaultdict(list)
    for chunk in body:
        by_index[chunk.choices[0].index].append(chunk.choices[0])
    assert sorted(by_index) == [0, 1]
    for index, text in enumerate(("Hello", "Good bye")):
        choices = by_index[index]
        assert [c.delta.role for c in choices] == ["assistant", *[None] * (len(choices) - 1)]
        assert "".join(c.delta.content or "" for c in choices) == text
        assert [c.finish_reason for c in choices] == [*[None] * (len(choices) - 1), "stop"]


def test_n_of_one_and_null_are_one_answer(ready: RunningServer) -> None:
    for n in (1, None):
        assert len(ready.chat("say a", n=n).json()["choices"]) == 1


def test_a_failure_inside_a_stream_of_several_ends_it_once(ready: RunningServer) -> None:
    events = ready.chat("break a/b", n=2, stream=True).content.decode().split("\n\n")
    bodies = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "error" in bodies[-1]
    assert sum("error" in body for body in bodies) == 1
    assert not any(c["finish_reason"] for body in bodies[:-1] for c in body["choices"])
    assert events[-2:] == ["data: [DONE]", ""]
    assert ready.chat("break a/b", n=2).status_code == 500


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_aborts_all_answers_with_one_word(ready: RunningServer, stream: bool) -> None:
    client, request_id = open_request(ready, "start abc", n=3, stream=stream)
    ready.mailbox.deliver(make_texts(request_id, Piece(1, 1, "end of one", "stop")))
    client.close()
    wait_until(lambda: request_id in ready.mailbox.aborted(), 5)
    wait_until(lambda: ready.metric("transformers_openai_api:open_requests") == 0, 5)
    aborts = [m for m in ready.mailbox.sent_to("worker-0") if isinstance(m, Abort)]
    assert [abort for abort in aborts if abort.request_id == request_id] == [Abort(request_id)]


@pytest.mark.parametrize("n", [0, -1, 9, 129, 10**30, 1.5, True, "2", [1]])
def test_a_number_of_answers_that_cannot_be(ready: RunningServer, n: Any) -> None:
    """The server allows eight at a time."""
    error = ready.chat("say a", n=n).json()["error"]
    assert (error["param"], error["type"]) == ("n", "invalid_request_error")


def test_more_answers_than_the_server_ever_takes_is_not_a_reason_to_try_again(
    ready: RunningServer,
) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 8") as caught:
        ready.openai.chat.completions.create(model="model", messages=user("say a"), n=9)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "n")
    assert len(ready.chat("say a", n=8).json()["choices"]) == 8


def test_answers_that_do_not_all_fit_are_refused_together(loading: RunningServer) -> None:
    """The server allows two at a time, and one is under way."""
    loading.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 9), make_report(1))
    wait_until(lambda: loading.http.get("/health").status_code == 200, 5)
    client, _ = open_request(loading, "hang")
    response = loading.chat("say a", n=2)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"
    assert len(loading.chat("say a").json()["choices"]) == 1
    client.close()
    wait_until(lambda: loading.metric("transformers_openai_api:open_requests") == 0, 5)
    assert len(loading.chat("say a", n=2).json()["choices"]) == 2
