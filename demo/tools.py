"""The tools that the chat model learns to call: their schemas, requests and results.

Some functions and parameters have two names, which the model must read from the prompt.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo.task import JsonObject
from demo.words import any_city, any_name, made_up_word, phrase


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool; the names are alternatives."""

    names: tuple[str, ...]
    json_type: str
    description: str
    draw: Callable[[Random], str | int]


@dataclass(frozen=True)
class ToolKind:
    """What a tool does; its texts are filled with the arguments in order."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[Parameter, ...]
    requests: tuple[str, ...]
    result: Callable[[Random], JsonObject]
    answer: str
    # The wording that asks for two calls at once, if the tool has one.
    request_for_two: str = ""


@dataclass(frozen=True)
class OfferedTool:
    """A kind under the names that one prompt gives it."""

    kind: ToolKind
    name: str
    parameter_names: tuple[str, ...]
    schema: JsonObject


_CITY = Parameter(("city", "location"), "string", "The name of the city", any_city)


def _weather(rng: Random) -> JsonObject:
    sky = rng.choice(("sunny", "rainy", "cloudy", "windy", "foggy", "snowy", "stormy"))
    return {"temperature": rng.randint(0, 40), "sky": sky}


def _clock(rng: Random) -> JsonObject:
    return {"time": f"{rng.randrange(24):02}:{rng.randrange(60):02}"}


def _number_result(rng: Random) -> JsonObject:
    return {"result": rng.randrange(1000)}


KINDS = (
    ToolKind(
        names=("get_weather", "get_current_weather"),
        description="Get the current weather in a city",
        parameters=(_CITY,),
        requests=(
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "What's the weather like in {0}?",
            "Tell me the weather in {0}.",
            "What is the weather like in {0} today?",
        ),
        result=_weather,
        answer="It is {temperature} degrees and {sky} in {0}.",
        request_for_two="What is the weather in {0} and in {1}?",
    ),
    ToolKind(
        names=("get_time", "get_current_time"),
        description="Get the local time in a city",
        parameters=(_CITY,),
        requests=(
            "What time is it in {0}?",
            "What is the time in {0}?",
            "Tell me the time in {0}.",
        ),
        result=_clock,
        answer="It is {time} in {0}.",
        request_for_two="What time is it in {0} and in {1}?",
    ),
    ToolKind(
        names=("multiply",),
        description="Multiply two numbers",
        parameters=(
            Parameter(("a",), "integer", "The first number", lambda rng: rng.randrange(100)),
            Parameter(("b",), "integer", "The second number", lambda rng: rng.randrange(100)),
        ),
        requests=("What is {0} times {1}?", "Multiply {0} by {1}.", "How much is {0} times {1}?"),
        result=_number_result,
        answer="{0} times {1} is {result}.",
    ),
    ToolKind(
        names=("send_message",),
        description="Send a message to a person",
        parameters=(
            Parameter(("to",), "string", "Who gets the message", any_name),
            Parameter(("text",), "string", "What it says", lambda r: phrase(r, 1, 4)),
        ),
        requests=(
            "Send a message to {0} saying {1}",
            'Send {0} the message "{1}".',
            "Write to {0}: {1}",
        ),
        result=lambda rng: {"status": rng.choice(("sent", "delivered"))},
        answer="Your message to {0} was {status}.",
    ),
    ToolKind(
        names=("set_timer",),
        description="Set a timer",
        parameters=(
            Parameter(("minutes",), "integer", "How long", lambda rng: rng.randint(1, 90)),
        ),
        requests=(
            "Set a timer for {0} minutes.",
            "Start a timer of {0} minutes.",
            "Wake me in {0} minutes.",
        ),
        result=lambda _rng: {"status": "started"},
        answer="Your timer for {0} minutes has started.",
    ),
    ToolKind(
        names=("play_song",),
        description="Play a song",
        parameters=(Parameter(("title",), "string", "The song", lambda rng: phrase(rng, 1, 3)),),
        requests=("Play {0}.", "Play the song {0}.", 'I want to hear "{0}".'),
        result=lambda _rng: {"status": "playing"},
        answer="Now playing {0}.",
    ),
    ToolKind(
        names=("search_web",),
        description="Search the web",
        parameters=(
            Parameter(("query",), "string", "What to look for", lambda rng: phrase(rng, 1, 3)),
        ),
        requests=("Search for {0}.", "Search the web for {0}.", "Look up {0}.", "Find {0} online."),
        result=lambda rng: {"result": phrase(rng, 2, 4)},
        answer="I found this: {result}.",
    ),
    ToolKind(
        names=("translate",),
        description="Translate a text into another language",
        parameters=(
            Parameter(("text",), "string", "What to translate", lambda rng: phrase(rng, 1, 3)),
            Parameter(
                ("language",),
                "string",
                "The language",
                lambda rng: rng.choice(("French", "German", "Malay", "Spanish", "Italian")),
            ),
        ),
        requests=('Translate "{0}" into {1}.', "Translate {0} to {1}."),
        result=lambda rng: {"translation": made_up_word(rng)},
        answer="In {1} that is {translation}.",
    ),
)


def offer(rng: Random, kind: ToolKind) -> OfferedTool:
    """Name a kind and describe it as an OpenAI `tools` entry, more or less fully."""
    name = rng.choice(kind.names)
    parameter_names = tuple(rng.choice(parameter.names) for parameter in kind.parameters)
    function: dict[str, object] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = kind.description
    function["parameters"] = _parameter_schema(rng, kind, parameter_names)
    schema: JsonObject = {"type": "function", "function": function}
    return OfferedTool(kind, name, parameter_names, schema)


def _parameter_schema(rng: Random, kind: ToolKind, names: tuple[str, ...]) -> JsonObject:
    described = rng.random() < 0.35
    properties: dict[str, object] = {}
    for name, parameter in zip(names, kind.parameters, strict=True):
        properties[name] = {"type": parameter.json_type}
        if described:
            properties[name] = {"type": parameter.json_type, "description": parameter.description}
    schema: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = list(names)
    return schema


def parse_calls(reply: str) -> list[tuple[str, object]] | None:
    """The (name, arguments) of every call in a reply that is nothing but calls; else None."""
    opening, closing = "<tool_call>\n", "\n</tool_call>"
    if not (reply.startswith(opening) and reply.endswith(closing)):
        return None
    blocks = reply.removeprefix(opening).removesuffix(closing).split(f"{closing}\n{opening}")
    try:
        calls = [json.loads(block) for block in blocks]
    except json.JSONDecodeError:
        return None
    return [(call["name"], call["arguments"]) for call in calls]
