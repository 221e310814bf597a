"""The web application: routes, limits, error shape, and the `X-Request-Id` on every response."""

import re
import uuid
from typing import cast

from litestar import Litestar
from litestar.datastructures import Headers, MutableScopeHeaders, State
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from frontend import page, probes, reference, routes
from frontend.cors import with_cors
from frontend.delivery import REQUEST_ID
from frontend.errors_over_http import EXCEPTION_HANDLERS
from frontend.keys import Keys, with_keys
from frontend.lingering import with_lingering
from frontend.openapi import document
from frontend.service import Service
from shared.config import FrontendConfig
from shared.flag import listed

MAX_BODY_BYTES = 4 * 1024 * 1024
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


_HANDLERS: list[HTTPRouteHandler] = [
    routes.create_chat_completion,
    routes.create_completion,
    routes.create_transcription,
    routes.create_translation,
    routes.create_embeddings,
    routes.tokenize,
    routes.detokenize,
    routes.list_models,
    routes.retrieve_model,
    probes.show_health,
    probes.show_readiness,
    probes.show_liveness,
    probes.show_version,
    probes.show_server_info,
    probes.show_metrics,
    reference.show_openapi,
    reference.show_docs,
    page.show_front_door,
]


def build_app(service: Service) -> ASGIApp:
    """Returns the whole application as one ASGI callable."""
    config = service.config
    keys, public_paths = Keys(config.api_keys), _public_paths(config)
    described = document(_HANDLERS, public_paths, service.max_choices)
    litestar = Litestar(
        route_handlers=_HANDLERS,
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        state=State({"service": service, "openapi": described}),
        openapi_config=None,
        logging_config=None,
    )
    keyed = with_keys(_with_head(litestar), keys, public_paths)
    return with_lingering(_with_request_id(with_cors(keyed, listed(config.cors_origins))))


def _public_paths(config: FrontendConfig) -> frozenset[str]:
    """What needs no key: everything, where there is none."""
    is_open = not config.api_keys
    public = [handler for handler in _HANDLERS if is_open or handler.opt.get("public")]
    if config.public_metrics:
        public.append(probes.show_metrics)
    return frozenset(path for handler in public for path in handler.paths)


def _with_head(app: ASGIApp) -> ASGIApp:
    """Whatever answers GET answers HEAD; uvicorn, which knows the true method, sends no body."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            scope = cast("Scope", {**scope, "method": "GET"})
        await app(scope, receive, send)

    return call


def _with_request_id(app: ASGIApp) -> ASGIApp:
    """Outermost, so that the framework's own errors carry the id too."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers.from_scope(scope).get("x-request-id", "")
        request_id = asked if _SAFE_REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders.from_message(message)["x-request-id"] = request_id
            await send(message)

        await app(cast("Scope", {**scope, REQUEST_ID: request_id}), receive, send_with_id)

    return call
