"""API keys: who may call, and the id by which the rest of the server knows a caller.

A key is compared by its digest with every known one, so that the time it takes tells nothing. It is
looked at before the path is known to exist and before a body is read.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable, Iterator
from typing import cast

from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils import normalize_path

from frontend.errors_over_http import send_error
from shared.errors import ErrorCode, RequestError

_ID_CHARACTERS = 16  # of a hexadecimal digest: enough to keep callers apart, no use as a key

RawHeaders = Iterable[tuple[bytes, bytes]]  # names in lower case


class Keys:
    """The accepted keys; without any, everybody may call."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def id_of(self, headers: RawHeaders) -> str | None:
        """The id of the key in a request's header; None where there is no accepted one."""
        for given in _given_keys(headers):
            digest = _digest(given)
            matches = [hmac.compare_digest(digest, known) for known in self._digests]
            if any(matches):
                return digest.hex()[:_ID_CHARACTERS]
        return None


def with_keys(app: ASGIApp, keys: Keys, public_paths: Collection[str]) -> ASGIApp:
    """Lets only callers with a key through, but to the public paths everybody.

    The id of the key becomes the request's `auth`; it is "" where none is needed.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        # The router normalises paths by the same function, so both see the same route.
        needs_key = bool(keys) and normalize_path(scope["path"]) not in public_paths
        key_id = keys.id_of(scope["headers"]) if needs_key else ""
        if key_id is None:
            await send_error(_refusal(scope["headers"]), send)
        else:
            await app(cast("Scope", {**scope, "auth": key_id}), receive, send)

    return call


def _refusal(headers: RawHeaders) -> RequestError:
    wrong = "The API key of your request is not one of this server's."
    missing = "You did not provide an API key: send the header 'Authorization: Bearer YOUR_KEY'."
    has_key = any(_given_keys(headers))
    return RequestError(ErrorCode.INVALID_API_KEY, wrong if has_key else missing)


def _given_keys(headers: RawHeaders) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
