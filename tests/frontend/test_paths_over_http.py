"""Paths, sizes, types and model names, as careless clients and proxies write them."""

import json

import httpx
import openai
import pytest

from frontend.app import MAX_BODY_BYTES
from frontend.served_model import ServedModel
from shared.config import FrontendConfig, ModelConfig
from shared.errors import ErrorCode, RequestError
from shared.parts import ModelFacts
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.test_chat_over_http import user
from tests.frontend.test_connection import POST, ask, error_of

GETS = ["/health", "/ready", "/live", "/version", "/metrics", "/models", "/server_info", "/docs"]


@pytest.mark.parametrize("path", GETS)
def test_every_route_answers_with_and_without_the_prefix_and_with_stray_slashes(
    ready: RunningServer, path: str
) -> None:
    expected = ready.http.get(ready.url + path)
    assert expected.status_code == 200
    for other in (f"/v1{path}", f"{path}/", f"/{path}", f"//v1/{path}//", f"/v1//{path}"):
        response = ready.http.get(ready.url + other)
        assert response.status_code == 200, other
        assert response.headers["content-type"] == expected.headers["content-type"]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "//v1//chat//completions/"]
)
def test_a_chat_under_each_of_its_paths(ready: RunningServer, path: str) -> None:
    response = ready.http.post(ready.url + path, json={"messages": user("say a")})
    assert response.json()["choices"][0]["message"]["content"] == "a"


def test_the_predecessors_base_url(ready: RunningServer) -> None:
    """Its README has no /v1."""
    client = openai.OpenAI(base_url=ready.url, api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="base", messages=user("say a"))
    assert answer.choices[0].message.content == "a"
    client.close()


@pytest.mark.parametrize("path", ["/v1x", "/v1/v1/models", "/v2/models", "/models%00", "/v1/../x"])
def test_other_paths_are_unknown(ready: RunningServer, path: str) -> None:
    assert ready.http.get(ready.url + path).json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_a_body_that_says_it_is_too_large_is_refused_unread(
    ready: RunningServer, path: str
) -> None:
    """A client that waits for leave to send its body is never given it."""
    head = POST.replace(b"/v1/chat/completions", path.encode())
    length = b"Content-Length: %d\r\n" % (MAX_BODY_BYTES + 1)
    answer = ask(ready, head + length + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
    assert error_of(answer) == (b"413", "request_too_large")


def test_a_body_that_does_not_say_is_refused_where_it_becomes_too_large(
    ready: RunningServer,
) -> None:
    def chunks() -> object:
        for _ in range(MAX_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    response = ready.http.post(
        "/v1/chat/completions",
        content=chunks(),  # type: ignore[arg-type]  # a generator of bytes
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413
    assert ready.chat("say a").status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_a_body_of_another_type(ready: RunningServer, content_type: str) -> None:
    body = json.dumps({"messages": user("say a"), "prompt": "say a"})
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        response = ready.http.post(path, content=body, headers={"content-type": content_type})
        assert response.status_code == 415
        assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_in_any_spelling(ready: RunningServer, content_type: str) -> None:
    body = json.dumps({"messages": user("say a")})
    headers = {"content-type": content_type}
    assert ready.http.post("/chat/completions", content=body, headers=headers).status_code == 200


# ── names of the model ───────────────────────────────────────────────────────────────────────────


def served_model(model_type: str = "llama", **flags: str | bool) -> ServedModel:
    config = FrontendConfig(model=ModelConfig(hf_model="org/tiny"), **flags)  # type: ignore[arg-type]
    return ServedModel(config, 0, lambda: ModelFacts(512, 640, {}, {"model_type": model_type}))


def refused(model: ServedModel, *names: str) -> list[str]:
    """Which of these names are not the model's."""
    return [name for name in names if refusal(model, name) is not None]


def refusal(model: ServedModel, name: str) -> RequestError | None:
    try:
        model.require(name)
    except RequestError as error:
        return error
    return None


def test_the_default_names_are_the_ids_and_those_of_the_predecessor() -> None:
    model = served_model()
    names = ("org/tiny", "tiny", "model", "base", "Tiny", "whisper", "whisper-1", "gpt-4o", "")
    assert refused(model, *names) == ["Tiny", "whisper", "whisper-1", "gpt-4o", ""]
    assert model.aliases == {"tiny", "model", "base"}
    error = refusal(model, "gpt-4o")
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.MODEL_NOT_FOUND, "model")


def test_a_whisper_has_openais_names_too() -> None:
    model = served_model("whisper")
    assert refused(model, "whisper", "whisper-1", "gpt-4o") == ["gpt-4o"]
    assert {"whisper", "whisper-1"} < model.aliases


def test_the_first_name_given_is_the_id_and_the_others_are_aliases() -> None:
    model = served_model(served_model_name="chat, gpt-4o,x/y")
    assert model.name == "chat"
    assert refused(model, "chat", "gpt-4o", "x/y", "org/tiny", "tiny", "gpt-4") == ["gpt-4"]


def test_any_name_where_the_flag_says_so() -> None:
    assert refused(served_model(accept_any_model=True), "gpt-4o", "", "whisper") == []


def test_names_over_http() -> None:
    with serving(served_model_name="chat,gpt-4o") as running:
        for name in ("chat", "gpt-4o", "base", "tiny"):
            answer = running.openai.chat.completions.create(model=name, messages=user("say a"))
            assert answer.model == "chat"
        with pytest.raises(openai.NotFoundError) as caught:
            running.openai.chat.completions.create(model="nope", messages=user("say a"))
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert 'model_name="chat"' in running.http.get("/metrics").text
        assert [model.id for model in running.openai.models.list()] == ["chat"]
    with serving(accept_any_model=True) as running:
        answers: httpx.Response = running.chat("say a", model="anything at all")
        assert answers.json()["model"] == "org/tiny"


def test_the_flags_of_translation_are_obeyed() -> None:
    with serving(strict_max_tokens=True, default_completion_max_tokens=7) as running:
        running.http.post("/v1/completions", json={"prompt": "say a"})
        running.chat("say a", max_tokens=3)
        completion, chat = running.mailbox.requests
        assert (completion.max_tokens, completion.is_strict) == (7, False)
        assert (chat.max_tokens, chat.is_strict) == (3, True)
