"""Mailboxes over real ipc sockets: what arrives, what is lost, and who notices."""

import gc
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.config import Identity
from shared.errors import ErrorCode, FatalError, WireError
from shared.mailbox import LAUNCHER, Mailbox, unexpected
from shared.messages import Abort, AddressBook, Message, RoomReady, RoomStarted, Stop
from shared.parts import ModelFacts, Peer
from shared.sockets import MAX_PATH_BYTES, Inbox, Outbox

PATIENCE_SECONDS = 5.0  # far more than a local socket needs; a failing test waits this long
OpenMailbox = Callable[..., Mailbox]


@pytest.fixture
def run_directory() -> Iterator[str]:
    """A directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mb") as path:
        yield path


@pytest.fixture
def open_mailbox(run_directory: str) -> Iterator[OpenMailbox]:
    """Opens mailboxes that are closed when the test ends."""
    mailboxes: list[Mailbox] = []

    def open_one(kind: str, index: int = 0, epoch: int = 1) -> Mailbox:
        mailboxes.append(Mailbox(Identity(kind, index, epoch, run_directory)))
        return mailboxes[-1]

    yield open_one
    for mailbox in mailboxes:
        mailbox.close()


def peer(mailbox: Mailbox, *, is_ready: bool = True) -> Peer:
    """The mailbox's line in the address book."""
    identity = mailbox.identity
    return Peer(identity.room, identity.epoch, identity.address, is_ready, None)


def book(*mailboxes: Mailbox) -> AddressBook:
    """An address book of ready rooms."""
    return AddressBook(tuple(peer(mailbox) for mailbox in mailboxes), is_warm=True)


def receive(mailbox: Mailbox, count: int) -> list[Message]:
    """Exactly so many messages, however they are bunched."""
    messages: list[Message] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(messages) < count and time.monotonic() < deadline:
        messages += mailbox.receive(0.1)
    assert len(messages) == count
    return messages


def test_messages_arrive_whole_and_in_order(open_mailbox: OpenMailbox) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    frontend.update_peers(book(worker))
    sent: list[Message] = [Abort(f"r-{number}") for number in range(500)]
    assert all(frontend.send("worker-0", message) for message in sent)
    assert receive(worker, 500) == sent


def test_every_sender_is_heard(open_mailbox: OpenMailbox) -> None:
    worker = open_mailbox("worker")
    frontends = [open_mailbox("frontend", index) for index in range(3)]
    for frontend in frontends:
        frontend.update_peers(book(worker))
        frontend.send("worker-0", Abort(frontend.identity.room))
    heard = set(receive(worker, 3))
    assert heard == {Abort("frontend-0"), Abort("frontend-1"), Abort("frontend-2")}


def test_nothing_to_receive_is_an_empty_list_at_once(open_mailbox: OpenMailbox) -> None:
    assert open_mailbox("worker").receive() == []


def test_the_shortest_wait_is_a_wait_not_a_spin(open_mailbox: OpenMailbox) -> None:
    mailbox = open_mailbox("worker")
    start = time.perf_counter()
    mailbox.receive(0.0005)
    assert time.perf_counter() - start >= 0.0005


def test_sending_to_an_unknown_room_is_a_loss(open_mailbox: OpenMailbox) -> None:
    assert not open_mailbox("frontend").send("worker-0", Abort("r"))


def test_sending_to_a_room_that_never_lived_is_a_loss_and_does_not_block(
    open_mailbox: OpenMailbox, run_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.sockets.CONNECT_TIMEOUT_SECONDS", 0.01)
    frontend = open_mailbox("frontend")
    ghost = Identity("worker", 0, 1, run_directory)
    frontend.update_peers(
        AddressBook((Peer(ghost.room, 1, ghost.address, True, None),), is_warm=True)
    )
    start = time.perf_counter()
    assert not any(frontend.send("worker-0", Abort("r")) for _ in range(100))
    assert time.perf_counter() - start < 1.0


def test_sending_to_a_closed_peer_is_a_loss_before_long(open_mailbox: OpenMailbox) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    frontend.update_peers(book(worker))
    assert frontend.send("worker-0", Abort("r"))
    worker.close()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while frontend.send("worker-0", Abort("r")):
        assert time.monotonic() < deadline, "the loss is never noticed"
        frontend.receive(0.001)


def test_a_message_that_cannot_be_encoded_is_raised_not_lost(open_mailbox: OpenMailbox) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    frontend.update_peers(book(worker))
    with pytest.raises(WireError):
        frontend.send("worker-0", Abort("\ud800"))


def test_a_new_life_replaces_the_old_one(open_mailbox: OpenMailbox) -> None:
    old, new = open_mailbox("worker", epoch=1), open_mailbox("worker", epoch=2)
    frontend = open_mailbox("frontend")
    frontend.update_peers(book(old))
    assert frontend.send("worker-0", Abort("old"))
    assert receive(old, 1) == [Abort("old")]
    frontend.update_peers(book(new))
    assert frontend.send("worker-0", Abort("new"))
    assert receive(new, 1) == [Abort("new")]
    assert old.receive(0.01) == []


def test_a_room_that_left_the_book_cannot_be_reached(open_mailbox: OpenMailbox) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    frontend.update_peers(book(worker, frontend))
    frontend.update_peers(book(frontend))
    assert not frontend.send("worker-0", Abort("r"))
    assert list(frontend.peers) == ["frontend-0"]


def test_an_unchanged_book_keeps_its_connections(open_mailbox: OpenMailbox) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    frontend.update_peers(book(worker))
    frontend.send("worker-0", Abort("a"))
    frontend.update_peers(AddressBook((peer(worker, is_ready=False),), is_warm=False))
    frontend.send("worker-0", Abort("b"))
    assert receive(worker, 2) == [Abort("a"), Abort("b")]
    assert frontend.peers["worker-0"].is_ready is False


def test_the_launchers_orders_are_obeyed_and_not_handed_on(open_mailbox: OpenMailbox) -> None:
    launcher, worker = open_mailbox("launcher", epoch=0), open_mailbox("worker")
    launcher.update_peers(book(worker))
    stop = Stop(ErrorCode.SHUTTING_DOWN, "bye")
    for message in (book(worker), stop, Abort("r")):
        for room in launcher.peers:
            launcher.send(room, message)
    assert receive(worker, 1) == [Abort("r")]
    assert worker.stop == stop
    assert worker.peers == {"worker-0": peer(worker)}


def test_a_room_tells_the_launcher_its_life(open_mailbox: OpenMailbox) -> None:
    launcher, worker = open_mailbox("launcher", epoch=0), open_mailbox("worker", 3, epoch=7)
    worker.join()
    facts = ModelFacts(4096, 640, {"temperature": 0.6}, {"device": "cpu"})
    worker.report_ready(facts)
    assert receive(launcher, 2) == [RoomStarted("worker-3", 7), RoomReady("worker-3", 7, facts)]


def test_a_ready_room_spares_the_collector_what_it_holds(open_mailbox: OpenMailbox) -> None:
    _, worker = open_mailbox("launcher", epoch=0), open_mailbox("worker")
    worker.join()
    gc.unfreeze()
    try:
        worker.report_ready()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_the_address_book_does_not_cut_the_line_to_the_launcher(open_mailbox: OpenMailbox) -> None:
    launcher, worker = open_mailbox("launcher", epoch=0), open_mailbox("worker")
    worker.join()
    worker.update_peers(book(worker))
    worker.update_peers(AddressBook((), is_warm=False))
    assert worker.send(LAUNCHER, Abort("r"))
    assert receive(launcher, 2)[-1] == Abort("r")


def test_only_ready_rooms_of_the_kind_are_ready(open_mailbox: OpenMailbox) -> None:
    tokenizers = [open_mailbox("tokenizer", index) for index in range(3)]
    detokenizer = open_mailbox("detokenizer")
    frontend = open_mailbox("frontend")
    peers = [peer(room, is_ready=room is not tokenizers[1]) for room in [*tokenizers, detokenizer]]
    frontend.update_peers(AddressBook(tuple(peers), is_warm=True))
    assert [p.room for p in frontend.ready_rooms("tokenizer")] == ["tokenizer-0", "tokenizer-2"]


GARBAGE = [
    b"",
    b"\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    bytes(range(256)) * 64,
    b"\xff" * 64,
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + b"\x00" * 48,  # a greeting, then no
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: garbage[:8].hex() or "nothing")
def test_garbage_on_the_socket_neither_gets_through_nor_harms(
    open_mailbox: OpenMailbox, garbage: bytes
) -> None:
    worker, frontend = open_mailbox("worker"), open_mailbox("frontend")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(worker.identity.address.removeprefix("ipc://"))
        stranger.sendall(garbage)
        assert worker.receive(0.02) == []
        frontend.update_peers(book(worker))
        assert frontend.send("worker-0", Abort("r"))
        assert receive(worker, 1) == [Abort("r")]


@pytest.mark.parametrize(
    "frames", [[b""], [b"", b""], [b"Abort"], [b"Abort", b"{}"], [b"\xff", b"{}"], [b"x"] * 50]
)
def test_a_message_outside_the_protocol_is_dropped_counted_and_logged(
    run_directory: str, frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    address = f"ipc://{run_directory}/i"
    inbox = Inbox(address)
    outbox = Outbox(address)
    outbox._send(frames)
    outbox.send(Abort("r"))
    assert inbox.receive(PATIENCE_SECONDS) + inbox.receive(0.05) == [Abort("r")]
    assert inbox.num_refused == 1
    assert "dropped a message" in caplog.text
    outbox.close()
    inbox.close()


def test_a_full_pipe_refuses_rather_than_blocks(
    run_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.sockets.HIGH_WATER_MARK", 2)
    inbox = Inbox(f"ipc://{run_directory}/i")
    outbox = Outbox(f"ipc://{run_directory}/i")
    taken = [outbox.send(Abort("x" * 100_000)) for _ in range(100)]
    assert not all(taken)
    outbox.close()
    inbox.close()


def test_a_path_too_long_for_a_socket_is_fatal_and_says_what_to_do(tmp_path: Path) -> None:
    longest = "/" + "x" * (MAX_PATH_BYTES - 1)
    with pytest.raises(FatalError, match="--run-directory"):
        Inbox(f"ipc://{longest}x")


def test_every_life_has_its_own_address() -> None:
    first, second = Identity("worker", 0, 1, "/run"), Identity("worker", 0, 2, "/run")
    assert first.room == second.room == "worker-0"
    assert (first.address, second.address) == ("ipc:///run/worker-0.1", "ipc:///run/worker-0.2")


def test_an_unexpected_message_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    unexpected(Abort("r"))
    assert "Abort" in caplog.text
