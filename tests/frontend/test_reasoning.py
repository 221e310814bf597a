"""Thoughts on the wire: what asks for them, under which names they come, and what they cost."""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import orjson
import pytest

from frontend import pulse, responses, translate
from frontend.events import Accepted, Event, Finished, TextAdded
from frontend.responses import Head
from frontend.served_model import ServedModel
from frontend.shapes import Answer, ChatShape
from frontend.stream import AnswerStream
from frontend.translate import Ask
from shared.config import FrontendConfig, ModelConfig
from shared.errors import BadRequest, ErrorCode
from shared.messages import RequestFailed
from shared.parts import ScoredToken
from tests.frontend.conftest import RunningServer
from tests.frontend.fakes import Piece, make_texts

HEAD = Head("chatcmpl-1", 1700000000, "m")
MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
BOTH = ("reasoning_content", "reasoning")
EVENTS: list[Event] = [
    TextAdded(0, "", 1),
    TextAdded(0, "", 2, thoughts="Hm"),
    TextAdded(0, "", 3, thoughts="m."),
    TextAdded(0, "Hi", 4),
    TextAdded(0, "!", 5, "stop"),
    Finished(5, 0, 3),
]


def chat(reasoning_field: str = "both", **given: Any) -> Ask:
    """The translated request."""
    rules = translate.Rules(MODEL, 8, {}, reasoning_field=reasoning_field)
    body = {"messages": [{"role": "user", "content": "hello"}], **given}
    return translate.chat(json.dumps(body).encode(), rules, random_seed=5)


def how(ask: Ask) -> tuple[bool, tuple[str, ...]]:
    """Whether thoughts are told apart, and their names."""
    return ask.submission.text.splits_thoughts, ask.framing.reasoning_keys


def shape(keys: tuple[str, ...] = BOTH, *, has_logprobs: bool = False) -> ChatShape:
    """One answer."""
    return ChatShape(1, has_logprobs=has_logprobs, reasoning_keys=keys)


def deltas(events: list[list[Event]], keys: tuple[str, ...] = BOTH) -> list[dict[str, str]]:
    """Those of a stream whose events come in these groups, without the first and the last."""
    stream = AnswerStream(HEAD, shape(keys), [Accepted(9)], include_usage=False)
    raw = stream.opening() + b"".join(map(stream.encode, events))
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    found = [orjson.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert (found[0], found[-1]) == ({"role": "assistant", "content": ""}, {})
    return found[1:-1]


def message(events: list[Event], keys: tuple[str, ...] = BOTH) -> dict[str, Any]:
    """The message of the same answer in one piece."""
    answer = Answer()
    for event in events:
        if isinstance(event, TextAdded):
            answer.add(event)
    found: dict[str, Any] = shape(keys).whole(0, answer)["message"]
    return found


def test_thoughts_have_two_names_unless_the_server_says_one() -> None:
    assert how(chat()) == (True, BOTH)
    assert how(chat("reasoning")) == (True, ("reasoning",))
    assert how(chat("reasoning_content")) == (True, ("reasoning_content",))
    assert how(chat("none")) == (False, ())


def test_a_request_may_leave_thoughts_where_they_are_or_leave_them_out() -> None:
    assert how(chat(separate_reasoning=False)) == (False, ())
    assert how(chat(include_reasoning=False)) == (True, ())
    assert how(chat("none", include_reasoning=False)) == (True, ())
    assert how(chat(include_reasoning=False, separate_reasoning=False)) == (True, ())
    assert how(chat(include_reasoning=True, separate_reasoning=True)) == (True, BOTH)


def test_thoughts_that_stay_in_the_content_keep_marks_that_are_special_tokens() -> None:
    def hides(*flags: str, **given: Any) -> bool:
        return chat(*flags, **given).submission.text.skips_special_tokens

    assert hides() is hides(include_reasoning=False) is True
    assert hides("none") is hides(separate_reasoning=False) is False
    assert hides("none", skip_special_tokens=True) is True
    assert hides(skip_special_tokens=False) is False


def test_completions_never_split() -> None:
    rules = translate.Rules(MODEL, 8, {})
    ask = translate.completion(b'{"prompt": "hello"}', rules, random_seed=5)
    assert how(ask) == (False, ())
    assert ask.submission.text.skips_special_tokens


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            {"reasoning_effort": "none", "enable_thinking": True},
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            {"reasoning_effort": "high"},
        ),
    ],
)
def test_the_template_hears_of_the_effort(given: dict[str, Any], told: dict[str, Any]) -> None:
    (prompt,) = chat(**given).submission.prompts
    assert prompt.chat is not None
    assert prompt.chat.template_kwargs == told


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        chat(reasoning_effort="very")
    assert caught.value.param == "reasoning_effort"


def test_tools_that_must_not_be_called_are_left_out() -> None:
    with_tools = chat(tools=[{"type": "function"}], tool_choice="none")
    assert with_tools == chat()
    assert chat(tools=[]) == chat(tool_choice="auto") == chat()


@pytest.mark.parametrize("tools", [{}, ["x"], [{}] * 129])
def test_tools_that_must_not_be_called_are_a_list_of_objects_all_the_same(tools: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(tools=tools, tool_choice="none")
    assert caught.value.param.startswith("tools")  # type: ignore[union-attr]  # it has a name


def test_a_delta_has_thoughts_or_text() -> None:
    assert deltas([[event] for event in EVENTS]) == [
        dict.fromkeys(BOTH, "Hm"),
        dict.fromkeys(BOTH, "m."),
        {"content": "Hi"},
        {"content": "!"},
    ]


def test_a_delta_has_both_where_both_are_new() -> None:
    assert deltas([EVENTS]) == [{**dict.fromkeys(BOTH, "Hmm."), "content": "Hi!"}]


@pytest.mark.parametrize("keys", [BOTH, ("reasoning",), ()])
def test_a_stream_adds_up_to_the_message(keys: tuple[str, ...]) -> None:
    whole = message(EVENTS, keys)
    assert whole == {
        "role": "assistant", "content": "Hi!", "refusal": None, **dict.fromkeys(keys, "Hmm."),
    }  # fmt: skip
    for groups in ([[event] for event in EVENTS], [EVENTS[:3], EVENTS[3:]], [EVENTS]):
        found = deltas(groups, keys)
        for name in ("content", *keys):
            assert "".join(delta.get(name, "") for delta in found) == whole[name]


def test_thoughts_that_are_left_out_make_no_chunks() -> None:
    assert deltas([[event] for event in EVENTS], ()) == [{"content": "Hi"}, {"content": "!"}]


def test_a_message_without_thoughts_has_no_such_key() -> None:
    assert message([TextAdded(0, "Hi", 1, "stop")]).keys() == {"role", "content", "refusal"}


def test_tokens_of_thoughts_come_with_them() -> None:
    token = ScoredToken("Hm", (72, 109), -0.5, ())
    part = Answer()
    part.add(TextAdded(0, "", 1, tokens=(token,), thoughts="Hm"))
    choice = shape(has_logprobs=True).piece(0, part)
    assert choice is not None
    assert choice["delta"] == dict.fromkeys(BOTH, "Hm")
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["Hm"]


def test_the_usage_counts_thoughts() -> None:
    cost = responses.usage([Accepted(9)], Finished(5, 0, 3))
    assert cost["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert cost["completion_tokens"] == 5


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────


def test_the_client_reads_thoughts_and_text(ready: RunningServer) -> None:
    completion = ready.openai.chat.completions.create(
        model="org/tiny", messages=[{"role": "user", "content": "say ~Hm|~m.|Hi|!"}]
    )
    said = completion.choices[0].message
    assert (said.content, said.model_extra) == ("Hi!", dict.fromkeys(BOTH, "Hmm."))
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 2


def test_the_client_reads_thoughts_of_several_answers_in_a_stream(ready: RunningServer) -> None:
    stream: Any = ready.openai.chat.completions.create(
        model="org/tiny", n=2, stream=True, stream_options={"include_usage": True},
        messages=[{"role": "user", "content": "say ~Hm|a|b/~Ah|~ha|c"}],
    )  # fmt: skip
    thoughts, texts = {0: "", 1: ""}, {0: "", 1: ""}
    cost: Any = None
    for chunk in stream:
        cost = chunk.usage
        for choice in chunk.choices:
            thoughts[choice.index] += choice.delta.model_extra.get("reasoning", "")
            texts[choice.index] += choice.delta.content or ""
    assert (thoughts, texts) == ({0: "Hm", 1: "Ahha"}, {0: "ab", 1: "c"})
    assert cost.completion_tokens_details.reasoning_tokens == 3


def test_thoughts_may_be_left_out(ready: RunningServer) -> None:
    body = ready.chat("say ~Hm|Hi", include_reasoning=False).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hi", "refusal": None}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


def test_thoughts_are_told_apart_where_the_detokenizer_was_asked(ready: RunningServer) -> None:
    for given, splits in (({}, True), ({"separate_reasoning": False}, False)):
        assert ready.chat("say a", **given).status_code == 200
        assert ready.mailbox.requests[-1].text.splits_thoughts == splits


@contextlib.contextmanager
def thinking_on(ready: RunningServer, request_id: str) -> Iterator[None]:
    """Thoughts of this request come all the time."""
    enough = threading.Event()

    def think() -> None:
        for seq in itertools.count(1):
            ready.mailbox.deliver(make_texts(request_id, Piece(0, seq, "", thoughts="m")))
            if enough.wait(0.01):
                return

    thread = threading.Thread(target=think)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_thoughts_that_are_left_out_do_not_let_the_connection_fall_asleep(
    ready: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "KEEP_ALIVE_SECONDS", 0.1)
    body = {
        "messages": [{"role": "user", "content": "start ~Hm"}],
        "stream": True,
        "include_reasoning": False,
    }
    with ready.http.stream("POST", "/v1/chat/completions", json=body) as response:
        request_id = ready.mailbox.requests[-1].request_id
        lines = response.iter_lines()
        with thinking_on(ready, request_id):
            before = list(itertools.takewhile(lambda line: line != ": keep-alive", lines))
        ready.mailbox.deliver(RequestFailed(request_id, ErrorCode.INTERNAL, "enough", None))
        assert not any("reasoning" in line for line in [*before, *lines])


def test_refused_effort_names_its_field(ready: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ready.openai.chat.completions.create(
            model="org/tiny",
            messages=[{"role": "user", "content": "say a"}],
            reasoning_effort="very",  # type: ignore[call-overload]  # it must be refused
        )
    assert caught.value.param == "reasoning_effort"
