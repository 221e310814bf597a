"""Answers to JSON bodies; errors to body, status and headers. Pure."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from frontend.events import Accepted, Finished
from frontend.shapes import Answer, Shape
from frontend.version import VERSION
from shared.errors import FAILURES, ErrorCode, RequestError

_NEVER_RETRY_STATUSES = frozenset({500, 504})  # the client would only fail, or wait, once more


@dataclass(frozen=True)
class Head:
    """What every chunk and body of one answer has in common."""

    request_id: str
    created: int  # Unix seconds
    model: str


def fingerprint(model: str) -> str:
    """The same as long as the same version serves the same model."""
    return "fp_" + hashlib.sha256(f"{model}\n{VERSION}".encode()).hexdigest()[:10]


def envelope(head: Head, kind: str) -> dict[str, Any]:
    """The first fields of a body or chunk."""
    return {
        "id": head.request_id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": fingerprint(head.model),
    }


def usage(accepted: Sequence[Accepted], finished: Finished) -> dict[str, Any]:
    """What the answers cost; a prompt counts once, however many answers it has."""
    prompt_tokens = sum(prompt.prompt_tokens for prompt in accepted)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": finished.reasoning_tokens},
    }


def whole(
    head: Head,
    shape: Shape,
    accepted: Sequence[Accepted],
    answers: Sequence[Answer],
    finished: Finished,
) -> bytes:
    """The body of a request that did not stream, its answers in the order of their choices."""
    body = envelope(head, shape.whole_kind) | {
        "choices": [shape.whole(index, answer) for index, answer in enumerate(answers)],
        "usage": usage(accepted, finished),
    }
    return orjson.dumps(body)


def error_object(error: RequestError) -> dict[str, Any]:
    """The OpenAI shape of an error; its code is a name or null, never a number."""
    failure = FAILURES[error.code]
    code = error.code.value if failure.shows_code else None
    return {
        "error": {
            "message": error.message,
            "type": failure.type,
            "param": error.param,
            "code": code,
        }
    }


def error_status(error: RequestError) -> int:
    """The HTTP status of an error."""
    return FAILURES[error.code].status


def error_headers(error: RequestError) -> dict[str, str]:
    """Whether and when the caller should try again, and with what."""
    failure = FAILURES[error.code]
    headers = {}
    seconds = error.retry_after_seconds or failure.retry_after_seconds
    if seconds is not None:
        headers["retry-after"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))  # OpenAI's client reads it first
    if error.code is ErrorCode.SHUTTING_DOWN:
        headers["connection"] = "close"  # the next request belongs to another server
    if failure.status == 401:
        headers["www-authenticate"] = "Bearer"
    if failure.status in _NEVER_RETRY_STATUSES:
        headers["x-should-retry"] = "false"
    return headers
