"""Early answers that arrive: a refusal before the body is read, on a connection that then closes.

A socket that is closed with bytes unread is reset, and a reset may overtake the answer: a proxy
that asks with `Connection: close` and sends its body in full would see a broken upstream in place
of a 429. So the answer is written whole, and what still comes is thrown away for a moment before
the connection closes (RFC 9112, section 9.6). Connections that stay open need no such care.
"""

import asyncio
from contextlib import suppress

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

LINGER_SECONDS = 2.0


def with_lingering(app: ASGIApp) -> ASGIApp:
    """Reads to its end what the application left unread, where the connection is to close."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if not _closes(scope) or not _sends_body(Headers.from_scope(scope)):
            await app(scope, receive, send)
            return
        body = _Body(receive)

        async def send_and_linger(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            await send({**message, "more_body": True})
            await body.throw_away()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await app(scope, body.receive, send_and_linger)

    return call


class _Body:
    """A request's body, and whether all of it has been received."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_over = False

    async def receive(self) -> ReceiveMessage:
        """What the application calls."""
        message = await self._receive()
        self._is_over = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def throw_away(self) -> None:
        """Receives the rest, as long as it comes soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._is_over:
                    await self.receive()


def _closes(scope: Scope) -> bool:
    """Whether the connection closes after the answer, by uvicorn's rule."""
    asked = Headers.from_scope(scope).get("connection", "").lower().split(",")
    return scope.get("http_version") == "1.0" or "close" in map(str.strip, asked)


def _sends_body(headers: Headers) -> bool:
    """Whether a body is on its way; not where the client waits for leave to send it."""
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return has_body and "expect" not in headers
