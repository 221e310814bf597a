"""Every other route of a real server: models, probes, metrics, the front door, its end."""

import base64
import dataclasses
import hashlib
import re
import threading

import httpx
import openai
import pytest

from frontend.version import VERSION
from shared.errors import ErrorCode
from shared.mailbox import LAUNCHER
from shared.messages import CreditGranted, Drained, Stop
from tests.frontend.conftest import RunningServer, serving, start_server, stop_server
from tests.frontend.fakes import MAX_MODEL_LEN, make_book, make_report
from tests.waiting import wait_until


def test_models(ready: RunningServer) -> None:
    listed = ready.openai.models.list().data
    assert [(m.id, m.object, m.owned_by) for m in listed] == [
        ("org/tiny", "model", "transformers-openai-api")
    ]
    assert ready.http.get("/models").json() == ready.http.get("/v1/models").json()
    assert ready.http.get("/v1/models").json()["data"][0]["max_model_len"] == MAX_MODEL_LEN


@pytest.mark.parametrize("name", ["org/tiny", "org%2Ftiny", "tiny", "model", "base"])
def test_one_model(ready: RunningServer, name: str) -> None:
    for prefix in ("/v1", ""):
        assert ready.http.get(f"{prefix}/models/{name}").json()["id"] == "org/tiny"


def test_one_model_by_the_official_client(ready: RunningServer) -> None:
    assert ready.openai.models.retrieve("org/tiny").id == "org/tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        ready.openai.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_one_model_by_its_path() -> None:
    running = start_server(model="/srv/models/tiny")
    try:
        assert running.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert "/srv" not in running.http.get("/metrics").text
        assert running.openai.models.retrieve("/srv/models/tiny").id == "tiny"
        for path in ("tiny", "srv/models/tiny", "/srv/models/tiny", "%2Fsrv%2Fmodels%2Ftiny"):
            assert running.http.get(f"/v1/models/{path}").json()["id"] == "tiny"
    finally:
        stop_server(running)


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/live", "/metrics", "/v1/models", "/v1/models/tiny"]
)
def test_head_is_get_without_a_body(ready: RunningServer, path: str) -> None:
    whole, head = ready.http.get(path), ready.http.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert "content-length" in head.headers
    assert ready.http.get("/live").json() == {"status": "ok"}  # on the same connection


def test_head_is_not_post(ready: RunningServer) -> None:
    assert ready.http.head("/v1/chat/completions").status_code == 405


def test_unknown_paths_and_methods(ready: RunningServer) -> None:
    response = ready.http.get("/v1/nope")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"
    assert "GET /v1/nope" in response.json()["error"]["message"]
    response = ready.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    assert response.json()["error"]["code"] is None
    assert isinstance(response.json()["error"]["message"], str)


def test_request_ids(ready: RunningServer) -> None:
    for path in ("/version", "/v1/nope", "/health"):
        assert (
            ready.http.get(path, headers={"X-Request-Id": "abc-1"}).headers["x-request-id"]
            == "abc-1"
        )
    for unsafe in (b"a b", b"x" * 129, "é".encode()):
        response = ready.http.get("/version", headers={b"X-Request-Id": unsafe})
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_the_log_names_a_request_as_its_caller_does(
    ready: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="frontend.meter")
    body = {"messages": [{"role": "user", "content": "say Hi"}]}
    headers = {"x-request-id": "trace-77"}
    answer = ready.http.post("/v1/chat/completions", json=body, headers=headers)
    wait_until(lambda: f"{answer.json()['id']} (trace-77) prompt=" in caplog.text, 5)
    assert answer.headers["x-request-id"] == "trace-77"


def test_version_and_index(ready: RunningServer) -> None:
    assert ready.http.get("/version").json() == {"version": VERSION}
    index = ready.http.get("/").json()
    assert (index["model"], index["version"]) == ("org/tiny", VERSION)
    assert "POST /v1/chat/completions" in index["endpoints"]


def test_the_page_may_run_its_own_script_only(ready: RunningServer) -> None:
    response = ready.http.get("/", headers={"Accept": "text/html,*/*"})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    for tag in ("script", "style"):
        match = re.search(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        assert match is not None
        digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_metrics(ready: RunningServer) -> None:
    ready.chat("say a|b|c")
    response = ready.http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:request_prompt_tokens_bucket",
        "vllm:request_generation_tokens_bucket",
    ):
        assert re.search(
            rf'^{name}{{engine="0",.*model_name="org/tiny"', response.text, re.MULTILINE
        )
    before = ready.metric("vllm:generation_tokens_total")
    ready.chat("say a|b|c")
    assert ready.metric("vllm:generation_tokens_total") == before + 3


def statuses(running: RunningServer) -> tuple[int, str, int]:
    """(status of /health, its word, status of /ready)"""
    health = running.http.get("/health")
    return health.status_code, health.json()["status"], running.http.get("/ready").status_code


def test_probes_through_a_life(loading: RunningServer) -> None:
    assert statuses(loading) == (503, "loading", 503)
    body = loading.http.get("/v1/health").json()
    assert body["error"]["code"] == "model_loading"
    response = loading.chat("say a")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert loading.http.get("/live").json() == {"status": "ok"}

    loading.mailbox.deliver(make_book(ready=False))
    assert statuses(loading) == (503, "loading", 503)

    loading.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 9), make_report(1))
    wait_until(lambda: statuses(loading) == (200, "ok", 200), 5)

    wait_until(lambda: statuses(loading) == (503, "stalled", 503), 5)  # it reports no more
    loading.mailbox.deliver(make_report(1))
    wait_until(lambda: statuses(loading) == (200, "ok", 200), 5)

    loading.mailbox.deliver(make_book({"worker-0": 0}))
    wait_until(lambda: statuses(loading) == (503, "dead", 503), 5)
    assert loading.chat("say a").json()["error"]["code"] == "engine_dead"
    for path in ("/healthz", "/readyz"):
        assert loading.http.get(path).status_code == 503
    assert loading.http.get("/livez").status_code == 200


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/completions"])
def test_what_cannot_be_answered_yet_is_refused_unread(loading: RunningServer, path: str) -> None:
    response = loading.http.post(path, content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 503, "the body is no JSON, and nobody has looked"
    assert response.json()["error"]["code"] == "model_loading"


def test_too_many(loading: RunningServer) -> None:
    loading.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 9), make_report(1))
    wait_until(lambda: loading.http.get("/health").status_code == 200, 5)
    threads = [threading.Thread(target=loading.chat, args=("hang",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(loading.mailbox.requests) == 2, 5)
    response = loading.chat("say a")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"
    ready = loading.http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "full")
    loading.mailbox.deliver(make_book({"worker-0": 2}))  # ends the two
    for thread in threads:
        thread.join(5)


@pytest.mark.parametrize("content", ["start abc", "hang"])
def test_the_end_tells_open_requests_why(content: str) -> None:
    running = start_server()
    running.mailbox.deliver(make_book(), CreditGranted("tokenizer-0", 1, 9), make_report(1))
    wait_until(lambda: running.http.get("/health").status_code == 200, 5)
    found: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: found.append(running.chat(content, stream=True)))
    asking.start()
    wait_until(lambda: running.mailbox.requests, 5)
    running.mailbox.deliver(Stop(ErrorCode.ENGINE_DEAD, "worker-0 died"))
    asking.join(5)
    running.thread.join(5)
    assert not running.thread.is_alive()
    running.http.close()
    running.mailbox.close()
    assert found[0].status_code == (503 if content == "hang" else 200)
    assert "worker-0 died" in found[0].text
    assert content == "hang" or found[0].text.endswith("data: [DONE]\n\n")


def test_the_end_of_a_drain_is_told_until_the_launcher_is_reached() -> None:
    drained = (LAUNCHER, Drained("frontend-0", 1))
    with serving() as running:
        mailbox = running.mailbox
        mailbox.unreachable.add(LAUNCHER)
        mailbox.deliver(dataclasses.replace(make_book(), is_draining=True))
        wait_until(lambda: mailbox.lost.count(drained) >= 2, 5)
        mailbox.unreachable.clear()
        wait_until(lambda: drained in mailbox.sent, 5)
        num_lost = mailbox.lost.count(drained)
        assert running.chat("say a").status_code == 503
    assert (mailbox.sent.count(drained), mailbox.lost.count(drained)) == (1, num_lost)


def test_a_bug_in_the_loop_ends_the_room_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failures.append(args.exc_value))
    running = start_server()
    running.mailbox.deliver("not a message")  # type: ignore[arg-type]  # on purpose
    running.thread.join(5)
    assert not running.thread.is_alive()
    running.http.close()
    running.mailbox.close()
    assert isinstance(failures[0], AssertionError)
