"""The API's routes, each with and without `/v1`: answers, models and the tokenizer."""

import secrets
from collections.abc import Callable
from typing import Any

from litestar import get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from frontend import fields, translate
from frontend.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    ModelCard,
    ModelList,
    Text,
    Tokens,
    TranscriptBody,
)
from frontend.delivery import Delivery
from frontend.embedding import EmbeddingDelivery
from frontend.events import TextFound, TokensFound
from frontend.lookup import LookupDelivery
from frontend.service import ApiRequest, Service, service_of
from frontend.sound_budget import MAX_SOUND_BYTES
from frontend.sound_delivery import SoundDelivery
from frontend.sound_fields import TRANSCRIBE, TRANSLATE
from frontend.translate import Ask, Rules
from shared.errors import ErrorCode, RequestError
from shared.windows import HEARS_ONLY


@post(
    ["/v1/chat/completions", "/chat/completions"],
    status_code=200,
    body=fields.CHAT,
    answers={"application/json": ChatCompletion, "text/event-stream": ChatCompletionChunk},
)
async def create_chat_completion(request: ApiRequest) -> ASGIApp:
    """Answers a conversation, whole or as a stream."""
    return await _delivery(request, translate.chat)


@post(
    ["/v1/completions", "/completions"],
    status_code=200,
    body=fields.COMPLETION,
    answers={"application/json": Completion, "text/event-stream": CompletionChunk},
)
async def create_completion(request: ApiRequest) -> ASGIApp:
    """Continues one or several texts, whole or as a stream."""
    return await _delivery(request, translate.completion)


@post(
    ["/v1/audio/transcriptions", "/audio/transcriptions"],
    status_code=200,
    request_max_body_size=MAX_SOUND_BYTES,
    form=fields.SOUND,
    answers={"application/json": TranscriptBody, "text/plain": None, "text/event-stream": None},
)
async def create_transcription(request: ApiRequest) -> ASGIApp:
    """Puts a sound into words, whole or as a stream."""
    return _sound_delivery(request, TRANSCRIBE)


@post(
    ["/v1/audio/translations", "/audio/translations"],
    status_code=200,
    request_max_body_size=MAX_SOUND_BYTES,
    form=fields.SOUND,
    answers={"application/json": TranscriptBody, "text/plain": None, "text/event-stream": None},
)
async def create_translation(request: ApiRequest) -> ASGIApp:
    """Puts a sound into English words, whole or as a stream."""
    return _sound_delivery(request, TRANSLATE)


@post(
    ["/v1/embeddings", "/embeddings"],
    status_code=200,
    body=fields.EMBEDDING,
    answers={"application/json": EmbeddingList},
)
async def create_embeddings(request: ApiRequest) -> ASGIApp:
    """A vector for each of one or several texts."""
    service = _service_for_answers(request)
    wanted, is_base64, ignored_fields = translate.embedding(
        await request.body(), service.model, request.auth
    )
    return EmbeddingDelivery(
        service.engine,
        wanted,
        service.model.name,
        ignored_fields,
        is_base64=is_base64,
        write_seconds=service.config.write_timeout,
    )


@post(
    ["/v1/tokenize", "/tokenize"],
    status_code=200,
    body=fields.TOKENIZE,
    answers={"application/json": Tokens},
)
async def tokenize(request: ApiRequest) -> ASGIApp:
    """The token ids of a text or a conversation."""
    service = _service_for_lookups(request)
    wanted, ignored_fields = translate.tokenize(await request.body(), service.model)
    longest = service.model.max_prompt_len

    def body(found: TokensFound | TextFound) -> dict[str, Any]:
        assert isinstance(found, TokensFound)
        count = len(found.token_ids)
        answer = {"tokens": found.token_ids, "count": count, "max_model_len": longest}
        return answer if found.strings is None else {**answer, "token_strs": found.strings}

    return LookupDelivery(service.engine, wanted, ignored_fields, body)


@post(
    ["/v1/detokenize", "/detokenize"],
    status_code=200,
    body=fields.DETOKENIZE,
    answers={"application/json": Text},
)
async def detokenize(request: ApiRequest) -> ASGIApp:
    """The text of token ids, under the names that vLLM, SGLang and llama.cpp give it."""
    service = _service_for_lookups(request)
    wanted, ignored_fields = translate.detokenize(await request.body(), service.model)

    def body(found: TokensFound | TextFound) -> dict[str, Any]:
        assert isinstance(found, TextFound)
        return dict.fromkeys(("prompt", "text", "content"), found.text)

    return LookupDelivery(service.engine, wanted, ignored_fields, body)


@get(["/v1/models", "/models"], answers={"application/json": ModelList})
async def list_models(request: ApiRequest) -> dict[str, Any]:
    """The one model, as a list."""
    return {"object": "list", "data": [_card(request)]}


@get(
    ["/v1/models/{model_id:path}", "/models/{model_id:path}"],
    answers={"application/json": ModelCard},
)
async def retrieve_model(request: ApiRequest, model_id: FromPath[str]) -> dict[str, Any]:
    """The model under its name or an alias; ids hold slashes, so the path is a path."""
    service_of(request).model.require(model_id.removeprefix("/"))
    return _card(request)


def _card(request: ApiRequest) -> dict[str, Any]:
    return service_of(request).model.card()


async def _delivery(
    request: ApiRequest, translated: Callable[[bytes, Rules, int, str], Ask]
) -> ASGIApp:
    service = _service_for_answers(request)
    if service.hears:
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, HEARS_ONLY, "model")
    seed = secrets.randbits(63)
    ask = translated(await request.body(), service.rules(), seed, request.auth)
    config = service.config
    return Delivery(service.engine, ask, service.model.name, config.write_timeout)


def _sound_delivery(request: ApiRequest, task: str) -> ASGIApp:
    service = service_of(request)
    service.engine.check_door()
    if not service.hears:
        sentence = "This model puts no sound into words."
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, sentence, "model")
    return SoundDelivery(service, request, task)


def _service_for_answers(request: ApiRequest) -> Service:
    """Refuses what can be refused before the body is read."""
    _require_json(request)
    service = service_of(request)
    service.engine.check_door()
    return service


def _service_for_lookups(request: ApiRequest) -> Service:
    """The same where a tokenizer alone answers."""
    _require_json(request)
    service = service_of(request)
    service.engine.check_lookups()
    return service


def _require_json(request: ApiRequest) -> None:
    """A body without a declared type is taken for JSON; one of another type is refused."""
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            ErrorCode.MEDIA_TYPE, "The body of your request must be sent as application/json."
        )
