"""The API as an OpenAPI 3.1 document, made of what serves: routes, and the structs that validate.

A route says of itself in its decorator what the framework cannot know: `body`, the `Fields` of its
request, `answers`, the shape of its response by media type, and `public`, where it needs no key.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from frontend.answers import ErrorBody
from frontend.combinations import COMBINATIONS
from frontend.descriptions import FIELDS
from frontend.fields import Fields
from frontend.other_servers import OF_OTHER_SERVERS
from frontend.schemas import SoundRequest
from frontend.version import VERSION
from shared.errors import FAILURES

Json = dict[str, Any]

_BODIES = {"body": "application/json", "form": "multipart/form-data"}  # as routes say it
_REF = "#/components/schemas/{name}"
_GET_STATUSES = frozenset({401, 404, 405, 431, 500, 503})
_EXAMPLES: dict[str, Json] = {  # by the name of the body's struct
    "ChatRequest": {
        "model": "model",
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "max_tokens": 64,
    },
    "CompletionRequest": {"model": "model", "prompt": "The capital of France is", "max_tokens": 16},
    "EmbeddingRequest": {"model": "model", "input": ["A red apple", "A green pear"]},
    "TokenizeRequest": {"prompt": "Hello, world"},
    "DetokenizeRequest": {"tokens": [1, 2, 3]},
}


def document(
    handlers: Iterable[HTTPRouteHandler], public_paths: Collection[str], max_choices: int
) -> Json:
    """The whole document, with each path of each route; those that are not public need a key.

    `max_choices` is the most answers to one request that this server makes.
    """
    routes = list(handlers)
    paths: dict[str, Json] = {}
    for handler in routes:
        for path in sorted(handler.paths):
            operations = paths.setdefault(_template(path), {})
            for method in sorted(handler.http_methods):
                operations[method.lower()] = _operation(
                    handler, method, path, is_locked=path not in public_paths
                )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "transformers-openai-api",
            "version": VERSION,
            "summary": "An OpenAI-compatible API for Hugging Face models.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(routes, max_choices),
            "responses": {f"Error{status}": _error_response(status) for status in _statuses()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def endpoints(document: Json) -> list[str]:
    """Each route once, such as `GET /v1/models`."""
    return [
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation["x-main-path"] == path
    ]


def _main_path(handler: HTTPRouteHandler) -> str:
    """The path under which a route is known best: OpenAI's where it is one of the API."""
    ordered = sorted(handler.paths, key=lambda path: (path.startswith("/v1"), len(path)))
    return _template(ordered[-1] if handler.fn.__module__ == "frontend.routes" else ordered[0])


def _operation(handler: HTTPRouteHandler, method: str, path: str, *, is_locked: bool) -> Json:
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_"),
        "summary": (handler.fn.__doc__ or "").strip(),
        "x-main-path": _main_path(handler),
        "responses": _responses(handler, is_locked),
    }
    if is_locked:
        operation["security"] = [{"bearer": []}, {"header": []}]
    for kind, media_type in _BODIES.items():
        if kind in handler.opt:
            operation["requestBody"] = _request_body(handler.opt[kind], media_type)
    names = re.findall(r"{(\w+)", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    return operation


def _responses(handler: HTTPRouteHandler, is_locked: bool) -> Json:
    answers = handler.opt.get("answers", {"application/json": None})
    content = {kind: {"schema": _ref(shape) if shape else {}} for kind, shape in answers.items()}
    streams = "text/event-stream" in answers
    description = "The answer; of a stream each event but `[DONE]`." if streams else "The answer."
    answer = {"description": description, "content": content}
    statuses = set(_statuses()) if _BODIES.keys() & handler.opt.keys() else set(_GET_STATUSES)
    statuses -= set() if is_locked else {401}
    errors = {str(s): {"$ref": f"#/components/responses/Error{s}"} for s in sorted(statuses)}
    return {"200": answer, **errors}


def _request_body(fields: Fields, media_type: str) -> Json:
    name = fields.shape.__name__
    content: Json = {"schema": _ref(fields.shape)}
    if name in _EXAMPLES:
        content["example"] = _EXAMPLES[name]
    neutral = "; ".join(
        f"{field} ({' or '.join(map(_shown, values)) or 'null'})"
        for field, values in sorted(fields.neutral_values.items())
    )
    description = (
        f"Without effect: {', '.join(sorted(fields.without_effect))}.\n\n"
        f"Refused with other values than these: {neutral or 'none'}.\n\n"
        "A field of any other name is accepted, and named in the X-Ignored-Fields header."
    )
    body = {media_type: content}
    return {"required": True, "description": description, "content": body}


def _ref(shape: type[Struct]) -> Json:
    return {"$ref": _REF.format(name=shape.__name__)}


def _schemas(handlers: Sequence[HTTPRouteHandler], max_choices: int) -> Json:
    bodies: list[Fields] = [h.opt[kind] for h in handlers for kind in _BODIES if kind in h.opt]
    answers = [shape for h in handlers for shape in h.opt.get("answers", {}).values() if shape]
    shapes: list[type[Struct]] = [*(fields.shape for fields in bodies), *answers, ErrorBody]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=_REF)
    for name, rules in COMBINATIONS.items():
        schemas[name]["allOf"] = [*rules]
    for fields in bodies:
        _complete(schemas[fields.shape.__name__], fields, max_choices)
    _add_file(schemas[SoundRequest.__name__])
    return schemas


def _add_file(schema: Json) -> None:
    """What a form has beside its fields."""
    schema["properties"]["file"] = {"type": "string", "format": "binary"}
    schema["required"] = [*schema.get("required", ()), "file"]


def _complete(schema: Json, fields: Fields, max_choices: int) -> None:
    """Adds to a body what its struct does not say."""
    properties, required = schema["properties"], schema.get("required", ())
    if "n" in properties:
        properties["n"]["maximum"] = max_choices
    schema["properties"] = {
        name: _described(name, field if name in required else _or_null(field))
        for name, field in properties.items()
    }
    # Those of other servers, over a hundred, stand in the body's description alone.
    neutral = {
        name: {"enum": [*values, None]}
        for name, values in sorted(fields.neutral_values.items())
        if name not in OF_OTHER_SERVERS
    }
    if neutral:
        schema.setdefault("allOf", []).append({"properties": neutral})


def _described(name: str, schema: Json) -> Json:
    return {**schema, "description": FIELDS[name]} if name in FIELDS else schema


def _or_null(schema: Json) -> Json:
    """The same, where null stands for absent, as it does at the top level of every request."""
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    inner = {key: value for key, value in schema.items() if key != "default"}
    return {"anyOf": [inner, {"type": "null"}], "default": schema.get("default")}


def _error_response(status: int) -> Json:
    codes = [code for code, failure in FAILURES.items() if failure.status == status]
    shown = [code.value for code in codes if FAILURES[code].shows_code]
    response: Json = {
        "description": f"Code: {', '.join(shown) or 'null'}.",
        "content": {"application/json": {"schema": _ref(ErrorBody)}},
    }
    if any(FAILURES[code].retry_after_seconds for code in codes):
        text = "Seconds after which to try again."
        response["headers"] = {
            "Retry-After": {"description": text, "schema": {"type": "integer", "minimum": 1}}
        }
    return response


def _statuses() -> list[int]:
    return sorted({failure.status for failure in FAILURES.values()})


def _template(path: str) -> str:
    """A path with its parameters as OpenAPI writes them."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()
