"""Inbox and Outbox: the only ZeroMQ in the project.

Every room binds one ROUTER inbox and reaches the others by DEALER outboxes. ZeroMQ promises no
delivery: an outbox never blocks and tells whether a living peer took the message; who owns a
request must handle the loss (see `frontend/ledger.py`).
"""

import logging
import math
from collections.abc import Collection, Sequence
from typing import Any

import zmq

from shared import wire
from shared.errors import FatalError, WireError
from shared.messages import Message

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 1.0  # a bound local inbox answers within milliseconds
HIGH_WATER_MARK = 4096  # messages a pipe; far above what credits and acknowledgements allow
MAX_PATH_BYTES = 100  # sun_path of sockaddr_un holds 108 with its terminator; see unix(7)

_CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()


def _open(kind: int) -> zmq.Socket[bytes]:
    socket = _CONTEXT.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
    return socket


class Inbox:
    """A bound ROUTER: takes messages from every room and drops what is not of the protocol."""

    def __init__(self, address: str) -> None:
        if len(address.removeprefix("ipc://").encode()) > MAX_PATH_BYTES:
            raise FatalError(f"{address} is too long for a socket: set a shorter --run-directory")
        self._socket = _open(zmq.ROUTER)
        self._socket.bind(address)
        self.num_refused = 0

    def fileno(self) -> int:
        """A descriptor that becomes readable on arrival; edge-triggered, so drain it each time."""
        return int(self._socket.getsockopt(zmq.FD))

    def receive(
        self, timeout_seconds: float | None = 0.0, descriptors: Collection[int] = ()
    ) -> list[Message]:
        """Returns all that has arrived; waits for the first at most this long (None: for ever).

        It waits no longer once one of the descriptors can be read.
        """
        if timeout_seconds != 0.0:
            # Rounded up: half a millisecond that became 0 would turn a caller's wait into a spin.
            limit = None if timeout_seconds is None else math.ceil(timeout_seconds * 1000)
            poller = zmq.Poller()
            for readable in (self._socket, *descriptors):
                poller.register(readable, zmq.POLLIN)
            poller.poll(limit)
        messages: list[Message] = []
        while (frames := self._next_frames()) is not None:
            try:
                messages.append(wire.decode(frames[1:]))  # frame 0 is the sender's routing id
            except WireError as error:
                self.num_refused += 1
                logger.warning("dropped a message: %s", error)
        return messages

    def close(self) -> None:
        """Unbinds; what has not been received is lost."""
        self._socket.close()

    def _next_frames(self) -> list[bytes] | None:
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None


class Outbox:
    """A DEALER connected to one peer's inbox; `send` never blocks."""

    def __init__(self, address: str) -> None:
        self._socket = _open(zmq.DEALER)
        self._socket.immediate = True  # queue only for a peer that is really connected
        self._socket.connect(address)
        self.wait_until_connected()

    def wait_until_connected(self) -> None:
        """Returns once a message would be taken, or after a while in which the peer was not there.

        Then the connection is made as soon as it can be, and messages are lost until it is.
        """
        self._socket.poll(int(CONNECT_TIMEOUT_SECONDS * 1000), zmq.POLLOUT)

    def send(self, message: Message) -> bool:
        """True if a connected peer will be given the message; False if it is lost."""
        return self._send(wire.encode(message))

    def close(self) -> None:
        """Closes at once; what has not left is lost."""
        self._socket.close()

    def _send(self, frames: Sequence[Any]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
