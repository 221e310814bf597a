"""Garbage and stale messages on every room's socket: dropped, and nothing changes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from shared import wire
from shared.errors import ErrorCode
from shared.messages import (
    Abort,
    CreditGranted,
    Drained,
    PromptAccepted,
    RequestFailed,
    RoomGetsOn,
    RoomReady,
    RoomStarted,
    StepsAcknowledged,
    TextProduced,
    TokensSampled,
    WorkerReported,
)
from tests.e2e.server import RunningServer
from tests.reliability.good import GoodLoad
from tests.reliability.rest import Rest
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
STALE = 9999  # an epoch that no life has
NOBODY = "chatcmpl-nobody"

GARBAGE: Sequence[list[bytes]] = (
    [b""],
    [b"\xff\x00garbage"],
    [b"Generate"],
    [b"NoSuchMessage", b"{}"],
    [b"Generate", b"{"],
    [b"Generate", b"[]"],
    [b"Abort", b'{"request_id": 5, "choice": null}'],
    [b"Abort", b'{"request_id": "x", "choice": null, "more": 1}'],
    [b"Stop", b'{"code": "no such code", "reason": ""}'],
    [b"AddressBook", b'{"peers": [5], "is_warm": true}'],
    [b"Abort", b'{"request_id": "x", "choice": null}', b"a frame too many"],
)
EMPTY_STEP = TokensSampled(0, STALE, 1, (), (), (), (), (), (), ())
STALE_MESSAGES = {
    "launcher": (
        RoomStarted("worker-0", STALE),
        RoomReady("worker-0", STALE, None),
        RoomGetsOn("worker-0", STALE),
        Drained("frontend-0", STALE),
        RoomReady("worker-7", 1, None),
    ),
    "frontend": (
        CreditGranted("tokenizer-0", STALE, 100),
        PromptAccepted(NOBODY, 3, None),
        RequestFailed(NOBODY, ErrorCode.INTERNAL, "stale", None),
        TextProduced(0, STALE, (NOBODY,), (0,), (0,), ("stale",), (1,), (), (), ()),
        WorkerReported(0, STALE, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, {}),
        EMPTY_STEP,  # of the protocol, but for another room
    ),
    "tokenizer": (Abort(NOBODY), EMPTY_STEP),
    "detokenizer": (EMPTY_STEP, Abort(NOBODY)),
    "worker": (Abort(NOBODY), StepsAcknowledged(0, STALE, 10**9), StepsAcknowledged(0, STALE, -1)),
}


def run_directory_of(server: RunningServer) -> Path:
    """Where the server's sockets are."""
    words = server.command
    return Path(words[words.index("--run-directory") + 1])


def frames_for(kind: str) -> Iterator[list[bytes]]:
    """What a room of this kind must drop."""
    yield from GARBAGE
    for message in STALE_MESSAGES[kind]:
        frames = wire.encode(message)
        yield frames
        yield frames  # once more
        yield [frames[0], frames[1][: len(frames[1]) // 2]]


def test_frames_that_are_not_for_it_change_nothing_in_a_room(
    faulty: RunningServer, rest: Rest
) -> None:
    inboxes = sorted(path for path in run_directory_of(faulty).iterdir() if path.is_socket())
    assert len(inboxes) == 6
    num_lines = len(faulty.log)
    context = zmq.Context()
    with GoodLoad(faulty.port) as load:
        wait_until(lambda: load.num_open == load.num_streams, 20)
        for inbox in inboxes:
            with context.socket(zmq.DEALER) as stranger:
                stranger.connect(f"ipc://{inbox}")
                for frames in frames_for(inbox.name.partition("-")[0]):
                    stranger.send_multipart(frames)
                stranger.close(linger=5000)
        context.term()
        dropped = "dropped a message"
        least = len(GARBAGE) * len(inboxes)
        wait_until(lambda: sum(dropped in line for line in faulty.log[num_lines:]) >= least, 20)
    assert load.unharmed()
    rest.check()
