"""What the fields of a request say about each other, as JSON Schema: what no struct can say.

`translate.py` and `conversation.py` hold these rules; the document tells them.
"""

from typing import Any

from frontend.schemas import CHAT_OPTIONS, TokenizeRequest

Json = dict[str, Any]


def _has(name: str, **schema: Any) -> Json:
    """The field is there, and as this says."""
    return {"required": [name], "properties": {name: schema}}


def _gives(name: str) -> Json:
    """The field is there, and not null."""
    return _has(name, **{"not": {"type": "null"}})


def _is_not(name: str, value: Any) -> Json:
    """The field is absent, or something else."""
    return {"properties": {name: {"not": {"const": value}}}}


def _is_unset(name: str) -> Json:
    """The option of /tokenize is absent, or what it is by default."""
    default = getattr(TokenizeRequest(), name)
    return {"properties": {name: {"enum": [None, default]}}}


def _where(condition: Json, then: Json) -> Json:
    return {"if": condition, "then": then}


_IS_ASSISTANTS = _has("role", const="assistant")
_CALLS_TOOLS = _has("tool_calls", type="array", minItems=1)
_GOES_ON = _has("continue_final_message", const=True)
_ONE_TURN = _is_not("add_generation_prompt", True)  # it goes on, or another one is opened
_USES_TOOLS = _where(_has("tools", type="array", minItems=1), _has("tool_choice", const="none"))
_IS_ONE_TEXT = {"anyOf": [_gives("prompt"), _gives("content")]}
_HAS_OPTIONS_OF_ITS_STREAM = _where(_gives("stream_options"), _has("stream", const=True))
_SPEAKS_OTHERWISE = [
    _has("refusal", type="string"),
    _has("role", const="function"),
    {"allOf": [_IS_ASSISTANTS, _CALLS_TOOLS]},
    {"allOf": [_IS_ASSISTANTS, _has("reasoning_content", type="string", minLength=1)]},
    {"allOf": [_IS_ASSISTANTS, _has("reasoning", type="string", minLength=1)]},
]

COMBINATIONS: dict[str, list[Json]] = {  # by the name of the struct; all of them hold
    "ContentPart": [
        _where(_has("type", const="text"), _has("text", type="string")),
        _where(_has("type", const="refusal"), _has("refusal", type="string")),
    ],
    "ChatMessage": [
        _where({"not": _gives("content")}, {"anyOf": _SPEAKS_OTHERWISE}),
        _where(_CALLS_TOOLS, _IS_ASSISTANTS),
    ],
    "ChatRequest": [
        _HAS_OPTIONS_OF_ITS_STREAM,
        _where(_gives("top_logprobs"), _has("logprobs", const=True)),
        _USES_TOOLS,
        _where(_GOES_ON, _ONE_TURN),
    ],
    "CompletionRequest": [
        _HAS_OPTIONS_OF_ITS_STREAM,
        _where(_has("max_completion_tokens", const=0), _has("echo", const=True)),
        _where(
            {"allOf": [_has("max_tokens", const=0), {"not": _gives("max_completion_tokens")}]},
            _has("echo", const=True),
        ),
        _where(
            _has("suffix", type="string", minLength=1),
            {
                "allOf": [
                    _is_not("echo", True),
                    _has("prompt", type="string"),
                    {"not": _gives("truncate_prompt_tokens")},
                    {"not": _gives("truncate")},
                ]
            },
        ),
    ],
    "TokenizeRequest": [
        {"oneOf": [_gives("prompt"), _gives("content"), _gives("messages")]},
        _where({"allOf": [_gives("messages"), _GOES_ON]}, _ONE_TURN),
        _USES_TOOLS,
        *(_where(_IS_ONE_TEXT, _is_unset(name)) for name in CHAT_OPTIONS),
    ],
}
