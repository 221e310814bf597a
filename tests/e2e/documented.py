"""Bodies against the schemas of the server's own document."""

import json
from typing import Any

import jsonschema_rs

Json = dict[str, Any]
Validator = jsonschema_rs.Draft202012Validator


class Operation:
    """What the document says of one operation: its requests, and its answers by media type."""

    def __init__(self, document: Json, method: str, path: str) -> None:
        operation = document["paths"][path][method]
        components = {"components": document["components"]}
        described = operation.get("requestBody", {"content": {"application/json": {"schema": {}}}})
        (self._request,) = _validator(described["content"], components).values()
        self._answers = _validator(
            closed(operation["responses"]["200"]["content"]), closed(components)
        )

    def allows(self, body: Any) -> bool:
        """True for a request that should be answered."""
        return self._request.is_valid(body)

    def check(self, content_type: str, text: str) -> None:
        """Raises where an answer, or an event of its stream, has not the documented shape."""
        kind = content_type.partition(";")[0]
        if kind == "application/json":
            self._answers[kind].validate(json.loads(text))
        elif kind == "text/event-stream":
            *events, done, rest = text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            for event in events:
                self._answers[kind].validate(json.loads(event.removeprefix("data: ")))
        else:
            assert kind in self._answers


def closed(schema: Any) -> Any:
    """The same, where an object has no field that is not described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    is_shape = schema.get("type") == "object" and "properties" in schema
    return {**inner, "additionalProperties": False} if is_shape else inner


def _validator(content: Json, components: Json) -> dict[str, Validator]:
    return {kind: Validator({**said["schema"], **components}) for kind, said in content.items()}
