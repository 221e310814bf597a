"""The example client against the demo server, and against answers that go wrong half-way."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import example_client
from tests.e2e.server import ROOT, RunningServer

pytestmark = pytest.mark.e2e
MODELS = b'{"object":"list","data":[{"id":"m"}]}'
ANSWER = b'{"choices":[{"message":{"content":"whole"}}]}'


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The client as a user starts it."""
    command = [sys.executable, str(ROOT / "example_client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def canned_server(stream: bytes) -> Iterator[str]:
    """A server whose every stream consists of these bytes; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(MODELS)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["content-length"]))
            self.reply(stream if b'"stream": true' in asked else ANSWER)

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing: what the client prints is what is looked at."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_model_answers_whole_and_as_a_stream(demo_server: RunningServer) -> None:
    done = run_client("--base-url", demo_server.url, "--prompt", "What is 17 + 25?")
    assert done.returncode == 0, done.stderr
    models, answer, stream = done.stdout.splitlines()
    assert models == "Models: demo"
    assert "42" in answer
    assert answer.removeprefix("Answer: ") == stream.removeprefix("Stream: ")


def test_the_address_of_the_api_is_understood_too(demo_server: RunningServer) -> None:
    assert example_client.Client(f"{demo_server.url}/v1/", "any").models() == ["demo"]


def test_a_refusal_is_shown_in_the_servers_own_words(demo_server: RunningServer) -> None:
    client = example_client.Client(demo_server.url, "")
    refused = pytest.raises(example_client.ServerRefusal, match="404: The model 'nobody' does not")
    with refused:
        client.answer("nobody", "Hello")


def test_without_a_server_one_sentence_says_so() -> None:
    with canned_server(b"") as gone:
        pass
    done = run_client("--base-url", gone)
    assert done.returncode == 1
    assert done.stderr == f"No server answers at {gone}: start one, or give another --base-url.\n"


def test_a_failure_inside_a_stream_is_an_error_and_no_answer() -> None:
    begun = b'data: {"choices":[{"delta":{"content":"Half"}}]}\n\n'
    failed = b'data: {"error":{"message":"The server is shutting down."}}\n\ndata: [DONE]\n\n'
    with canned_server(begun + failed) as url:
        done = run_client("--base-url", url)
    assert done.stdout.endswith("Stream: Half")
    assert done.stderr == "The server said: The server is shutting down.\n"
    assert done.returncode == 1


def test_a_stream_that_only_breaks_off_is_no_answer() -> None:
    with canned_server(b'data: {"choices":[{"delta":{"content":"Half"}}]}\n\n') as url:
        done = run_client("--base-url", url)
    assert "not complete" in done.stderr
    assert done.returncode == 1


def test_events_end_at_an_empty_line_and_comments_are_passed_over() -> None:
    lines = iter([b": keep-alive", b"", b"event: x", b"data: a", b"data:b", b"", b"data: cut"])
    assert list(example_client.events(lines)) == ["a\nb"]
