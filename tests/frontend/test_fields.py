"""The lists of fields: what is obeyed, what is refused, and what is reported as unknown."""

import json
from typing import Any

import pytest

from frontend import translate
from frontend.fields import CHAT, COMPLETION, DETOKENIZE, EMBEDDING, TOKENIZE, Fields
from frontend.other_servers import OF_OTHER_SERVERS
from shared.errors import BadRequest, ErrorCode
from tests.frontend.test_translate import HELLO, RULES, assistant, chat


def test_neutral_values_and_fields_without_effect_pass_in_silence() -> None:
    neutral = {name: values[0] for name, values in CHAT.neutral_values.items() if values}
    assert chat(**neutral, **dict.fromkeys(CHAT.without_effect, "x")) == chat()


@pytest.mark.parametrize("known", [CHAT, COMPLETION, EMBEDDING, TOKENIZE, DETOKENIZE])
def test_lists_do_not_overlap(known: Fields) -> None:
    obeyed = set(known.shape.__struct_fields__)
    assert not obeyed & known.without_effect
    assert not (obeyed | known.without_effect) & known.neutral_values.keys()


@pytest.mark.parametrize("name", OF_OTHER_SERVERS)
@pytest.mark.parametrize("translated", [translate.chat, translate.completion])
def test_what_only_other_servers_obey_is_refused_unless_it_asks_for_nothing(
    translated: Any, name: str
) -> None:
    whole = {"messages": HELLO} if translated is translate.chat else {"prompt": "hello"}
    for value in (*OF_OTHER_SERVERS[name], None):
        ask = translated(json.dumps({**whole, name: value}).encode(), RULES, 5)
        assert ask.framing.ignored_fields == ""
    with pytest.raises(BadRequest) as caught:
        translated(json.dumps({**whole, name: {"x": 0.3}}).encode(), RULES, 5)
    assert (caught.value.param, caught.value.code) == (name, ErrorCode.UNSUPPORTED_PARAMETER)


def test_what_only_the_other_endpoint_obeys_is_refused() -> None:
    for known, other in ((CHAT, COMPLETION), (COMPLETION, CHAT)):
        assert not set(other.shape.__struct_fields__) - known.known


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"messages": [*HELLO, {"role": "wizard"}]}, "'developer', 'function', 'system'"),
        ({"messages": assistant(type="custom")}, "'function'"),
        ({"reasoning_effort": "very"}, "'high', 'low', 'max', 'medium', 'minimal', 'none'"),
    ],
)
def test_a_value_that_is_none_of_a_few_hears_which_they_are(
    given: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(BadRequest, match=f"is none of .*{allowed}"):
        chat(**given)


def test_a_variable_with_a_field_of_its_own_is_reserved() -> None:
    values: tuple[Any, ...] = ("x", [], None)
    for value in values:
        with pytest.raises(BadRequest, match="'tools' is a reserved name"):
            chat(chat_template_kwargs={"tools": value})


def test_unknown_fields_are_named_safely() -> None:
    assert chat(foo=1, bar=None).framing.ignored_fields == "foo"
    evil = {f"a\r\nX-Evil: {i}" + "z" * 100: 1 for i in range(40)}
    ignored = chat(**evil).framing.ignored_fields
    assert "\r" not in ignored
    assert len(ignored) < 16 * 67
    assert ignored.isascii()
