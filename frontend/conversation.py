"""The messages of a request as chat templates read them: plain dicts with known keys. Pure."""

from typing import Any

import orjson

from frontend.decoding import quoted
from frontend.schemas import ChatMessage, ContentPart, ToolCall
from shared.errors import BadRequest, ErrorCode

# Templates and the wire recurse into arguments; both stop far deeper, but not gracefully.
_MAX_ARGUMENT_DEPTH = 32
_COPIED_KEYS = ("name", "tool_call_id")
_THOUGHT_KEYS = ("reasoning_content", "reasoning")  # clients send either, templates read either


def render(messages: list[ChatMessage]) -> tuple[dict[str, Any], ...]:
    """Returns the messages for the template, or raises BadRequest with the path of the fault."""
    return tuple(_render(message, f"messages[{i}]") for i, message in enumerate(messages))


def _render(message: ChatMessage, path: str) -> dict[str, Any]:
    _refuse_unsupported(message, path)
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role, "content": _text(message, path)}
    for key in _COPIED_KEYS:
        if getattr(message, key) is not None:
            rendered[key] = getattr(message, key)
    given = [thoughts for key in _THOUGHT_KEYS if (thoughts := getattr(message, key)) is not None]
    if given:
        rendered |= dict.fromkeys(_THOUGHT_KEYS, given[0])
    if message.tool_calls:
        if role != "assistant":
            raise BadRequest("Only assistant messages call tools.", f"{path}.tool_calls")
        rendered["tool_calls"] = [
            _render_call(call, f"{path}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls)
        ]
    return rendered


def _refuse_unsupported(message: ChatMessage, path: str) -> None:
    for key in ("function_call", "audio"):
        if getattr(message, key) is not None:
            raise BadRequest(
                f"'{key}' in a message is not supported by this server.",
                f"{path}.{key}",
                ErrorCode.UNSUPPORTED_PARAMETER,
            )


def _text(message: ChatMessage, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is not None:
        parts = enumerate(message.content)
        return "".join(_part_text(part, f"{path}.content[{i}]") for i, part in parts)
    if message.refusal is not None:
        return message.refusal
    if message.role == "function" or _may_be_silent(message):
        return ""
    raise BadRequest(
        f"Missing required parameter: '{path}.content'.",
        f"{path}.content",
        ErrorCode.MISSING_PARAMETER,
    )


def _may_be_silent(message: ChatMessage) -> bool:
    says_otherwise = message.tool_calls or message.reasoning_content or message.reasoning
    return message.role == "assistant" and bool(says_otherwise)


def _part_text(part: ContentPart, path: str) -> str:
    if part.type not in ("text", "refusal"):
        raise BadRequest(
            f"Content parts of type {quoted(part.type)} are not supported by this model;"
            " use 'text'.",
            f"{path}.type",
        )
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        key = f"{path}.{part.type}"
        raise BadRequest(f"Missing required parameter: '{key}'.", key, ErrorCode.MISSING_PARAMETER)
    return text


def _render_call(call: ToolCall, path: str) -> dict[str, Any]:
    arguments = _arguments(call.function.arguments, f"{path}.function.arguments")
    function = {"name": call.function.name, "arguments": arguments}
    rendered: dict[str, Any] = {"type": call.type, "function": function}
    if call.id is not None:
        rendered["id"] = call.id
    return rendered


def _arguments(text: str, path: str) -> Any:
    """Templates want an object; what is not one stays text."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text  # models do write broken JSON, and its replay is legal
    if not isinstance(parsed, dict):
        return text
    if not _is_within(parsed, _MAX_ARGUMENT_DEPTH):
        raise BadRequest(f"'{path}' is nested deeper than {_MAX_ARGUMENT_DEPTH} levels.", path)
    return parsed


def _is_within(value: Any, depth: int) -> bool:
    if depth == 0:
        return False
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return True
    return all(_is_within(child, depth - 1) for child in children)
