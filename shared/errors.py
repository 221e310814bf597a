"""Every way a request or a process can fail, drawn as one tree and one table.

    ServerError
    ├── WireError           a frame that does not fit the protocol; it is dropped and counted
    ├── RequestError        one request fails; the service goes on
    │   └── BadRequest      the caller's mistake, with the field that holds it
    └── FatalError          the process cannot do its work and must exit

The type says whose fault it is; `FAILURES` says what the caller is told. Exceptions never cross the
wire: `messages.RequestFailed` carries the code and the sentence.
"""

from dataclasses import dataclass
from enum import StrEnum

EXIT_FAILED = 70  # EX_SOFTWARE of sysexits.h: something inside broke
EXIT_PORT_IN_USE = 75  # EX_TEMPFAIL: starting again later may work
EXIT_CONFIGURATION = 78  # EX_CONFIG: starting again with the same settings cannot work


class ErrorCode(StrEnum):
    """The `code` of an error body, and the key of `FAILURES`."""

    INVALID_JSON = "invalid_json"
    INVALID_TYPE = "invalid_type"
    INVALID_VALUE = "invalid_value"
    MISSING_PARAMETER = "missing_required_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    EMPTY_ARRAY = "empty_array"
    CONTEXT_LENGTH = "context_length_exceeded"
    TOO_LARGE = "request_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    MEDIA_TYPE = "unsupported_media_type"
    MODEL_NOT_FOUND = "model_not_found"
    UNKNOWN_URL = "unknown_url"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    QUEUE_FULL = "queue_full"
    MODEL_LOADING = "model_loading"
    ENGINE_DEAD = "engine_dead"
    SHUTTING_DOWN = "shutting_down"
    TIMEOUT = "request_timeout"
    INTERNAL = "internal_error"


@dataclass(frozen=True)
class Failure:
    """How one error code looks over HTTP."""

    status: int
    type: str
    retry_after_seconds: int | None = None  # sent as Retry-After when the caller may try again
    shows_code: bool = True  # False: the body's code is null, as OpenAI sends it


_INVALID = "invalid_request_error"
_UNAVAILABLE = "service_unavailable_error"

FAILURES: dict[ErrorCode, Failure] = {
    ErrorCode.INVALID_JSON: Failure(400, _INVALID, shows_code=False),
    ErrorCode.INVALID_TYPE: Failure(400, _INVALID),
    ErrorCode.INVALID_VALUE: Failure(400, _INVALID),
    ErrorCode.MISSING_PARAMETER: Failure(400, _INVALID),
    ErrorCode.UNSUPPORTED_PARAMETER: Failure(400, _INVALID),
    ErrorCode.EMPTY_ARRAY: Failure(400, _INVALID),
    ErrorCode.CONTEXT_LENGTH: Failure(400, _INVALID),
    ErrorCode.TOO_LARGE: Failure(413, _INVALID),
    ErrorCode.HEADERS_TOO_LARGE: Failure(431, _INVALID),
    ErrorCode.MEDIA_TYPE: Failure(415, _INVALID),
    ErrorCode.MODEL_NOT_FOUND: Failure(404, _INVALID),
    ErrorCode.UNKNOWN_URL: Failure(404, _INVALID),
    ErrorCode.METHOD_NOT_ALLOWED: Failure(405, _INVALID, shows_code=False),
    ErrorCode.QUEUE_FULL: Failure(429, "rate_limit_error", retry_after_seconds=1),
    ErrorCode.MODEL_LOADING: Failure(503, _UNAVAILABLE, retry_after_seconds=5),
    ErrorCode.ENGINE_DEAD: Failure(503, _UNAVAILABLE, retry_after_seconds=5),
    ErrorCode.SHUTTING_DOWN: Failure(503, _UNAVAILABLE, retry_after_seconds=5),
    ErrorCode.TIMEOUT: Failure(504, "timeout_error"),
    ErrorCode.INTERNAL: Failure(500, "server_error"),
}


class ServerError(Exception):
    """The root of every exception that this project raises on purpose."""


class WireError(ServerError):
    """A message that does not fit the protocol; it names the tag and the field."""


class RequestError(ServerError):
    """One request fails with this code and sentence; nothing else is harmed."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class BadRequest(RequestError):
    """The caller's mistake; `param` is the path of the field, such as `messages[0].content`."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: ErrorCode = ErrorCode.INVALID_VALUE,
    ) -> None:
        super().__init__(code, message, param)


class FatalError(ServerError):
    """The process must exit; one sentence says why and what would mend it."""

    def __init__(self, message: str, exit_status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_status = exit_status
