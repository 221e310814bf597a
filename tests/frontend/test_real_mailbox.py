"""The server on real sockets: arrivals wake it, and its messages reach the other rooms."""

import dataclasses
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from frontend import server
from shared.config import FrontendConfig, Identity
from shared.errors import ErrorCode
from shared.mailbox import Mailbox
from shared.messages import (
    AddressBook,
    CreditGranted,
    Message,
    PromptAccepted,
    RoomReady,
    Stop,
    Tokenize,
)
from shared.parts import Peer
from tests.frontend.fakes import make_text
from tests.waiting import wait_until

Rooms = tuple[Path, Mailbox, Mailbox]  # the directory, the launcher, the others
MessageT = TypeVar("MessageT")


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    """The launcher and one room that plays all three others, on sockets in a short directory."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        launcher = Mailbox(Identity("launcher", 0, 0, directory))
        tokenizer = Mailbox(Identity("tokenizer", 0, 1, directory))
        yield Path(directory), launcher, tokenizer
        launcher.close()
        tokenizer.close()


def next_message(mailbox: Mailbox, kind: type[MessageT]) -> MessageT:
    found: list[Message] = []

    def has_arrived() -> bool:
        found.extend(mailbox.receive(0.0))
        return bool(found)

    wait_until(has_arrived, 5)
    return next(message for message in found if isinstance(message, kind))


def run_frontend(config: FrontendConfig) -> None:
    mailbox = Mailbox(config.identity)
    mailbox.join()
    server.run(config, mailbox)
    mailbox.close()


def test_one_request_and_the_end(rooms: Rooms) -> None:
    directory, launcher, tokenizer = rooms
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    identity = Identity("frontend", 0, 1, str(directory))
    sheet = os.memfd_create("sheet")
    config = FrontendConfig(identity=identity, socket_fd=listener.detach(), sheet_fd=sheet)
    thread = threading.Thread(target=run_frontend, args=(config,))
    thread.start()
    wait_until(lambda: any(isinstance(m, RoomReady) for m in launcher.receive(0.0)), 10)

    peers = [
        Peer("frontend-0", 1, identity.address, True, None),
        Peer("tokenizer-0", 1, tokenizer.identity.address, True, None),
    ]
    others = [dataclasses.replace(peers[1], room=room) for room in ("worker-0", "detokenizer-0")]
    book = AddressBook((*peers, *others), is_warm=True)
    launcher.update_peers(book)
    tokenizer.update_peers(book)
    launcher.send("frontend-0", book)
    wait_until(lambda: httpx.get(f"{url}/health").status_code == 200, 5)

    tokenizer.send("frontend-0", CreditGranted("tokenizer-0", 1, 1))
    answers: list[httpx.Response] = []
    body = {"messages": [{"role": "user", "content": "hi"}]}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/chat/completions", json=body))
    )
    asking.start()
    request_id = next_message(tokenizer, Tokenize).request_id
    tokenizer.send("frontend-0", PromptAccepted(request_id, 3, None))
    tokenizer.send("frontend-0", make_text(request_id, 0, "Hello", finish="stop"))
    asking.join(5)
    assert answers[0].json()["choices"][0]["message"]["content"] == "Hello"

    launcher.send("frontend-0", Stop(ErrorCode.SHUTTING_DOWN, "bye"))
    thread.join(5)
    assert not thread.is_alive()
