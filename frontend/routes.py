"""The API's routes, each with and without `/v1`: chat completions and models."""

import secrets
from typing import Any

from litestar import get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from frontend import translate
from frontend.delivery import ChatDelivery
from frontend.service import ApiRequest, service_of
from shared.errors import ErrorCode, RequestError


@post(["/v1/chat/completions", "/chat/completions"], status_code=200)
async def create_chat_completion(request: ApiRequest) -> ASGIApp:
    """Answers a conversation, whole or as a stream."""
    _require_json(request)
    service = service_of(request)
    chat = translate.chat(
        await request.body(), service.model, service.max_choices, secrets.randbits(63)
    )
    return ChatDelivery(service.engine, chat, service.model.name)


@get(["/v1/models", "/models"])
async def list_models(request: ApiRequest) -> dict[str, Any]:
    """The one model, as a list."""
    return {"object": "list", "data": [_card(request)]}


@get(["/v1/models/{model_id:path}", "/models/{model_id:path}"])
async def retrieve_model(request: ApiRequest, model_id: FromPath[str]) -> dict[str, Any]:
    """The model under its name or an alias; ids hold slashes, so the path is a path."""
    service_of(request).model.require(model_id.removeprefix("/"))
    return _card(request)


def _card(request: ApiRequest) -> dict[str, Any]:
    service = service_of(request)
    return service.model.card(service.engine.max_model_len())


def _require_json(request: ApiRequest) -> None:
    """A body without a declared type is taken for JSON; one of another type is refused."""
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            ErrorCode.MEDIA_TYPE, "The body of your request must be sent as application/json."
        )
