"""Chat completions through a real server: bytes, the official client, failures, leaving."""

import contextlib
import json
import socket
import threading
from typing import Any

import httpx
import openai
import pytest

from frontend import pulse
from shared.errors import ErrorCode
from shared.messages import RequestFailed
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.fakes import PROMPT_TOKENS, make_text
from tests.waiting import wait_until


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


def test_official_client_whole(ready: RunningServer) -> None:
    answer = ready.openai.chat.completions.create(model="org/tiny", messages=user("say Hel|lo"))
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "org/tiny"
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.total_tokens == PROMPT_TOKENS + 2
    assert answer._request_id


def test_official_client_stream(ready: RunningServer) -> None:
    chunks = list(
        ready.openai.chat.completions.create(
            model="model",
            messages=user("say Hel|lo"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.delta.role is None for chunk in chunks[1:] for c in chunk.choices)
    assert "".join(c.delta.content or "" for x in chunks for c in x.choices) == "Hello"
    reasons = [c.finish_reason for x in chunks for c in x.choices if c.finish_reason]
    assert reasons == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


def test_bytes_of_a_stream(ready: RunningServer) -> None:
    response = ready.chat("say Hel|lo", stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert b"\r" not in response.content
    events = response.content.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: ") for event in events)
    assert events[-1] == b"data: [DONE]"
    assert not any("usage" in json.loads(event[6:]) for event in events[:-1])


def test_the_connection_is_reused(ready: RunningServer) -> None:
    for content in ("say a", "say b"):
        response = ready.chat(content, stream=True)
        assert response.headers.get("connection") != "close"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_tokenizer_is_a_real_status(ready: RunningServer, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as caught:
        ready.openai.chat.completions.create(model="model", messages=user("refuse"), stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_failure_inside_a_stream(ready: RunningServer) -> None:
    lines = ready.chat("break abc", stream=True).content.decode().split("\n\n")
    assert "abc" in lines[1]
    assert json.loads(lines[2][6:])["error"]["message"] == "It broke."
    assert lines[3:] == ["data: [DONE]", ""]
    stream = ready.openai.chat.completions.create(
        model="model", messages=user("break abc"), stream=True
    )
    with pytest.raises(openai.APIError, match="It broke"):
        list(stream)


def test_a_failure_before_the_first_byte(ready: RunningServer) -> None:
    response = ready.chat("break abc")
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["code"] == "internal_error"


def open_request(ready: RunningServer, content: str, **values: Any) -> tuple[socket.socket, str]:
    """Sends a request over a socket of our own, so that leaving is a plain close."""
    num_before = len(ready.mailbox.requests)
    body = json.dumps({"messages": user(content), **values}).encode()
    host, port = ready.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=10)
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    wait_until(lambda: len(ready.mailbox.requests) > num_before, 5)
    return client, ready.mailbox.requests[-1].request_id


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["start abc", "hang"])
def test_leaving_aborts(ready: RunningServer, content: str, stream: bool) -> None:
    client, request_id = open_request(ready, content, stream=stream)
    if stream and content != "hang":
        assert b"200 OK" in client.recv(4096)
    client.close()
    wait_until(lambda: request_id in ready.mailbox.aborted(), 5)
    assert (request_id in ready.mailbox.aborted("tokenizer-0")) == (content == "hang")
    wait_until(lambda: ready.metric("transformers_openai_api:open_requests") == 0, 5)


def test_the_official_client_leaves_mid_stream(ready: RunningServer) -> None:
    stream = ready.openai.chat.completions.create(
        model="model", messages=user("start abc"), stream=True
    )
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    request_id = ready.mailbox.requests[-1].request_id
    stream.close()
    wait_until(lambda: request_id in ready.mailbox.aborted(), 5)


def fill_the_connection(ready: RunningServer, request_id: str) -> list[str]:
    """Sends more than the kernel's buffers hold, one write a turn of the loop."""
    texts = [letter * 1_000_000 for letter in "bcdefghijklmnopqrstu"]
    for seq, text in enumerate(texts, start=1):
        ready.mailbox.deliver(make_text(request_id, seq, text))
        ready.http.get("/live")
    return texts


def test_a_client_that_reads_nothing_is_let_go() -> None:
    with serving(write_timeout=0.2) as running:
        client, request_id = open_request(running, "start abc", stream=True)
        with contextlib.closing(client):
            fill_the_connection(running, request_id)
            wait_until(lambda: request_id in running.mailbox.aborted(), 5)


def test_a_client_that_reads_late_gets_all_of_it_in_order(ready: RunningServer) -> None:
    client, request_id = open_request(ready, "start a", stream=True)
    texts = fill_the_connection(ready, request_id)
    ready.mailbox.deliver(make_text(request_id, len(texts) + 1, "z", finish="stop"))
    found = ""
    with contextlib.closing(client), client.makefile("rb") as lines:
        while (line := lines.readline()) != b"data: [DONE]\n":
            if line.startswith(b"data: {"):
                delta = json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]
                found += delta.get("content", "")
    assert found == "".join(["a", *texts, "z"])


def test_leaving_while_a_write_is_stuck_aborts(ready: RunningServer) -> None:
    client, request_id = open_request(ready, "start abc", stream=True)
    fill_the_connection(ready, request_id)
    assert request_id not in ready.mailbox.aborted()
    client.close()
    wait_until(lambda: request_id in ready.mailbox.aborted(), 5)


def test_text_that_comes_while_a_stream_is_open_is_sent(ready: RunningServer) -> None:
    client, request_id = open_request(ready, "start abc", stream=True)
    with contextlib.closing(client), client.makefile("rb") as lines:
        found = b""
        while b"abc" not in found:
            found += lines.readline()
        ready.mailbox.deliver(make_text(request_id, 1, "def", finish="length"))
        while b"[DONE]" not in found:
            found += lines.readline()
    assert b'"content":"def"' in found
    assert b'"finish_reason":"length"' in found


def test_a_silent_stream_is_kept_alive(
    ready: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "KEEP_ALIVE_SECONDS", 0.05)
    client, request_id = open_request(ready, "start abc", stream=True)
    with contextlib.closing(client), client.makefile("rb") as lines:
        while lines.readline() != b": keep-alive\n":
            pass
        ready.mailbox.deliver(RequestFailed(request_id, ErrorCode.INTERNAL, "enough", None))


def test_fields_that_nobody_knows_are_named(ready: RunningServer) -> None:
    response = ready.chat("say a", foo=1, user="u")
    assert response.headers["x-ignored-fields"] == "foo"
    assert "x-ignored-fields" not in ready.chat("say a").headers
    assert ready.chat("say a", foo=1, stream=True).headers["x-ignored-fields"] == "foo"


def test_bare_path_and_trailing_slash(ready: RunningServer) -> None:
    body = {"messages": user("say a")}
    for path in ("/chat/completions", "/v1/chat/completions/", "//v1//chat/completions"):
        assert ready.http.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", {}, 400, None),
        (b"[" * 100_000, {}, 400, None),
        (b'{"messages": []}', {}, 400, "empty_array"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "model": "no"}',
            {},
            404,
            "model_not_found",
        ),
        (
            b"x=1",
            {"content-type": "application/x-www-form-urlencoded"},
            415,
            "unsupported_media_type",
        ),
        (b" " * (4 * 1024 * 1024 + 1), {}, 413, "request_too_large"),
    ],
    ids=["json", "depth", "empty", "model", "type", "size"],
)
def test_refusals(
    ready: RunningServer, content: bytes, headers: dict[str, str], status: int, code: str | None
) -> None:
    response = ready.http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers["x-request-id"]


def test_a_body_without_a_type_is_json(ready: RunningServer) -> None:
    request = httpx.Request(
        "POST", f"{ready.url}/v1/chat/completions", content=json.dumps({"messages": user("say a")})
    )
    assert "content-type" not in request.headers
    assert ready.http.send(request).status_code == 200


def test_many_at_once_get_their_own_answers(ready: RunningServer) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        body = {"messages": user(f"say {number}|!"), "stream": bool(number % 2)}
        found[number] = httpx.post(f"{ready.url}/chat/completions", json=body, timeout=10).text

    threads = [threading.Thread(target=ask, args=(1000 + n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert all(str(number) in text for number, text in found.items())
