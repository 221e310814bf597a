"""Exchanges with tools: calls, two calls at once, results told to the user, and refusals."""

import json
from random import Random

from demo.skills import same_text
from demo.task import Exchange, JsonObject, assistant, question, user
from demo.tools import KINDS, OfferedTool, ToolKind, offer, parse_calls
from demo.words import phrase

_REFUSAL = "Sorry, I have no tool for that."
_FAILURES = ("not found", "no connection", "too many requests", "permission denied")

Arguments = tuple[str | int, ...]


def offer_some(rng: Random) -> tuple[OfferedTool, ...]:
    """One to three different tools, in any order."""
    kinds = rng.sample(KINDS, rng.choice((1, 2, 2, 3)))
    return tuple(offer(rng, kind) for kind in kinds)


def call_and_answer(rng: Random, offered: tuple[OfferedTool, ...]) -> Exchange:
    """The user asks for what an offered tool does; the model calls it and tells the result."""
    tool = rng.choice(offered)
    if tool.kind.request_for_two and rng.random() < 0.3:
        return _two_calls(rng, tool)
    arguments = _draw_arguments(rng, tool.kind)
    request = rng.choice(tool.kind.requests).format(*arguments)
    return _exchange(rng, tool, request, [arguments])


def refuse(rng: Random, offered: tuple[OfferedTool, ...]) -> Exchange:
    """The user asks for what only a tool that is not offered could do."""
    here = {tool.kind.names for tool in offered}
    kind = rng.choice([kind for kind in KINDS if kind.names not in here])
    arguments = _draw_arguments(rng, kind)
    request = rng.choice(kind.requests).format(*arguments)
    return question("tools", _key(kind, [arguments]), request, _REFUSAL)


def _two_calls(rng: Random, tool: OfferedTool) -> Exchange:
    pair = [_draw_arguments(rng, tool.kind), _draw_arguments(rng, tool.kind)]
    request = tool.kind.request_for_two.format(pair[0][0], pair[1][0])
    return _exchange(rng, tool, request, pair)


def _exchange(rng: Random, tool: OfferedTool, request: str, calls: list[Arguments]) -> Exchange:
    results = [_result(rng, tool.kind, arguments) for arguments in calls]
    messages = (
        user(request),
        _call_message(tool, calls),
        *({"role": "tool", "content": content} for content, _ in results),
        assistant(" ".join(answer for _, answer in results)),
    )
    return Exchange("tools", _key(tool.kind, calls), messages)


def _result(rng: Random, kind: ToolKind, arguments: Arguments) -> tuple[str, str]:
    """What the tool returns and what the user is told."""
    outcome = rng.random()
    if outcome < 0.1:
        failure = rng.choice(_FAILURES)
        return json.dumps({"error": failure}), f"Sorry, that failed: {failure}."
    if outcome < 0.2:
        text = phrase(rng, 1, 4)
        return text, f"The result is: {text}."
    fields = kind.result(rng)
    return json.dumps(fields), kind.answer.format(*arguments, **fields)


def _draw_arguments(rng: Random, kind: ToolKind) -> Arguments:
    return tuple(parameter.draw(rng) for parameter in kind.parameters)


def _key(kind: ToolKind, calls: list[Arguments]) -> str:
    return f"tool:{kind.names[0]}:{calls}"


def _call_message(tool: OfferedTool, calls: list[Arguments]) -> JsonObject:
    functions = [
        {"name": tool.name, "arguments": dict(zip(tool.parameter_names, arguments, strict=True))}
        for arguments in calls
    ]
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def same_calls_or_text(reference: JsonObject, reply: str) -> bool:
    """Whether the reply makes the reference's calls, or says its text when it makes none."""
    tool_calls = reference.get("tool_calls")
    if not isinstance(tool_calls, list):
        return same_text(reference, reply)
    functions = [call["function"] for call in tool_calls]
    return parse_calls(reply) == [(call["name"], call["arguments"]) for call in functions]
