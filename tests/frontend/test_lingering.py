"""Refusals that come before the body: they are answered at once, and the answer is not lost."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from frontend import lingering
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.test_connection import connected, error_of, read_until

CLOSING = [b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0"]
SHORT = 0.2  # seconds
LARGE = b"x" * 3_000_000


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    with serving(api_key="sk-first") as running:
        yield running


def post(version: bytes, length: int, path: bytes = b"/v1/chat/completions") -> bytes:
    return (
        b"POST %s %s\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % (path, version, length)
    )


def read_all(client: socket.socket) -> bytes:
    """All bytes until the server closes; a reset raises ConnectionError."""
    found = b""
    while data := client.recv(65536):
        found += data
    return found


@pytest.mark.parametrize("version", CLOSING)
def test_an_answer_before_a_large_body_is_not_lost(keyed: RunningServer, version: bytes) -> None:
    for _ in range(5):
        with connected(keyed) as client:
            client.sendall(post(version, len(LARGE)) + LARGE)
            assert error_of(read_all(client)) == (b"401", "invalid_api_key")


@pytest.mark.parametrize("version", CLOSING)
def test_the_answer_does_not_wait_for_the_body(keyed: RunningServer, version: bytes) -> None:
    with connected(keyed) as client:
        client.sendall(post(version, len(LARGE)))
        head, _, body = read_until(client, b"}}").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401 ")
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
        client.sendall(LARGE)
        assert read_all(client) == b""


def test_a_body_that_does_not_come_is_waited_for_only_a_moment(
    keyed: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "LINGER_SECONDS", SHORT)
    started = time.monotonic()
    with connected(keyed) as client:
        client.sendall(post(CLOSING[0], 1000) + b"{")
        assert error_of(read_all(client)) == (b"401", "invalid_api_key")
    assert time.monotonic() - started >= SHORT


def test_a_connection_that_stays_open_serves_on_after_an_early_answer(keyed: RunningServer) -> None:
    with connected(keyed) as client:
        client.sendall(post(b"HTTP/1.1", len(LARGE)))
        assert read_until(client, b"}}").startswith(b"HTTP/1.1 401 ")
        client.sendall(LARGE + b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_until(client, b'"ok"}').startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", CLOSING)
def test_whole_answers_close_at_once(
    ready: RunningServer, monkeypatch: pytest.MonkeyPatch, version: bytes, stream: bool
) -> None:
    monkeypatch.setattr(lingering, "LINGER_SECONDS", 60.0)  # longer than a client here waits
    messages = [{"role": "user", "content": "say abc"}]
    body = json.dumps({"messages": messages, "stream": stream}).encode()
    with connected(ready) as client:
        client.sendall(post(version, len(body)) + body)
        assert b'"content":"abc"' in read_all(client)
