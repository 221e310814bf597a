"""The table of failures is complete, and exceptions carry what callers are told."""

import pytest

from shared.errors import (
    EXIT_CONFIGURATION,
    EXIT_FAILED,
    EXIT_PORT_IN_USE,
    FAILURES,
    BadRequest,
    ErrorCode,
    FatalError,
    RequestError,
    ServerError,
    WireError,
)


def test_every_code_has_its_failure() -> None:
    assert set(FAILURES) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_failure_is_an_http_error_and_only_unavailability_invites_a_retry(
    code: ErrorCode,
) -> None:
    failure = FAILURES[code]
    assert 400 <= failure.status <= 599
    assert (failure.retry_after_seconds is not None) == (failure.status in (429, 503))
    is_callers_mistake = failure.status < 500 and failure.status != 429
    assert (failure.type == "invalid_request_error") == is_callers_mistake


def test_a_bad_request_is_a_request_error_that_names_its_field() -> None:
    error = BadRequest("too hot", "temperature")
    assert isinstance(error, RequestError)
    assert (error.code, error.message, error.param) == (
        ErrorCode.INVALID_VALUE,
        "too hot",
        "temperature",
    )
    assert str(error) == "too hot"


def test_every_exception_is_a_server_error() -> None:
    assert all(issubclass(cls, ServerError) for cls in (WireError, RequestError, FatalError))


def test_a_fatal_error_knows_the_exit_status() -> None:
    assert FatalError("broken").exit_status == EXIT_FAILED
    assert FatalError("wrong flag", EXIT_CONFIGURATION).exit_status == EXIT_CONFIGURATION
    assert len({0, 1, 2, EXIT_FAILED, EXIT_PORT_IN_USE, EXIT_CONFIGURATION}) == 6
