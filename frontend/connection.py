"""One HTTP connection: uvicorn's, with limits on how large a header is and how long receipt takes.

uvicorn collects a header of any size and waits for a request for ever; httptools joins a long
header in time that grows with its square. A connection that is idle between two requests is
uvicorn's to close.
"""

import asyncio
import uuid

import orjson
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from frontend import responses
from frontend.direct_body import DIRECT_BODY, DirectBody
from shared.errors import BadRequest, ErrorCode, RequestError

MAX_HEADER_BYTES = 16 * 1024  # of the request line and all header lines
MAX_HEADER_LINES = 64
HEADER_SECONDS = 10.0  # from the connection, or from the first byte of a later request

_COLON_SPACE_CRLF = 4  # what a header line has beside its name and its value


class LimitedProtocol(HttpToolsProtocol):
    """Refuses a header that is too large, and cuts off a request that does not arrive in time."""

    upload_seconds = 120.0  # from the end of the header to that of the body

    _num_header_bytes = 0  # of this request, in lines that are complete
    _num_pending_bytes = 0  # since the parser last found the beginning or the end of something
    _open_cycles: tuple[RequestResponseCycle, ...] = ()  # several when requests are pipelined
    _deadline: asyncio.TimerHandle | None = None  # set while a request is awaited or arrives

    # ── from the transport ───────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives the first request its time."""
        super().connection_made(transport)
        self._direct_body = DirectBody(transport, self.flow)
        self._expect_end_within(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells every open request, of which uvicorn knows only the newest."""
        self._expect_nothing()
        for cycle in self._open_cycles:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses the data, unless too much of it is neither a whole header nor a body."""
        # Any byte ends uvicorn's own wait, even an empty line that begins no request.
        if self._deadline is None and self._is_idle():
            self._expect_end_within(HEADER_SECONDS)
        self._num_pending_bytes += len(data)
        super().data_received(data)
        if self._is_header_too_large():
            self._refuse(_too_large())

    # ── from the parser ──────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope[DIRECT_BODY] = self._direct_body  # type: ignore[literal-required]
        self._num_header_bytes = self._num_pending_bytes = 0
        self._expect_end_within(HEADER_SECONDS)

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        super().on_url(url)
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line, or one that trails a chunked body."""
        super().on_header(name, value)
        self._count_header(len(name) + len(value) + _COLON_SPACE_CRLF)

    def on_headers_complete(self) -> None:
        """The header ends; the body has its own time."""
        self._num_pending_bytes = 0
        self._expect_end_within(self.upload_seconds)
        super().on_headers_complete()
        still_open = (cycle for cycle in self._open_cycles if not cycle.response_complete)
        self._open_cycles = (*still_open, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A part of the body; the application limits its size."""
        self._num_pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._num_pending_bytes = 0
        self._expect_nothing()
        super().on_message_complete()

    # ── uvicorn's own answers ────────────────────────────────────────────────────────────────────

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser fails, also because a callback of ours raised."""
        self._refuse(_too_large() if self._is_header_too_large() else BadRequest(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Says nothing: a caller may ask for an upgrade, and is answered without one."""

    # ── limits ───────────────────────────────────────────────────────────────────────────────────

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._is_header_too_large():
            raise _too_large()  # stops the parser

    def _is_header_too_large(self) -> bool:
        num_bytes = max(self._num_header_bytes, self._num_pending_bytes)
        return num_bytes > MAX_HEADER_BYTES or len(self.headers or ()) > MAX_HEADER_LINES

    def _expect_end_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._give_up)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.flow.read_paused:  # we do not let the client send, so it may take longer
            self._expect_end_within(self.upload_seconds)
        else:
            self.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _may_answer(self) -> bool:
        """The next bytes that the client awaits answer the request that is arriving."""
        is_unread = self.cycle is not None and self.cycle.more_body and not self.pipeline
        return self._is_idle() or (is_unread and not self.cycle.response_started)

    def _refuse(self, error: RequestError) -> None:
        """Answers with the error and closes; only closes where the answer would be another's."""
        if self.transport.is_closing():
            return
        if not self._may_answer():
            self.transport.abort()
            return
        self.transport.write(_encode(error, self.server_state.default_headers))
        self.transport.close()


def limited_protocol(upload_seconds: float) -> type[LimitedProtocol]:
    """The protocol with so much time for bodies, as uvicorn wants it: a class."""
    return type("Limited", (LimitedProtocol,), {"upload_seconds": upload_seconds})


def _too_large() -> RequestError:
    sentence = (
        f"The header of your request has more than {MAX_HEADER_BYTES} bytes"
        f" or {MAX_HEADER_LINES} lines."
    )
    return RequestError(ErrorCode.HEADERS_TOO_LARGE, sentence)


def _encode(error: RequestError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    body = orjson.dumps(responses.error_object(error))
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", uuid.uuid4().hex.encode()),
    ]
    lines = [b"%s: %s\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[responses.error_status(error)], *lines, b"\r\n", body])
