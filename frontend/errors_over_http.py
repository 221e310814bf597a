"""Every failure of a route, ours or the framework's, as OpenAI's error body."""

import logging

import orjson
from litestar import Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap, Send

from frontend import responses
from frontend.decoding import quoted
from frontend.service import ApiRequest
from shared.errors import BadRequest, ErrorCode, RequestError

logger = logging.getLogger(__name__)


def error_response(error: RequestError, **extra: str) -> Response[bytes]:
    """The response for one failure; `extra` fields stand beside `error` in the body."""
    return Response(
        orjson.dumps({**responses.error_object(error), **extra}),
        status_code=responses.error_status(error),
        headers=responses.error_headers(error),
        media_type="application/json",
    )


async def send_error(error: RequestError, send: Send) -> None:
    """Answers with the error where no framework is at hand."""
    body = orjson.dumps(responses.error_object(error))
    headers = responses.error_headers(error) | {
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    status = responses.error_status(error)
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _from_request_error(_: ApiRequest, error: RequestError) -> Response[bytes]:
    return error_response(error)


def _from_framework(request: ApiRequest, error: HTTPException) -> Response[bytes]:
    response = error_response(_translated(request, error))
    if error.status_code == 405 and error.headers:
        response.headers.update(error.headers)  # Allow
    return response


def _from_bug(request: ApiRequest, error: Exception) -> Response[bytes]:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(RequestError(ErrorCode.INTERNAL, "The server failed to answer."))


def _translated(request: ApiRequest, error: HTTPException) -> RequestError:
    match error.status_code:
        case 404:
            url = quoted(f"{request.method} {request.scope['path']}")
            return RequestError(ErrorCode.UNKNOWN_URL, f"Unknown request URL: {url}.")
        case 405:
            sentence = f"{request.method} is not allowed here."
            return RequestError(ErrorCode.METHOD_NOT_ALLOWED, sentence)
        case 413:
            return RequestError(ErrorCode.TOO_LARGE, "The body of your request is too large.")
        case status if 400 <= status < 500:
            return BadRequest(error.detail)
        case _:
            return RequestError(ErrorCode.INTERNAL, "The server failed to answer.")


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    RequestError: _from_request_error,
    HTTPException: _from_framework,
    Exception: _from_bug,
}
