"""Calls of web pages of other origins: preflights, answers and errors, as browsers read them."""

from collections.abc import Iterator

import httpx
import pytest

from tests.frontend.conftest import RunningServer, serving
from tests.frontend.test_chat_over_http import user

PAGE, OTHER_PAGE = "https://app.example", "https://evil.example"
KEY = "sk-first"
EXPOSED = {"x-request-id", "x-ignored-fields", "retry-after", "retry-after-ms"}


@pytest.fixture(scope="module")
def listed() -> Iterator[RunningServer]:
    """A server with a key that one page may call."""
    with serving(cors_origins=f"{PAGE}, http://localhost:3000", api_key=KEY) as running:
        yield running


def preflight(running: RunningServer, origin: str, path: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return running.http.options(path, headers=headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/nope", "/health"])
def test_a_preflight_needs_no_key(listed: RunningServer, path: str) -> None:
    response = preflight(listed, PAGE, path)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["vary"] == "Origin"
    assert {"GET", "POST"} <= set(response.headers["access-control-allow-methods"].split(", "))
    allowed = response.headers["access-control-allow-headers"]
    assert allowed == "authorization,content-type,x-stainless-lang"
    assert int(response.headers["access-control-max-age"]) > 0
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("origin", [OTHER_PAGE, "https://app.example.evil", f"{PAGE}:8443", "null"])
def test_another_page_is_told_nothing(listed: RunningServer, origin: str) -> None:
    assert "access-control-allow-origin" not in preflight(listed, origin, "/v1/models").headers
    response = listed.http.get("/health", headers={"Origin": origin})
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/v1/models", KEY, 200),
        ("GET", "/v1/models", "wrong", 401),
        ("GET", "/nope", KEY, 404),
        ("GET", "/v1/chat/completions", KEY, 405),
        ("POST", "/v1/chat/completions", KEY, 400),
    ],
)
def test_answers_and_errors_can_be_read_by_the_page(
    listed: RunningServer, method: str, path: str, key: str, status: int
) -> None:
    headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
    response = listed.http.request(method, path, headers=headers)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE
    assert set(response.headers["access-control-expose-headers"].split(", ")) == EXPOSED


def test_any_page_may_call_where_all_are_allowed() -> None:
    with serving(cors_origins="*") as running:
        assert (
            preflight(running, "null", "/v1/models").headers["access-control-allow-origin"] == "*"
        )
        body = {"messages": user("say a"), "stream": True, "foo": 1}
        for path, status in (("/v1/chat/completions", 200), ("/v1/completions", 400)):
            response = running.http.post(path, json=body, headers={"Origin": OTHER_PAGE})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "*"
            assert "vary" not in response.headers


def test_both_reasons_to_vary_are_told(listed: RunningServer) -> None:
    vary = listed.http.get("/", headers={"Origin": PAGE}).headers["vary"]
    assert {part.strip().lower() for part in vary.split(",")} == {"accept", "origin"}


def test_without_the_flag_no_page_is_answered(ready: RunningServer) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    for response in (
        ready.http.options("/v1/chat/completions", headers=headers),
        ready.http.get("/v1/models", headers={"Origin": PAGE}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]
