"""Golden bytes of streams, bodies and errors."""

import orjson
import pytest

from frontend import responses
from frontend.events import Accepted, Event, Failed, Finished, TextAdded
from frontend.responses import Head
from frontend.shapes import Answer, ChatShape
from frontend.stream import AnswerStream
from shared.errors import FAILURES, ErrorCode, RequestError

HEAD = Head("chatcmpl-1", 1700000000, "m")
FINGERPRINT = responses.fingerprint("m").encode()
PREFIX = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"system_fingerprint":"' + FINGERPRINT + b'","choices":['
)
COST = (
    b'{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,'
    b'"prompt_tokens_details":{"cached_tokens":4},'
    b'"completion_tokens_details":{"reasoning_tokens":0}}'
)


def choice(delta: bytes, reason: bytes = b"null", usage: bytes = b"", index: int = 0) -> bytes:
    stop_reason = b"" if reason == b"null" else b',"stop_reason":null'
    return (
        PREFIX + b'{"index":%d,"delta":' % index + delta + b',"logprobs":null,"finish_reason":'
        + reason + stop_reason + b"}]" + usage + b"}\n\n"
    )  # fmt: skip


def make_stream(*, num_choices: int = 1, include_usage: bool = False) -> AnswerStream:
    shape = ChatShape(num_choices, has_logprobs=False)
    return AnswerStream(HEAD, shape, [Accepted(9)], include_usage=include_usage)


def whole(pieces: list[TextAdded], finished: Finished) -> bytes:
    """The body of a chat whose answers came in these pieces."""
    answers = [Answer() for _ in range(1 + max(piece.choice for piece in pieces))]
    for piece in pieces:
        answers[piece.choice].add(piece)
    shape = ChatShape(len(answers), has_logprobs=False)
    return responses.whole(HEAD, shape, [Accepted(9)], answers, finished)


def test_chunks() -> None:
    chunks = make_stream()
    assert chunks.opening() == choice(b'{"role":"assistant","content":""}')
    assert chunks.encode([TextAdded(0, "Hel", 1), TextAdded(0, "lo\n", 2)]) == choice(
        b'{"content":"Hello\\n"}'
    )
    assert chunks.encode([TextAdded(0, "", 2)]) == b""
    assert not chunks.is_over
    ending = chunks.encode([TextAdded(0, "!", 3, "stop"), Finished(3, 4)])
    assert ending == choice(b'{"content":"!"}') + choice(b"{}", b'"stop"') + b"data: [DONE]\n\n"
    assert chunks.is_over


def test_usage_comes_last_and_is_null_before() -> None:
    chunks = make_stream(include_usage=True)
    null = b',"usage":null'
    assert chunks.opening() == choice(b'{"role":"assistant","content":""}', usage=null)
    assert chunks.encode([TextAdded(0, "a", 1)]) == choice(b'{"content":"a"}', usage=null)
    assert chunks.encode([TextAdded(0, "", 3, "length"), Finished(3, 4)]) == (
        choice(b"{}", b'"length"', null) + PREFIX + b'],"usage":' + COST + b"}\n\ndata: [DONE]\n\n"
    )


def test_every_answer_has_its_role_its_text_and_its_end() -> None:
    chunks = make_stream(num_choices=2)
    role = b'{"role":"assistant","content":""}'
    assert chunks.opening() == choice(role) + choice(role, index=1)
    mixed = [TextAdded(1, "x", 1), TextAdded(0, "a", 1), TextAdded(1, "y", 2)]
    assert chunks.encode(mixed) == (
        choice(b'{"content":"xy"}', index=1) + choice(b'{"content":"a"}')
    )
    assert chunks.encode([TextAdded(1, "", 3, "length")]) == choice(b"{}", b'"length"', index=1)
    assert not chunks.is_over, "the other answer goes on"
    assert chunks.encode([TextAdded(0, "b", 2, "stop"), Finished(5, 4)]) == (
        choice(b'{"content":"b"}') + choice(b"{}", b'"stop"') + b"data: [DONE]\n\n"
    )
    assert chunks.is_over


def test_answers_that_end_together_have_all_their_text_before_the_end() -> None:
    chunks = make_stream(num_choices=2, include_usage=True)
    ends: list[Event] = [TextAdded(0, "a", 1, "stop"), TextAdded(1, "b", 2, "stop"), Finished(3, 4)]
    null = b',"usage":null'
    assert chunks.encode(ends) == (
        choice(b'{"content":"a"}', usage=null)
        + choice(b'{"content":"b"}', usage=null, index=1)
        + choice(b"{}", b'"stop"', null)
        + choice(b"{}", b'"stop"', null, index=1)
        + PREFIX + b'],"usage":' + COST + b"}\n\ndata: [DONE]\n\n"
    )  # fmt: skip


def test_failure_after_the_first_byte() -> None:
    chunks = make_stream(include_usage=True)
    failed = Failed(RequestError(ErrorCode.INTERNAL, 'a "b"\n'))
    found = chunks.encode([TextAdded(0, "a", 1), failed])
    assert found == choice(b'{"content":"a"}', usage=b',"usage":null') + (
        b'data: {"error":{"message":"a \\"b\\"\\n","type":"server_error","param":null,'
        b'"code":"internal_error"}}\n\ndata: [DONE]\n\n'
    )
    assert chunks.is_over


def test_only_answers_have_chunks() -> None:
    with pytest.raises(ValueError, match="has no chunk"):
        make_stream().encode([Accepted(3)])


def test_whole_answer() -> None:
    pieces = [TextAdded(0, "Hel", 1), TextAdded(0, "", 2), TextAdded(0, "lo", 3, "stop")]
    body = whole(pieces, Finished(3, 4))
    assert body == (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m",'
        b'"system_fingerprint":"' + FINGERPRINT + b'","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,'
        b'"finish_reason":"stop","stop_reason":null}],"usage":' + COST + b"}"
    )


def test_whole_answers_stand_in_the_order_of_their_choices() -> None:
    pieces = [
        TextAdded(2, "", 1, "stop"), TextAdded(1, "x", 1), TextAdded(0, "a", 1),
        TextAdded(1, "y", 2, "length"), TextAdded(0, "b", 2, "stop"),
    ]  # fmt: skip
    body = orjson.loads(whole(pieces, Finished(5, 4)))
    found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]]
    assert found == [(0, "ab", "stop"), (1, "xy", "length"), (2, "", "stop")]
    assert body["usage"]["prompt_tokens"] == 9, "the prompt counts once"
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == 14


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
