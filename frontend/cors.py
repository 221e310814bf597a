"""Cross-origin requests: which web pages may call from a browser. Off unless origins are allowed.

Outermost but for the request's id, so that errors of every layer can be read by the page that
caused them, and a preflight, which cannot carry a key, needs none.
"""

from collections.abc import Sequence

from litestar.config.cors import CORSConfig
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.types import ASGIApp, Message, Receive, Scope, Send

_EXPOSED_HEADERS = [
    "x-request-id", "x-ignored-fields", "retry-after", "retry-after-ms",
]  # fmt: skip


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Adds what browsers ask for, or nothing without origins; `*` allows every origin."""
    if not origins:
        return app
    return _Cors(
        app,
        CORSConfig(
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            expose_headers=_EXPOSED_HEADERS,
        ),
    )


class _Cors:
    """Litestar's rules of CORS, around more than its own application."""

    def __init__(self, app: ASGIApp, config: CORSConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers.from_scope(scope)

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._allow(MutableScopeHeaders.from_message(message), headers.get("origin"))
            await send(message)

        is_preflight = scope.get("method") == "OPTIONS"
        if is_preflight and "access-control-request-method" in headers:
            await self._answer_preflight(headers, send_with_origin)
        else:
            await self._app(scope, receive, send_with_origin)

    async def _answer_preflight(self, headers: Headers, send: Send) -> None:
        answer = {name.lower(): value for name, value in self._config.preflight_headers.items()}
        answer.pop("vary", None)  # `_allow` says it for every answer
        # `*` would not cover Authorization, and clients send headers of their own: all are allowed.
        asked = headers.get("access-control-request-headers")
        if asked is not None:
            answer["access-control-allow-headers"] = asked
        encoded = [(name.encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": 204, "headers": encoded})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _allow(self, response: MutableScopeHeaders, origin: str | None) -> None:
        if not self._config.is_allow_all_origins:
            response.extend_header_value("vary", "Origin")
        if origin is None or not self._config.is_origin_allowed(origin):
            return
        response.update(self._config.simple_headers)
        if not self._config.is_allow_all_origins:
            response["access-control-allow-origin"] = origin
