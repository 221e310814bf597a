"""`/tokenize` and `/detokenize`: a conversation is what a chat makes of it, and nothing is lost."""

import json
import threading
from typing import Any

import httpx
import pytest

from frontend import translate
from frontend.fields import DETOKENIZE, TOKENIZE, Fields
from shared.errors import BadRequest, ErrorCode
from shared.messages import CreditGranted, Decode, Decoded, Encode, Encoded
from shared.parts import ChatPrompt
from tests.frontend.conftest import RunningServer
from tests.frontend.test_translate import CALL, HELLO, MODEL, RULES
from tests.waiting import wait_until

ANSWER = [*HELLO, {"role": "assistant", "content": "Hi"}]


def tokenize(**given: Any) -> Any:
    return translate.tokenize(json.dumps(given).encode(), MODEL)


@pytest.mark.parametrize(
    "given",
    [
        {"reasoning_effort": "none"},
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"messages": ANSWER, "continue_final_message": True},
        {"add_generation_prompt": False, "add_special_tokens": True},
    ],
)
def test_a_conversation_is_tokenized_as_a_chat_would(given: dict[str, Any]) -> None:
    body = {"messages": HELLO, **given}
    asked = translate.chat(json.dumps(body).encode(), RULES, random_seed=5)
    lookup, ignored = tokenize(**body)
    assert isinstance(lookup.prompt.chat, ChatPrompt)
    assert (lookup.prompt,) == asked.submission.prompts
    assert ignored == asked.framing.ignored_fields == ""


@pytest.mark.parametrize("text", ["prompt", "content"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("reasoning_effort", "low"),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "none"),
    ],
)
def test_what_only_a_conversation_has_is_refused_beside_a_text(
    text: str, name: str, value: Any
) -> None:
    with pytest.raises(BadRequest, match=f"'{name}' is not allowed with '{text}'") as caught:
        tokenize(**{text: "a", name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": HELLO, "tools": [{}]}, "tools"),
        ({"messages": HELLO, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        (
            {
                "messages": [{"role": "assistant", "content": "a", "tool_calls": [CALL]}],
                "continue_final_message": True,
            },
            "continue_final_message",
        ),
        ({"prompt": "a", "truncate": 5}, "truncate"),
        ({"prompt": "a", "add_special": False}, "add_special"),
    ],
)
def test_what_a_chat_refuses_is_refused(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        tokenize(**given)
    assert caught.value.param == param


def test_ids_are_not_told_without_their_special_tokens() -> None:
    body = b'{"tokens": [1], "skip_special_tokens": true}'
    with pytest.raises(BadRequest) as caught:
        translate.detokenize(body, MODEL)
    assert caught.value.code == ErrorCode.UNSUPPORTED_PARAMETER


def answered(ready: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    """The response, after the tokenizer has been asked and has answered."""
    before = len(ready.mailbox.sent)
    responses: list[httpx.Response] = []
    post = threading.Thread(target=lambda: responses.append(ready.http.post(path, json=body)))
    post.start()
    wait_until(lambda: len(ready.mailbox.sent) > before, 5)
    _, command = ready.mailbox.sent[-1]
    assert isinstance(command, Encode | Decode)
    name = command.request_id
    found = Encoded(name, (1, 2), None) if isinstance(command, Encode) else Decoded(name, "ab")
    ready.mailbox.deliver(found, CreditGranted("tokenizer-0", 1, 1))
    post.join(5)
    return responses[0]


@pytest.mark.parametrize(
    ("path", "body", "known"),
    [
        ("/tokenize", {"prompt": "a"}, TOKENIZE),
        ("/v1/tokenize", {"messages": HELLO}, TOKENIZE),
        ("/detokenize", {"tokens": [1, 2]}, DETOKENIZE),
    ],
)
def test_unknown_names_come_back(
    ready: RunningServer, path: str, body: dict[str, Any], known: Fields
) -> None:
    beside = dict.fromkeys(known.without_effect, "x")
    response = answered(ready, path, {**body, **beside, "foo": 1, "temperature": 0.5})
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "foo, temperature"
    assert "x-ignored-fields" not in answered(ready, path, body).headers
