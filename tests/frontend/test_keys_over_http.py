"""API keys over real sockets: who is let in, what needs no key, and what a key is not seen in."""

import logging
from collections.abc import Iterator

import httpx
import openai
import pytest

from shared.messages import Tokenize
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.test_chat_over_http import user

KEY, OTHER = "sk-first", "sk-second"
BEARER = {"Authorization": f"Bearer {KEY}"}
PUBLIC = [
    "/", "/v1", "/live", "/livez", "/v1/live", "/health", "/healthz", "/v1/health", "//health/",
    "/ready", "/readyz", "/v1/ready", "/version", "/v1/version",
]  # fmt: skip
PRIVATE = [
    "/metrics", "/v1/metrics", "/v1/models", "/models", "/v1/models/tiny", "/server_info",
    "/openapi.json", "/docs", "/nope", "/v1/nope", "//metrics", "/health/x", "/live/../metrics",
]  # fmt: skip


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    with serving(api_key=f"{KEY}, {OTHER}") as running:
        yield running


@pytest.mark.parametrize("path", PUBLIC)
def test_probes_version_and_the_page_need_no_key(keyed: RunningServer, path: str) -> None:
    assert keyed.http.get(keyed.url + path).status_code == 200
    assert keyed.http.head(keyed.url + path).status_code == 200


@pytest.mark.parametrize("path", PRIVATE)
def test_everything_else_does(keyed: RunningServer, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        response = keyed.http.request(method, keyed.url + path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.headers["x-request-id"]
    error = keyed.http.get(keyed.url + path).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert error["param"] is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {OTHER}"},
        {"authorization": f"BEARER   {KEY}"},
        {"X-Api-Key": OTHER},
        {"Authorization": "Basic eDp5", "x-api-key": KEY},
    ],
)
def test_a_key_in_any_of_its_forms(keyed: RunningServer, headers: dict[str, str]) -> None:
    assert keyed.http.get("/v1/models", headers=headers).status_code == 200
    assert keyed.http.get("/nope", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY},{OTHER}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "*"},
        {b"X-Api-Key": b"\xff\xfe"},
    ],
)
def test_what_is_no_key(keyed: RunningServer, headers: dict[str, str]) -> None:
    assert keyed.http.get("/v1/models", headers=headers).status_code == 401


def test_the_official_client(keyed: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=OTHER, max_retries=0)
    answer = client.chat.completions.create(model="model", messages=user("say a"))
    assert answer.choices[0].message.content == "a"
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"


def test_callers_with_different_keys_share_no_cached_prompt(keyed: RunningServer) -> None:
    salts = []
    for key, salt in ((KEY, None), (OTHER, None), (OTHER, "mine"), (KEY, None)):
        body = {"messages": user("say a"), "cache_salt": salt}
        headers = {"X-Api-Key": key}
        assert keyed.http.post("/v1/chat/completions", json=body, headers=headers).is_success
        assert keyed.http.post("/completions", json={"prompt": "say a"}, headers=headers).is_success
        chat, completion = keyed.mailbox.requests[-2:]
        assert isinstance(chat, Tokenize)
        salts.append(chat.cache_salt)
        assert salt is not None or completion.cache_salt == chat.cache_salt
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3
    assert not any(KEY in salt or OTHER in salt for salt in salts)


def test_keys_are_never_logged(keyed: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        keyed.http.get("/v1/models", headers=BEARER)
        keyed.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}-almost"})
        body = {"messages": user("say a")}
        keyed.http.post("/v1/chat/completions", json=body, headers=BEARER)
    assert caplog.records
    assert KEY not in caplog.text


def test_metrics_may_be_public() -> None:
    with serving(api_key=KEY, public_metrics=True) as running:
        assert running.http.get("/metrics").status_code == 200
        assert running.http.get("/v1/metrics").status_code == 200
        assert running.http.get("/v1/models").status_code == 401


def test_the_page_asks_for_a_key(keyed: RunningServer) -> None:
    page = httpx.get(keyed.url, headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "401" in page.text
    assert "Authorization" in page.text
