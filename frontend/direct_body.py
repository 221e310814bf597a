"""The short way for the middle of a streamed body: past ASGI, whose messages cost more than bytes.

The connection puts a `DirectBody` into the scope of each of its requests. What begins and ends a
response goes the long way, through all that is wrapped around the application.
"""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

DIRECT_BODY = "x_direct_body"  # where the ASGI scope holds it


class DirectBody:
    """Writes to one connection, between the start and the end of a response of unknown length."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow

    @property
    def takes_more(self) -> bool:
        """False while the client has far to read, and when it has gone."""
        return not (self._flow.write_paused or self._transport.is_closing())

    def write(self, data: bytes) -> None:
        """Sends a further part, which must not be empty, as a chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
