"""The server against its own document: what `/openapi.json` allows is answered, the rest refused.

The requests are drawn by schemathesis, valid and invalid ones; whether one is valid, and whether
its answer has the documented shape, is asked of a validator of JSON Schema.
"""

import json
import sys
from collections import Counter
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode, Response
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from frontend import app
from frontend.openapi import document, endpoints
from shared.errors import FAILURES
from tests.e2e.server import RunningServer

pytestmark = pytest.mark.e2e

POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
FEW, MANY = 50, 500
EXAMPLES = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),  # how fast requests are drawn is not ours to mend
)
LABELS = endpoints(document(app._HANDLERS, (), max_choices=1))
WITH_BODY = [label for label in LABELS if label.startswith("POST")]
KNOWN_ERRORS = {
    (failure.status, failure.type, code.value if failure.shows_code else None)
    for code, failure in FAILURES.items()
}
SCHEMA_CODES = {None, "invalid_type", "missing_required_parameter", "empty_array"}
# Where a valid value may be refused: what the loaded model or another field's value forbids.
BEYOND_JSON_SCHEMA = {
    "prompt",  # ids of the vocabulary, at least one token, no more than the context
    "tokens",
    "logit_bias",
    "stop_token_ids",
    "messages",
    "chat_template_kwargs",  # what the template reads
    "continue_final_message",  # the last message is the assistant's
    "suffix",  # the model knows how
    "min_tokens",  # at most max_tokens
    "max_tokens",  # room for it, where the prompt is truncated to what fits
    "n",  # times the number of prompts
    "best_of",  # is n
}


class Checker:
    """Judges the answers to the requests of one operation, and counts them."""

    def __init__(self, operation: APIOperation[Any, Any, Any, Any], whole: dict[str, Any]) -> None:
        self.seen: Counter[int] = Counter()
        self._components = {"components": whole["components"]}
        described = operation.definition.raw
        self._answers = described["responses"]["200"]["content"]
        self._body = None
        if "requestBody" in described:
            content = described["requestBody"]["content"]["application/json"]
            self._body = self._validator(content["schema"])

    def check(self, case: Case, response: Response) -> None:
        """Every answer is one that the document promises for this request."""
        self.seen[response.status_code] += 1
        if response.status_code == 200:
            assert self._is_valid(case)
            self._check_answer(response)
        else:
            error = checked_error(response)
            assert error["code"] == "model_not_found" or self._may_refuse(case, error), error

    def _may_refuse(self, case: Case, error: dict[str, Any]) -> bool:
        field = (error["param"] or "").partition(".")[0]
        is_beyond = field in BEYOND_JSON_SCHEMA and error["code"] not in SCHEMA_CODES
        return is_beyond or not self._is_valid(case)

    def _is_valid(self, case: Case) -> bool:
        if self._body is None:
            return True
        try:
            body = json.loads(case.body) if isinstance(case.body, bytes) else case.body
        except ValueError:
            return False
        return self._body.is_valid(body)

    def _check_answer(self, response: Response) -> None:
        kind = response.headers["content-type"][0].partition(";")[0]
        validator = self._validator(self._answers[kind]["schema"], is_strict=True)
        if kind == "text/event-stream":
            *events, done, rest = response.text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            for event in events:
                validator.validate(json.loads(event.removeprefix("data: ")))
        elif kind == "application/json":
            validator.validate(response.json())

    def _validator(self, schema: dict[str, Any], *, is_strict: bool = False) -> Any:
        whole = {**schema, **self._components}
        return jsonschema_rs.Draft202012Validator(closed(whole) if is_strict else whole)


def closed(schema: Any) -> Any:
    """The same, where an object has no field that is not described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    is_shape = schema.get("type") == "object" and "properties" in schema
    return {**inner, "additionalProperties": False} if is_shape else inner


def checked_error(response: Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's shape and is one of the caller's mistakes."""
    assert response.headers["content-type"] == ["application/json"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["param"], str | None)
    assert (response.status_code, error["type"], error["code"]) in KNOWN_ERRORS
    assert response.status_code in {400, 404}, error
    return error


@pytest.fixture(scope="module")
def operations(formula_server: RunningServer) -> dict[str, APIOperation[Any, Any, Any, Any]]:
    """The operations that the server's document describes, each under its main path."""
    served = httpx.get(f"{formula_server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(served)
    schema.config.max_stream_events = sys.maxsize  # every stream is read to its end
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    return {operation.label: operation for operation in found if operation.label in LABELS}


def drive(
    operation: APIOperation[Any, Any, Any, Any], url: str, mode: GenerationMode, examples: int
) -> Counter[int]:
    """Sends as many requests; returns how often each status was answered."""
    checker = Checker(operation, operation.schema.raw_schema)

    @settings(EXAMPLES, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        checker.check(case, case.call(base_url=url))

    ask()
    return checker.seen


@pytest.mark.parametrize("label", LABELS)
def test_what_the_document_allows_is_answered(
    operations: Any, formula_server: RunningServer, label: str
) -> None:
    seen = drive(operations[label], formula_server.url, POSITIVE, FEW)
    assert seen[404 if label.endswith("{model_id}") else 200]  # no drawn name is the model's


@pytest.mark.parametrize("label", WITH_BODY)
def test_what_the_document_forbids_is_refused(
    operations: Any, formula_server: RunningServer, label: str
) -> None:
    assert drive(operations[label], formula_server.url, NEGATIVE, FEW)[400]


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", WITH_BODY)
def test_many_requests_are_answered_as_documented(
    operations: Any, formula_server: RunningServer, label: str, mode: GenerationMode
) -> None:
    seen = drive(operations[label], formula_server.url, mode, MANY)
    assert seen[200 if mode is POSITIVE else 400]
