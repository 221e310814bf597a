"""A load generator that costs little: prebuilt requests over raw connections, on uvloop.

It reads no more of a response than where it ends. Niced (`be_modest`), so that on a small machine
it takes no time from the server that it measures.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import orjson
import uvloop

NICENESS = 10
_HEAD_END = b"\r\n\r\n"
_CHUNKS_END = b"0\r\n\r\n"
_ResultT = TypeVar("_ResultT")


def be_modest() -> None:
    """Lets everybody else have the processor first."""
    os.nice(NICENESS)


def run(work: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """Runs a benchmark's client side."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def post(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    content = orjson.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class Reply:
    """One response; times are monotonic seconds."""

    sent: float
    status: int = 0  # 0: the connection ended before the response did
    ended: float = 0.0
    num_bytes: int = 0
    data: list[bytes] = field(default_factory=list)  # of the response, where it is kept


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, *, keeps_data: bool = False) -> None:
        self._keeps_data = keeps_data
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._reply = Reply(0.0)
        self._head = b""
        self._tail = b""  # the last bytes, in which a chunked body's end is looked for
        self._num_left: int | None = None  # bytes of the body; None: it comes in chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def connection_lost(self, exc: Exception | None) -> None:
        """The response under way ends here."""
        self._transport = None
        self._finish(status=0)

    @property
    def is_open(self) -> bool:
        """True when a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Leaves, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> Reply:
        """Sends a request and waits for the end of its response."""
        assert self._transport is not None
        self._reply, self._head = Reply(time.monotonic()), b""
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def data_received(self, data: bytes) -> None:
        """Counts; looks for the end."""
        self._reply.num_bytes += len(data)
        if self._keeps_data:
            self._reply.data.append(data)
        if self._reply.status == 0:
            self._head += data
            head, found, data = self._head.partition(_HEAD_END)
            if not found:
                return
            self._read_head(head)
        if self._num_left is None:
            self._tail = (self._tail + data)[-len(_CHUNKS_END) :]
            is_over = self._tail == _CHUNKS_END
        else:
            self._num_left -= len(data)
            is_over = self._num_left <= 0
        if is_over:
            self._finish(self._reply.status)

    def _read_head(self, head: bytes) -> None:
        self._reply.status = int(head[9:12])
        _, found, rest = head.lower().partition(b"content-length: ")
        self._num_left = int(rest.partition(b"\r\n")[0]) if found else None
        self._tail = b""

    def _finish(self, status: int) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._reply.status, self._reply.ended = status, time.monotonic()
            self._waiter.set_result(self._reply)


class Pool:
    """Connections to one server: idle ones are used again, new ones made when none is idle."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, request: bytes) -> Reply:
        """One request on any connection."""
        connection = await self._take()
        reply = await connection.ask(request)
        self._idle.append(connection)
        return reply

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await connect(self._port)

    def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.close()


async def connect(port: int, *, keeps_data: bool = False) -> Connection:
    """A new connection to a local server."""
    make: Callable[[], Connection] = lambda: Connection(keeps_data=keeps_data)  # noqa: E731
    _, connection = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)
    return connection


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
