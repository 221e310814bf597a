"""The load test's client, against a server over real sockets and a clock that the test moves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from benchmarks.load.client import Unreachable, first_model, open_session
from benchmarks.load.options import COMPLETIONS
from benchmarks.load.outcome import Completed, Failed, Outcome, Refused
from tests.benchmarks.sse_server import (
    DONE,
    USAGE,
    HandClock,
    Handler,
    ask_once,
    begin_stream,
    delta,
    event,
    serving,
    streaming,
)

TimedScript = Callable[[web.StreamResponse, HandClock], Awaitable[None]]


def outcome_of(handler: Handler) -> Outcome:
    """What becomes of one request, at second 0 throughout."""

    async def ask() -> Outcome:
        return await ask_once(handler, HandClock())

    return asyncio.run(ask())


def failure_of(handler: Handler) -> Failed:
    """The same when it must be a failure."""
    outcome = outcome_of(handler)
    assert isinstance(outcome, Failed)
    return outcome


def timed(script: TimedScript, endpoint: str = "/v1/chat/completions") -> Completed:
    """The answer to a stream that moves the clock between its pieces."""

    async def ask() -> Outcome:
        clock = HandClock()

        async def handle(request: web.Request) -> web.StreamResponse:
            response = await begin_stream(request)
            await script(response, clock)
            return response

        return await ask_once(handle, clock, endpoint)

    outcome = asyncio.run(ask())
    assert isinstance(outcome, Completed)
    return outcome


# ── times ────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_token_is_the_first_delta_with_text_and_gaps_are_between_those() -> None:
    async def script(response: web.StreamResponse, clock: HandClock) -> None:
        await clock.was_read_at(1.0)  # the request was sent at 0
        await response.write(delta(role="assistant", content=""))
        for seconds, piece in ((3.0, delta(content="a")), (4.0, delta(content="b")),
                               (6.5, delta("stop")), (7.0, event(USAGE))):  # fmt: skip
            await clock.was_read_at(seconds)
            await response.write(piece)
        await clock.was_read_at(9.0)
        await response.write(DONE)

    answer = timed(script)
    assert answer.sent == 0.0
    assert answer.text_times == (3.0, 4.0)
    assert answer.ended == 9.0
    assert (answer.ttft, answer.itls, answer.e2el) == (3.0, [1.0], 9.0)
    assert answer.tpot == (9.0 - 3.0) / (4 - 1)


@pytest.mark.parametrize("field", ["content", "reasoning", "reasoning_content"])
def test_reasoning_counts_as_text_like_content(field: str) -> None:
    async def script(response: web.StreamResponse, clock: HandClock) -> None:
        await clock.was_read_at(2.0)
        await response.write(delta(**{field: "hm"}))
        await clock.was_read_at(5.0)
        await response.write(delta("stop") + DONE)

    assert timed(script).ttft == 2.0


def test_the_text_of_completions_is_read_too() -> None:
    async def script(response: web.StreamResponse, clock: HandClock) -> None:
        await clock.was_read_at(2.0)
        await response.write(event({"choices": [{"text": "word", "finish_reason": None}]}))
        await clock.was_read_at(5.0)
        await response.write(event({**USAGE, "choices": [{"text": "", "finish_reason": "length"}]}))

    answer = timed(script, COMPLETIONS)
    assert answer.ttft == 2.0
    assert (answer.ended, answer.output_tokens) == (5.0, 4)


def test_an_event_that_comes_in_two_parts_is_there_with_the_second() -> None:
    async def script(response: web.StreamResponse, clock: HandClock) -> None:
        text = delta(content="größe")
        for seconds, part in ((1.0, text[:9]), (2.0, text[9:-1]), (3.0, text[-1:])):
            await clock.was_read_at(seconds)
            await response.write(part)
        await clock.was_read_at(4.0)
        await response.write(event(USAGE) + DONE)

    answer = timed(script)
    assert answer.text_times == (3.0,)
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 4)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("endpoint", "content"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two three"}]}),
        ("/v1/completions", {"prompt": "one two three"}),
    ],
)
def test_a_request_asks_for_a_stream_with_its_usage(
    endpoint: str, content: dict[str, object]
) -> None:
    seen: list[object] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.extend([request.headers["Authorization"], await request.json()])
        return await streaming(DONE)(request)

    asyncio.run(ask_once(handle, HandClock(), endpoint))
    assert seen == [
        "Bearer key",
        {
            "model": "org/served",
            **content,
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        },
    ]


def test_the_first_model_of_the_list_is_found() -> None:
    async def find() -> str:
        async with serving(streaming(DONE)) as url, open_session(None, 60.0) as session:
            return await first_model(session, url)

    assert asyncio.run(find()) == "org/served"


def test_a_server_that_is_not_there_is_said_to_be_unreachable() -> None:
    async def find() -> str:
        async with serving(streaming(DONE)) as url:
            pass
        async with open_session(None, 60.0) as session:
            return await first_model(session, url)

    with pytest.raises(Unreachable, match="is the server up"):
        asyncio.run(find())


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def test_tokens_are_the_usage_and_not_the_number_of_chunks() -> None:
    outcome = outcome_of(streaming(delta(content="a") * 9, event(USAGE), DONE))
    assert isinstance(outcome, Completed)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (7, 4)
    assert not outcome.is_estimated


def test_without_a_usage_tokens_are_estimated_from_characters_and_marked() -> None:
    outcome = outcome_of(streaming(delta(content="eight ch") * 3, DONE))
    assert isinstance(outcome, Completed)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (4, 6)  # 13 and 24 characters
    assert outcome.is_estimated


# ── refusals and failures ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_no_failure_and_has_its_time_and_message(status: int) -> None:
    async def ask() -> Outcome:
        clock = HandClock()

        async def handle(_: web.Request) -> web.StreamResponse:
            await clock.was_read_at(0.5)
            return web.json_response({"error": {"message": "the queue is full"}}, status=status)

        return await ask_once(handle, clock)

    assert asyncio.run(ask()) == Refused(0.0, 0.5, status, "the queue is full")


@pytest.mark.parametrize(
    "body",
    [b'{"error": {"message": "no such model"}}', b'{"error": "no such model"}',
     b'{"object": "error", "message": "no such model"}', b'{"detail": "no such model"}',
     b"no such\n model"],
)  # fmt: skip
def test_an_error_status_fails_with_its_message_in_any_of_the_usual_shapes(body: bytes) -> None:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404, body=body)

    failure = failure_of(handle)
    assert (failure.kind, failure.message) == ("HTTP 404", "no such model")


@pytest.mark.parametrize(
    "error",
    [{"error": {"message": "out of memory"}}, {"object": "error", "message": "out of memory"}],
)
def test_an_error_inside_a_stream_fails(error: object) -> None:
    failure = failure_of(streaming(delta(content="a"), event(error), DONE))
    assert (failure.kind, failure.message) == ("error event", "out of memory")


def test_a_connection_that_breaks_inside_a_stream_fails() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(delta(content="a"))
        assert request.transport is not None
        request.transport.close()
        return response

    assert failure_of(handle).kind == "cut stream"


def test_a_stream_that_ends_before_its_answer_does_fails() -> None:
    failure = failure_of(streaming(delta(content="a"), event(USAGE)))
    assert failure.kind == "cut stream"


def test_a_stream_without_done_is_whole_when_its_answer_has_finished() -> None:
    assert isinstance(outcome_of(streaming(delta("stop", content="a"))), Completed)


def test_an_answer_that_is_no_stream_fails_and_is_shown() -> None:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": []})

    failure = failure_of(handle)
    assert (failure.kind, failure.message) == ("no event stream", '{"choices": []}')


def test_an_event_that_is_no_json_fails_and_is_shown() -> None:
    failure = failure_of(streaming(b"data: {oops\n\n", DONE))
    assert failure.kind == "bad event"
    assert failure.message.endswith("{oops")


def test_a_request_beyond_its_time_fails() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()  # until the client has left
        raise AssertionError

    async def ask() -> Outcome:
        return await ask_once(handle, HandClock(), timeout_seconds=0.05)

    outcome = asyncio.run(ask())
    assert isinstance(outcome, Failed)
    assert outcome.kind == "timeout"


def test_a_server_that_closes_before_it_answers_fails_by_name() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert failure_of(handle).kind in {"ServerDisconnectedError", "ClientOSError"}
