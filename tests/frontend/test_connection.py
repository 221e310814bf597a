"""Connections as a careless or hostile client uses them: bytes over a socket of our own."""

import contextlib
import itertools
import json
import logging
import select
import socket
from collections.abc import Iterator

import pytest

from frontend import connection
from frontend.connection import MAX_HEADER_BYTES, MAX_HEADER_LINES
from shared.errors import ErrorCode
from shared.messages import RequestFailed
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.fakes import make_text
from tests.waiting import wait_until

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SHORT = 0.2  # seconds


@contextlib.contextmanager
def connected(ready: RunningServer) -> Iterator[socket.socket]:
    host, port = ready.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        yield client


def read_to_end(client: socket.socket) -> bytes:
    """All bytes until the server closes; those before it if it aborts."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            found += data
    return found


def read_until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        data = client.recv(65536)
        assert data, found
        found += data
    return found


def ask(ready: RunningServer, data: bytes) -> bytes:
    with connected(ready) as client:
        client.sendall(data)
        return read_to_end(client)


def error_of(answer: bytes) -> tuple[bytes, str]:
    """(status, code) of an answer that closes the connection"""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    assert b"\r\nx-request-id: " in head
    return head.split()[1], json.loads(body)["error"]["code"]


def chat_body(content: str, **values: bool) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **values}).encode()


def padded(num_bytes: int) -> bytes:
    """A header whose request target and lines count so many bytes."""
    rest = len("/live") + len("Host: x\r\n") + len("Connection: close\r\n") + len("A: \r\n")
    return GET + b"Connection: close\r\nA: " + b"a" * (num_bytes - rest) + b"\r\n\r\n"


def with_lines(num_lines: int) -> bytes:
    return GET + b"Connection: close\r\n" + b"A: b\r\n" * (num_lines - 2) + b"\r\n"


@pytest.mark.parametrize("data", [padded(MAX_HEADER_BYTES), with_lines(MAX_HEADER_LINES)])
def test_a_header_within_its_limits(ready: RunningServer, data: bytes) -> None:
    assert ask(ready, data).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data",
    [
        padded(MAX_HEADER_BYTES + 1),
        with_lines(MAX_HEADER_LINES + 1),
        b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\n\r\n",
        POST
        + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"A: b\r\n" * MAX_HEADER_LINES
        + b"\r\n",
    ],
    ids=["bytes", "lines", "target", "trailers"],
)
def test_a_header_beyond_its_limits(ready: RunningServer, data: bytes) -> None:
    assert error_of(ask(ready, data)) == (b"431", "headers_too_large")


@pytest.mark.parametrize(
    "beginning",
    [
        GET + b"A: ",
        b"GET /",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: ",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=",
    ],
    ids=["line", "target", "trailer", "extension"],
)
def test_a_line_that_does_not_end_is_cut_early(ready: RunningServer, beginning: bytes) -> None:
    """Not after the 8 MB: the server stops to read."""
    with connected(ready) as client:
        client.sendall(beginning)
        with pytest.raises(ConnectionError):
            client.sendall(b"a" * 8_000_000)
    assert ready.http.get("/live").status_code == 200


def test_a_line_that_grows_slowly_is_answered(ready: RunningServer) -> None:
    with connected(ready) as client:
        client.sendall(GET + b"A: ")
        while not select.select([client], [], [], 0.05)[0]:
            client.sendall(b"a" * (MAX_HEADER_BYTES // 4))
        assert error_of(read_to_end(client)) == (b"431", "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"],
    ids=["header", "body"],
)
def test_what_is_not_http_gets_an_error_of_the_api(ready: RunningServer, data: bytes) -> None:
    assert error_of(ask(ready, data)) == (b"400", "invalid_value")


def test_an_error_is_never_written_into_another_answer(ready: RunningServer) -> None:
    body = chat_body("hang")
    request = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    assert ask(ready, request + b"nonsense\r\n\r\n") == b""


@pytest.mark.parametrize(
    ("data", "num_answers"),
    [(b"", 0), (b"GET /li", 0), (GET, 0), (b"\r\n", 0), (GET + b"\r\n" + GET, 1)],
    ids=["nothing", "request line", "header", "empty line", "second header"],
)
def test_a_header_that_does_not_come(
    ready: RunningServer, monkeypatch: pytest.MonkeyPatch, data: bytes, num_answers: int
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", SHORT)
    assert ask(ready, data).count(b"HTTP/1.1 200 ") == num_answers


@pytest.fixture
def hasty() -> Iterator[RunningServer]:
    """A server that gives a body little time."""
    with serving(upload_timeout=SHORT) as running:
        yield running


def test_a_body_that_does_not_come(hasty: RunningServer) -> None:
    assert ask(hasty, POST + b'Content-Length: 100\r\n\r\n{"mes') == b""


def test_empty_lines_do_not_hold_an_idle_connection(
    ready: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(ready) as client:
        client.sendall(GET + b"\r\n")
        read_until(client, b'{"status":"ok"}')
        monkeypatch.setattr(connection, "HEADER_SECONDS", SHORT)
        client.sendall(b"\r\n")
        assert read_to_end(client) == b""


def assert_silent(client: socket.socket, seconds: float) -> None:
    """The connection stays open and brings nothing for so long."""
    client.settimeout(seconds)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_what_has_arrived_has_no_deadline(
    hasty: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it is answered, empty lines after it or not, nor between two requests."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", SHORT)
    body = chat_body("start abc")
    with connected(hasty) as client:
        client.sendall(GET + b"\r\n")
        read_until(client, b'{"status":"ok"}')
        assert_silent(client, 2 * SHORT)
        num_before = len(hasty.mailbox.requests)
        client.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        wait_until(lambda: len(hasty.mailbox.requests) > num_before, 5)
        client.sendall(b"\r\n")
        assert_silent(client, 2 * SHORT)


def test_no_deadline_while_we_do_not_read(hasty: RunningServer) -> None:
    """A pipelined request whose body must wait outlives the time of a body."""
    body = chat_body("say " + "x" * 100_000)
    first = chat_body("hang")
    with connected(hasty) as client:
        num_before = len(hasty.mailbox.requests)
        client.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(first), first))
        wait_until(lambda: len(hasty.mailbox.requests) > num_before, 5)
        client.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body[:80_000]))
        client.settimeout(3 * SHORT)
        with pytest.raises(TimeoutError):
            client.recv(1)
        failed = RequestFailed(hasty.mailbox.requests[-1].request_id, ErrorCode.INTERNAL, "x", None)
        hasty.mailbox.deliver(failed)
        client.settimeout(5)
        read_to_end(client)  # the rest of the second body still does not come


def test_pipelined_requests(ready: RunningServer) -> None:
    body = chat_body("say abc")
    post = POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    answer = ask(ready, GET + b"\r\n" + post + GET + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert b'"content":"abc"' in answer


def test_leaving_with_another_request_behind_a_stream_is_no_error(
    ready: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed at a write, because nothing is read while a second request waits."""
    body = chat_body("start abc", stream=True)
    with connected(ready) as client:
        client.sendall(POST + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        read_until(client, b"abc")
        client.sendall(POST + b"Content-Length: 100\r\n\r\n{")
    request_id = ready.mailbox.requests[-1].request_id
    seqs = itertools.count(1)

    def is_aborted_after_more_text() -> bool:
        ready.mailbox.deliver(make_text(request_id, next(seqs), "x"))
        return request_id in ready.mailbox.aborted()

    wait_until(is_aborted_after_more_text, 5)
    wait_until(lambda: ready.metric("transformers_openai_api:open_requests") == 0, 5)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("piece", [1, 65536])
def test_a_large_body_in_any_pieces(ready: RunningServer, piece: int) -> None:
    body = chat_body("say " + "x" * (3_800_000 if piece > 1 else 50))
    with connected(ready) as client:
        client.sendall(POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), piece):
            part = body[start : start + piece]
            client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        client.sendall(b"0\r\n\r\n")
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(answer) > len(body) - 100


def test_expect_continue(ready: RunningServer) -> None:
    body = chat_body("say abc")
    with connected(ready) as client:
        client.sendall(
            POST
            + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert b'"content":"abc"' in read_to_end(client)


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_passed_over_in_silence(
    ready: RunningServer, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: %s\r\n\r\n" % protocol.encode()
    with caplog.at_level(logging.INFO), connected(ready) as client:
        for _ in range(2):
            client.sendall(GET + upgrade)
            assert read_until(client, b'{"status":"ok"}').startswith(b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
