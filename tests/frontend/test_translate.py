"""Bodies to prompts; bad ones to 400 with the path of the fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from frontend import translate
from frontend.fields import CHAT
from frontend.schemas import MAX_PARTS, MAX_TOOL_CALLS
from frontend.served_model import ServedModel
from shared import wire
from shared.config import FrontendConfig, ModelConfig
from shared.errors import FAILURES, BadRequest, ErrorCode, RequestError
from shared.messages import Tokenize
from shared.parts import ChatPrompt, TextOptions
from shared.sampling import SamplingParams
from tests.builders import ROUTE

MODEL = ServedModel(FrontendConfig(model=ModelConfig(hf_model="org/tiny")), created=1)
RULES = translate.Rules(MODEL, max_choices=8, sampling_defaults={})
HELLO = [{"role": "user", "content": "hello"}]
PART = {"type": "text", "text": "x"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}


def chat(body: Any = None, /, **values: Any) -> translate.Ask:
    given = {"messages": HELLO, **values} if body is None else body
    return translate.chat(json.dumps(given).encode(), RULES, random_seed=5)


def conversation(ask: translate.Ask) -> ChatPrompt:
    """What the template is given."""
    (prompt,) = ask.submission.prompts
    assert prompt.chat is not None
    return prompt.chat


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def test_defaults() -> None:
    found = chat()
    assert conversation(found) == ChatPrompt(({"role": "user", "content": "hello"},), {})
    assert found.submission.sampling == SamplingParams(seed=5)
    assert found.submission.max_tokens is None
    assert found.submission.text == TextOptions(splits_thoughts=True)
    keys = ("reasoning_content", "reasoning")
    assert found.framing == translate.Framing(reasoning_keys=keys)


def test_every_optional_field_may_be_null() -> None:
    names = CHAT.known - {"messages"}
    assert chat(**dict.fromkeys(names)) == chat()


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    assert chat(max_tokens=8.0, n=2.0, stop_token_ids=[5.0]) == chat(
        max_tokens=8, n=2, stop_token_ids=[5]
    )
    assert chat(max_tokens=1e30) == chat(max_tokens=10**30)
    nested = [[5.0, 6], [7]]
    asked = translate.completion(json.dumps({"prompt": nested}).encode(), RULES, random_seed=5)
    assert [prompt.token_ids for prompt in asked.submission.prompts] == [(5, 6), (7,)]


MESSAGES = [
    ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "ab"},
    ),
    (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [CALL],
            "refusal": None,
            "audio": None,
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"a": [1]}}, "id": "c1"}
            ],
        },
    ),
    (
        {"role": "tool", "tool_call_id": "c1", "content": "5", "junk": 1},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ),
    (
        {"role": "assistant", "content": "x", "reasoning_content": "y"},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "reasoning": "y"},
    ),
    (
        {"role": "assistant", "content": "x", "reasoning": "y"},
        {"role": "assistant", "content": "x", "reasoning_content": "y", "reasoning": "y"},
    ),
    ({"role": "assistant", "refusal": "no"}, {"role": "assistant", "content": "no"}),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": "no"},
    ),
]


@pytest.mark.parametrize(("given", "rendered"), MESSAGES)
def test_messages(given: dict[str, Any], rendered: dict[str, Any]) -> None:
    assert conversation(chat(messages=[given])).messages == (rendered,)


@pytest.mark.parametrize("arguments", ["", "not json", "[1]", '"x"', '{"a": 1e999}'])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    found = conversation(chat(messages=[{"role": "assistant", "tool_calls": [call]}]))
    assert found.messages[0]["tool_calls"][0]["function"]["arguments"] == arguments


def assistant(**call: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{**CALL, **call}]}]


BAD_BODIES = [
    ({}, "messages", ErrorCode.MISSING_PARAMETER),
    ({"messages": None}, "messages", ErrorCode.MISSING_PARAMETER),
    ({"messages": "x"}, "messages", ErrorCode.INVALID_TYPE),
    ({"messages": []}, "messages", ErrorCode.EMPTY_ARRAY),
    ({"messages": HELLO * 1025}, "messages", ErrorCode.INVALID_VALUE),
    ({"messages": [{}]}, "messages[0].role", ErrorCode.MISSING_PARAMETER),
    ({"messages": [*HELLO, 5]}, "messages[1]", ErrorCode.INVALID_TYPE),
    (
        {"messages": [{"role": "wizard", "content": "x"}]},
        "messages[0].role",
        ErrorCode.INVALID_VALUE,
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content", ErrorCode.MISSING_PARAMETER),
    (
        {"messages": [{"role": "user", "content": [PART] * (MAX_PARTS + 1)}]},
        "messages[0].content",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL] * (MAX_TOOL_CALLS + 1)}]},
        "messages[0].tool_calls",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": [{"role": "user", "content": 123}]},
        "messages[0].content",
        ErrorCode.INVALID_TYPE,
    ),
    (
        {
            "messages": [
                *HELLO,
                {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            ]
        },
        "messages[1].content[0].type",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        ErrorCode.MISSING_PARAMETER,
    ),
    (
        {"messages": assistant(type="custom")},
        "messages[0].tool_calls[0].type",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": assistant(function={"name": "f", "arguments": nested(40)})},
        "messages[0].tool_calls[0].function.arguments",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        "messages[0].tool_calls",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "function_call": {}}]},
        "messages[0].function_call",
        ErrorCode.UNSUPPORTED_PARAMETER,
    ),
    ({"messages": HELLO, "stop": ["a", ""]}, "stop[1]", ErrorCode.INVALID_VALUE),
    (
        {"messages": HELLO, "chat_template_kwargs": {"a": 1, "b.c": [1]}},
        "chat_template_kwargs.b.c",
        ErrorCode.INVALID_TYPE,
    ),
    (
        {"messages": HELLO, "chat_template_kwargs": {"a": 1, "tools": []}},
        "chat_template_kwargs.tools",
        ErrorCode.INVALID_VALUE,
    ),
    (
        {"messages": assistant(), "continue_final_message": True},
        "continue_final_message",
        ErrorCode.INVALID_VALUE,
    ),
    ([1], None, ErrorCode.INVALID_TYPE),
]

BAD_VALUES = [
    ("model", 5, ErrorCode.INVALID_TYPE),
    ("max_tokens", 0, ErrorCode.INVALID_VALUE),
    ("max_tokens", 1.5, ErrorCode.INVALID_TYPE),
    ("max_completion_tokens", 0, ErrorCode.INVALID_VALUE),
    ("stream", "yes", ErrorCode.INVALID_TYPE),
    ("stop", "", ErrorCode.INVALID_VALUE),
    ("stop", ["a"] * 17, ErrorCode.INVALID_VALUE),
    ("stop", "x" * 257, ErrorCode.INVALID_VALUE),
    ("stop", 5, ErrorCode.INVALID_TYPE),
    ("stream_options", {"include_usage": True}, ErrorCode.INVALID_VALUE),
    ("chat_template_kwargs", "x", ErrorCode.INVALID_TYPE),
    ("n", 0, ErrorCode.INVALID_VALUE),
    ("n", 9, ErrorCode.INVALID_VALUE),
    ("n", True, ErrorCode.INVALID_TYPE),
    ("logprobs", 5, ErrorCode.INVALID_TYPE),
    ("top_logprobs", 21, ErrorCode.INVALID_VALUE),
    ("top_logprobs", 2, ErrorCode.INVALID_VALUE),
    ("truncate", 0, ErrorCode.INVALID_VALUE),
    ("truncate_prompt_tokens", -2, ErrorCode.INVALID_VALUE),
    ("continue_final_message", True, ErrorCode.INVALID_VALUE),
    ("response_format", {"type": "sound"}, ErrorCode.UNSUPPORTED_PARAMETER),
    ("response_format", {"type": "json_object"}, ErrorCode.UNSUPPORTED_PARAMETER),
    ("tools", [{"type": "function"}], ErrorCode.UNSUPPORTED_PARAMETER),
    ("tool_choice", "required", ErrorCode.UNSUPPORTED_PARAMETER),
    ("chat_template", "{{ x }}", ErrorCode.UNSUPPORTED_PARAMETER),
    ("prompt_embeds", "x", ErrorCode.UNSUPPORTED_PARAMETER),
    ("modalities", ["text", "audio"], ErrorCode.UNSUPPORTED_PARAMETER),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD_BODIES)
def test_bad_bodies(body: Any, param: str | None, code: ErrorCode) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(body)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(caught.value.message) < 350


@pytest.mark.parametrize(("name", "value", "code"), BAD_VALUES)
def test_bad_values(name: str, value: Any, code: ErrorCode) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**{name: value})
    assert (caught.value.param, caught.value.code) == (name, code)
    assert name in caught.value.message
    assert FAILURES[caught.value.code].status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b"\xff\xfe",
        b'{"messages": "\xff"}',
        b'{"messages": "\\ud800"}',
        b'{"messages": NaN}',
        b'{"temperature": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
    ],
    ids=range(11),
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        translate.chat(body, RULES, random_seed=5)
    assert caught.value.code in {ErrorCode.INVALID_JSON, ErrorCode.INVALID_TYPE}
    assert len(caught.value.message) < 350


@pytest.mark.parametrize("text", ["w", " - at `$", " - at `$.stop`"])
def test_echoed_input_is_bounded(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(messages=[{"role": text * 100_000, "content": "x"}])
    assert len(caught.value.message) < 350
    assert caught.value.param == "messages[0].role"


@pytest.mark.parametrize("name", ["org/tiny", "tiny", "model", "base"])
def test_model_names(name: str) -> None:
    assert chat(model=name) == chat()


def test_as_many_parts_and_calls_as_are_allowed() -> None:
    parts, calls = [PART] * MAX_PARTS, [CALL] * MAX_TOOL_CALLS
    given = [{"role": "assistant", "content": parts, "tool_calls": calls}]
    (message,) = conversation(chat(messages=given)).messages
    assert (len(message["content"]), len(message["tool_calls"])) == (MAX_PARTS, MAX_TOOL_CALLS)


@pytest.mark.parametrize(
    ("hf_model", "name"),
    [
        ("demo", "demo"),
        ("org/tiny", "org/tiny"),
        ("/srv/models/tiny", "tiny"),
        ("/srv/models/tiny/", "tiny"),
        ("./tiny", "tiny"),
        ("../models/tiny", "tiny"),
        ("~/tiny", "tiny"),
        (".", Path.cwd().name),
        ("./..", Path.cwd().parent.name),
    ],
)
def test_a_path_is_shown_by_its_last_part(hf_model: str, name: str) -> None:
    config = FrontendConfig(model=ModelConfig(hf_model=hf_model))
    model = ServedModel(config, created=1)
    assert model.card()["id"] == config.model_name == name
    for alias in (hf_model, hf_model.strip("/"), name, "model"):
        model.require(alias)


def test_a_name_of_its_own_is_shown_whole() -> None:
    model = ServedModel(FrontendConfig(model=ModelConfig("/srv/x"), served_model_name="/a/b"), 1)
    assert model.name == "/a/b"
    for alias in ("/a/b", "/srv/x", "x"):
        model.require(alias)


def test_unknown_model() -> None:
    with pytest.raises(RequestError) as caught:
        chat(model="gpt-" + "9" * 1000)
    assert (caught.value.code, caught.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")
    assert len(caught.value.message) < 350


def test_stream_options() -> None:
    found = chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert (found.framing.stream, found.framing.include_usage) == (True, True)
    with pytest.raises(BadRequest) as caught:
        chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert caught.value.param == "stream_options.continuous_usage_stats"


def test_whatever_is_accepted_crosses_the_wire() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": nested(31)}}
    wanted = chat(
        messages=[{"role": "assistant", "tool_calls": [call]}],
        max_tokens=2**64 - 1,
        seed=-(2**63),
        chat_template_kwargs={"big": 2**64 - 1, "float": 1e308, "none": None, "text": "é\u2028"},
    ).submission
    (prompt,) = wanted.prompts
    command = Tokenize(
        request_id="r",
        route=ROUTE,
        worker_id=0,
        prompt=prompt,
        max_tokens=wanted.max_tokens,
        is_strict=wanted.is_strict,
        echo=wanted.echo,
        text=wanted.text,
        sampling=wanted.sampling,
        max_tokens_param="max_tokens",
        max_prompt_scores=100,
        num_choices=wanted.num_choices,
        cache_salt=wanted.cache_salt,
    )
    assert wire.decode(wire.encode(command)) == command
