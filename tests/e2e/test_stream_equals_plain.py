"""Whatever a request asks for, its stream put together is the answer in one piece."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.schemas import ChatRequest, CompletionRequest
from tests.e2e.assembled import Assembled, from_body, from_stream
from tests.e2e.drawn_requests import (
    FRAMING,
    LENGTHS,
    OF_CHAT,
    OF_COMPLETION,
    UNKNOWN_NAMES,
    chats,
    completions,
)
from tests.e2e.server import RunningServer
from tests.examples import num_examples

pytestmark = pytest.mark.e2e
# The rooms behind the frontend do not all do yet what it asks of them.
HAS_LOGPROBS = True  # from the worker
HAS_TEXT_PROMPTS = True  # in the tokenizer

STREAM_OPTIONS = st.sampled_from([{}, {"include_usage": False}, {"include_usage": True}])
EXAMPLES = settings(
    max_examples=num_examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def http(formula_server: RunningServer) -> Any:
    """A client that all examples share."""
    with httpx.Client(base_url=formula_server.url, timeout=30) as client:
        yield client


def test_every_obeyed_field_is_drawn() -> None:
    by_hand = {*FRAMING, *LENGTHS, "logprobs"}
    chat = {*OF_CHAT, *by_hand, "messages", "top_logprobs"}
    assert chat == set(ChatRequest.__struct_fields__)
    completion = {*OF_COMPLETION, *by_hand, "prompt", "suffix"}
    assert completion == set(CompletionRequest.__struct_fields__)


@EXAMPLES
@given(body=chats(has_logprobs=HAS_LOGPROBS), options=STREAM_OPTIONS)
def test_a_streamed_chat_is_the_plain_one(
    http: httpx.Client, body: dict[str, Any], options: dict[str, bool]
) -> None:
    assert_equal(http, "/v1/chat/completions", body, options)


@pytest.mark.skipif(not HAS_TEXT_PROMPTS, reason="the tokenizer reads conversations only")
@EXAMPLES
@given(body=completions(has_logprobs=HAS_LOGPROBS), options=STREAM_OPTIONS)
def test_a_streamed_completion_is_the_plain_one(
    http: httpx.Client, body: dict[str, Any], options: dict[str, bool]
) -> None:
    assert_equal(http, "/v1/completions", body, options)


def assert_equal(
    http: httpx.Client, path: str, body: dict[str, Any], options: dict[str, bool]
) -> None:
    """Both ways give the same, and say which names of the body mean nothing."""
    streaming = {"stream": True} | ({"stream_options": options} if options else {})
    plain = from_body(http.post(path, json=body))
    streamed = from_stream(http.post(path, json={**body, **streaming}))
    if plain.error is None:
        names = [shown for name, shown in UNKNOWN_NAMES.items() if name in body]
        given = [] if plain.ignored_fields is None else plain.ignored_fields.split(", ")
        assert sorted(given) == sorted(names)
        assert_sound(plain, body)
        assert (streamed.usage is not None) == bool(options.get("include_usage"))
    forget_what_may_differ(plain, streamed)
    assert streamed == plain


def assert_sound(plain: Assembled, body: dict[str, Any]) -> None:
    """What holds of any answer."""
    assert plain.usage is not None
    cached = plain.usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 <= cached < plain.usage["prompt_tokens"]
    assert sorted(plain.choices) == [*range(len(plain.choices))]
    is_scored = body.get("logprobs", False) is not False
    for choice in plain.choices.values():
        scored = "".join(map(text_of, choice.logprobs))
        # Thoughts are scored too, and stand before the answer.
        assert scored.endswith(choice.text) if is_scored else not scored


def text_of(line: Any) -> str:
    """The token of one line of logprobs; see `assembled.py`."""
    token: str = line["token"] if isinstance(line, dict) else line[0]
    return token


def forget_what_may_differ(plain: Assembled, streamed: Assembled) -> None:
    """The second request finds more of its prompt in the cache, and may say nothing of its cost."""
    for assembled in (plain, streamed):
        if assembled.usage is not None:
            del assembled.usage["prompt_tokens_details"]
    if streamed.usage is None:
        plain.usage = None
