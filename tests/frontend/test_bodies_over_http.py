"""Bad bodies over HTTP: a 400 in OpenAI's shape that names the field; good ones with all they have.

The tables are those of the tests of translation; here it is shown that HTTP adds nothing to them.
"""

from typing import Any

import pytest

from frontend.fields import CHAT, COMPLETION
from tests.frontend.conftest import RunningServer
from tests.frontend.test_translate import BAD_BODIES, BAD_VALUES

SAY: list[dict[str, str]] = [{"role": "user", "content": "say Hi"}]
BAD_BYTES = {
    "nothing": b"",
    "half": b"{",
    "not UTF-8": b'{"messages": "\xff"}',
    "half a surrogate": b'{"messages": "\\ud800"}',
    "NaN": b'{"messages": [], "temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
}
# What JSON allows and OpenAI's clients can send.
BAD_NUMBERS = [
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e30}', "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "seed": %d}' % 10**30, "seed"),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -%d}' % 10**30, "max_tokens"),
    (b'{"messages": [{"role": "user", "content": "x"}], "n": %d}' % 10**30, "n"),
]


def post(ready: RunningServer, body: bytes) -> Any:
    headers = {"content-type": "application/json"}
    return ready.http.post("/v1/chat/completions", content=body, headers=headers)


def assert_refused(response: Any, param: str | None) -> None:
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) < 350


@pytest.mark.parametrize(("body", "param", "_"), BAD_BODIES)
def test_bad_bodies(ready: RunningServer, body: Any, param: str | None, _: Any) -> None:
    assert_refused(ready.http.post("/v1/chat/completions", json=body), param)


@pytest.mark.parametrize(("name", "value", "_"), BAD_VALUES)
def test_bad_values(ready: RunningServer, name: str, value: Any, _: Any) -> None:
    assert_refused(ready.chat("say Hi", **{name: value}), name)


@pytest.mark.parametrize("body", BAD_BYTES.values(), ids=BAD_BYTES)
def test_bad_bytes(ready: RunningServer, body: bytes) -> None:
    assert_refused(post(ready, body), None)


@pytest.mark.parametrize(("body", "param"), BAD_NUMBERS)
def test_numbers_that_no_field_holds(ready: RunningServer, body: bytes, param: str) -> None:
    assert_refused(post(ready, body), param)


def test_of_a_key_that_comes_twice_the_last_counts(ready: RunningServer) -> None:
    twice = b'{"messages": "x", "messages": [{"role": "user", "content": "say Hi"}]}'
    assert post(ready, twice).json()["choices"][0]["message"]["content"] == "Hi"
    assert_refused(post(ready, b'{"messages": [], "messages": "x"}'), "messages")


def test_whatever_clients_send_beside_is_taken(ready: RunningServer) -> None:
    fields = {"messages": SAY, **dict.fromkeys(CHAT.without_effect, "x"), "foo": 1}
    response = ready.http.post("/v1/chat/completions", json=fields)
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "foo"


def test_null_is_as_good_as_nothing(ready: RunningServer) -> None:
    nulls = dict.fromkeys(CHAT.known - {"messages"})
    response = ready.http.post("/v1/chat/completions", json={"messages": SAY, **nulls})
    assert response.json()["choices"][0]["message"]["content"] == "Hi"
    nulls = dict.fromkeys(COMPLETION.known - {"prompt"})
    response = ready.http.post("/v1/completions", json={"prompt": "say Hi", **nulls})
    assert response.json()["choices"][0]["text"] == "Hi"


def test_what_is_not_utf_8_is_told_with_its_place(ready: RunningServer) -> None:
    message = post(ready, b'{"model": "\xe9"}').json()["error"]["message"]
    assert message.endswith("it is not UTF-8: byte 11 is 0xe9.")
