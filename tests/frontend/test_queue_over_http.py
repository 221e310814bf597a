"""The queue and its refusals as clients see them, over real sockets."""

import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from shared.messages import Encode
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.fakes import make_text
from tests.frontend.test_chat_over_http import open_request, user
from tests.frontend.test_connection import POST, connected
from tests.waiting import wait_until

QUEUED = "transformers_openai_api:queued_answers"
OPEN = "transformers_openai_api:open_requests"


@pytest.fixture
def small() -> Iterator[RunningServer]:
    """One answer at a time, and two wait."""
    with serving(max_concurrent=2, max_queue=2, queue_timeout=30.0) as running:
        yield running


def send_later(running: RunningServer, content: str, **values: Any) -> list[httpx.Response]:
    """Asks from another thread; the list holds the answer once it has come."""
    answers: list[httpx.Response] = []
    threading.Thread(target=lambda: answers.append(running.chat(content, **values))).start()
    return answers


@pytest.mark.parametrize("stream", [False, True])
def test_a_queued_request_is_answered_when_its_turn_comes(
    small: RunningServer, stream: bool
) -> None:
    client, request_id = open_request(small, "start a", n=2)
    answers = send_later(small, "say Hel|lo", stream=stream)
    wait_until(lambda: small.metric(QUEUED) == 1, 5)
    assert len(small.mailbox.requests) == 1, "nothing is tokenised that waits"
    for choice in range(2):
        small.mailbox.deliver(make_text(request_id, 1, "b", choice=choice, finish="stop"))
    wait_until(lambda: answers, 5)
    assert answers[0].status_code == 200
    assert "Hel" in answers[0].text
    client.close()


def test_leaving_frees_a_place_and_a_turn(small: RunningServer) -> None:
    running, _ = open_request(small, "hang", n=2)
    body = json.dumps({"messages": user("say a")}).encode()
    with httpx.Client(base_url=small.url) as other, pytest.raises(httpx.ReadTimeout):
        other.post("/v1/chat/completions", content=body, timeout=0.3)  # leaves the queue
    wait_until(lambda: small.metric(QUEUED) == 0 and small.metric(OPEN) == 1, 5)
    answers = send_later(small, "say b")
    wait_until(lambda: small.metric(QUEUED) == 1, 5)
    running.close()
    wait_until(lambda: answers, 5)
    assert answers[0].json()["choices"][0]["message"]["content"] == "b"
    assert len(small.mailbox.requests) == 2, "the one that left the queue was never tokenised"


def test_a_full_queue_refuses_before_the_body_is_read(small: RunningServer) -> None:
    client, _ = open_request(small, "hang", n=2)
    waiting = [send_later(small, "say a") for _ in range(2)]
    wait_until(lambda: small.metric(QUEUED) == 2, 5)
    response = small.http.post(
        "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert response.json()["error"]["code"] == "queue_full"
    seconds = int(response.headers["retry-after-ms"]) / 1000
    assert 2.0 <= seconds <= 60.0, "two wait; one a second is the guess, and none has ended since"
    assert response.headers["retry-after"] == str(math.ceil(seconds))
    ready = small.http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "full")
    assert small.http.get("/health").status_code == 200
    client.close()
    wait_until(lambda: all(waiting), 5)
    assert [answers[0].status_code for answers in waiting] == [200, 200]
    assert small.http.get("/ready").status_code == 200


def test_the_official_client_succeeds_when_it_tries_again(small: RunningServer) -> None:
    client, _ = open_request(small, "hang", n=2)
    waiting = [send_later(small, "say a") for _ in range(2)]
    wait_until(lambda: small.metric(QUEUED) == 2, 5)
    answers: list[str | None] = []

    def ask() -> None:
        retrying = small.openai.with_options(max_retries=2)
        answer = retrying.chat.completions.create(model="model", messages=user("say at last"))
        answers.append(answer.choices[0].message.content)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: small.metric("vllm:admission_rejections_total") == 1, 5)
    client.close()
    thread.join(10)
    assert answers == ["at last"]
    wait_until(lambda: all(waiting), 5)


def test_answers_that_cannot_all_wait_are_refused_together(small: RunningServer) -> None:
    client, _ = open_request(small, "hang", n=2)
    waiting = send_later(small, "say a")
    wait_until(lambda: small.metric(QUEUED) == 1, 5)
    with pytest.raises(openai.RateLimitError) as caught:
        small.openai.chat.completions.create(model="model", messages=user("say a"), n=2)
    assert caught.value.code == "queue_full"
    client.close()
    wait_until(lambda: waiting, 5)


def test_a_place_that_is_not_reached_in_time() -> None:
    with serving(max_concurrent=1, max_queue=2, queue_timeout=0.1) as running:
        client, _ = open_request(running, "hang")
        response = running.chat("say a", stream=True)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert response.json()["error"]["type"] == "service_unavailable_error"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert running.metric(QUEUED) == 0
        client.close()


def test_lookups_need_no_place_and_are_dropped_when_their_caller_leaves(
    small: RunningServer,
) -> None:
    def sent() -> list[str]:
        to_tokenizer = small.mailbox.sent_to("tokenizer-0")
        return [m.request_id for m in to_tokenizer if isinstance(m, Encode)]

    client, _ = open_request(small, "hang", n=2)
    with connected(small) as other:
        body = b'{"prompt":"x"}'
        head = POST.replace(b"/v1/chat/completions", b"/tokenize")
        other.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_until(sent, 5)
    wait_until(lambda: small.mailbox.aborted("tokenizer-0") == sent(), 5)
    client.close()
