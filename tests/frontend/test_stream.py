"""Golden bytes of streams, bodies and errors."""

import orjson
import pytest

from frontend import responses
from frontend.events import Accepted, Failed, Finished, TextAdded
from frontend.responses import Head
from frontend.stream import ChatStream
from shared.errors import FAILURES, ErrorCode, RequestError

HEAD = Head("chatcmpl-1", 1700000000, "m")
FINGERPRINT = responses.fingerprint("m").encode()
PREFIX = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"system_fingerprint":"' + FINGERPRINT + b'","choices":['
)
COST = (
    b'{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,'
    b'"prompt_tokens_details":{"cached_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0}}'
)


def choice(delta: bytes, reason: bytes = b"null", usage: bytes = b"") -> bytes:
    return (
        PREFIX + b'{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + reason
        + b"}]" + usage + b"}\n\n"
    )  # fmt: skip


def test_chunks() -> None:
    chunks = ChatStream(HEAD, 9, include_usage=False)
    assert chunks.opening() == choice(b'{"role":"assistant","content":""}')
    assert chunks.encode([TextAdded("Hel", 1), TextAdded("lo\n", 2)]) == choice(
        b'{"content":"Hello\\n"}'
    )
    assert chunks.encode([TextAdded("", 2)]) == b""
    assert not chunks.is_over
    ending = chunks.encode([TextAdded("!", 3), Finished("stop", 3)])
    assert ending == choice(b'{"content":"!"}') + choice(b"{}", b'"stop"') + b"data: [DONE]\n\n"
    assert chunks.is_over


def test_usage_comes_last_and_is_null_before() -> None:
    chunks = ChatStream(HEAD, 9, include_usage=True)
    null = b',"usage":null'
    assert chunks.opening() == choice(b'{"role":"assistant","content":""}', usage=null)
    assert chunks.encode([TextAdded("a", 1)]) == choice(b'{"content":"a"}', usage=null)
    assert chunks.encode([Finished("length", 3)]) == (
        choice(b"{}", b'"length"', null) + PREFIX + b'],"usage":' + COST + b"}\n\ndata: [DONE]\n\n"
    )


def test_failure_after_the_first_byte() -> None:
    chunks = ChatStream(HEAD, 9, include_usage=True)
    found = chunks.encode([TextAdded("a", 1), Failed(RequestError(ErrorCode.INTERNAL, 'a "b"\n'))])
    assert found == choice(b'{"content":"a"}', usage=b',"usage":null') + (
        b'data: {"error":{"message":"a \\"b\\"\\n","type":"server_error","param":null,'
        b'"code":"internal_error"}}\n\ndata: [DONE]\n\n'
    )
    assert chunks.is_over


def test_only_answers_have_chunks() -> None:
    with pytest.raises(ValueError, match="has no chunk"):
        ChatStream(HEAD, 9, include_usage=False).encode([Accepted(3)])


def test_whole_answer() -> None:
    body = responses.chat_completion(
        HEAD, 9, [TextAdded("Hel", 1), TextAdded("", 2), TextAdded("lo", 3)], Finished("stop", 3)
    )
    assert body == (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m",'
        b'"system_fingerprint":"' + FINGERPRINT + b'","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,'
        b'"finish_reason":"stop"}],"usage":' + COST + b"}"
    )


@pytest.mark.parametrize("code", ErrorCode)
def test_errors(code: ErrorCode) -> None:
    error = RequestError(code, "why", "field")
    inner = orjson.loads(orjson.dumps(responses.error_object(error)))["error"]
    assert set(inner) == {"message", "type", "param", "code"}
    assert inner["code"] in {code.value, None}
    headers = responses.error_headers(error)
    assert ("retry-after" in headers) == (FAILURES[code].retry_after_seconds is not None)
    assert ("x-should-retry" in headers) == (responses.error_status(error) in {500, 504})


def test_invalid_json_has_no_code() -> None:
    error = responses.error_object(RequestError(ErrorCode.INVALID_JSON, "x"))["error"]
    assert error["code"] is None
