"""A real server on a loopback port, its other rooms played by a script."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from frontend import server
from shared.config import FrontendConfig, ModelConfig
from shared.errors import ErrorCode
from shared.messages import CreditGranted, Stop
from tests.frontend.bench import Bench
from tests.frontend.fakes import ScriptedMailbox, make_book, make_report
from tests.waiting import wait_until

MODEL = "org/tiny"


@dataclass
class RunningServer:
    """The server's thread, its mailbox, and clients for it."""

    mailbox: ScriptedMailbox
    thread: threading.Thread
    url: str
    http: httpx.Client

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key="none",
            max_retries=0,
            http_client=self.http,  # type: ignore[arg-type]  # httpx works too
        )

    def chat(self, content: str, **values: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **values}
        return self.http.post("/v1/chat/completions", json=body)

    def metric(self, name: str) -> float:
        text = self.http.get("/metrics").text
        return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith(f"{name}{{"))


def start_server(*, model: str = MODEL, max_concurrent: int = 8, **flags: Any) -> RunningServer:
    """The server with these flags of `FrontendConfig`; its other rooms have not started."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    mailbox = ScriptedMailbox()
    config = FrontendConfig(
        identity=mailbox.identity,
        socket_fd=listener.detach(),
        sheet_fd=os.memfd_create("sheet"),
        model=ModelConfig(hf_model=model),
        max_concurrent=max_concurrent,
        **flags,
    )
    thread = threading.Thread(target=server.run, args=(config, mailbox))
    thread.start()
    wait_until(lambda: mailbox.is_ready.is_set() or not thread.is_alive(), 10)
    assert mailbox.is_ready.is_set()
    url = f"http://127.0.0.1:{port}"
    return RunningServer(mailbox, thread, url, httpx.Client(base_url=url, timeout=10))


def stop_server(running: RunningServer) -> None:
    running.http.close()
    running.mailbox.deliver(Stop(ErrorCode.SHUTTING_DOWN, "The server is shutting down."))
    running.thread.join(10)
    assert not running.thread.is_alive()
    running.mailbox.close()


@contextlib.contextmanager
def serving(**flags: Any) -> Iterator[RunningServer]:
    """A server with these flags that can answer."""
    running = start_server(**flags)
    try:
        running.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 9), make_report(1))
        wait_until(lambda: running.http.get("/health").status_code == 200, 5)
        yield running
    finally:
        stop_server(running)


@pytest.fixture
def loading() -> Iterator[RunningServer]:
    """A server whose other rooms have not started."""
    running = start_server(max_concurrent=2, max_queue=0, stall_timeout=0.2)
    yield running
    stop_server(running)


@pytest.fixture(scope="module")
def ready() -> Iterator[RunningServer]:
    """A server that can answer; shared, so a test leaves no request open."""
    running = start_server()
    running.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 4), make_report(1))
    yield running
    stop_server(running)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An engine client before three ready rooms."""
    made = Bench()
    yield made
    made.mailbox.close()
