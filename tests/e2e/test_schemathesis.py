"""The server against its own document: what `/openapi.json` allows is answered, the rest refused.

The requests are drawn by schemathesis, valid and invalid ones; whether one is valid, and whether
its answer has the documented shape, is asked of a validator of JSON Schema.
"""

import json
import sys
from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, Response
from schemathesis.core import NotSet
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from frontend import app
from frontend.openapi import document, endpoints
from frontend.other_servers import OF_OTHER_SERVERS
from shared.errors import FAILURES
from tests.e2e.documented import Operation
from tests.e2e.drawn_requests import chats, completions
from tests.e2e.server import RunningServer
from tests.examples import num_examples

pytestmark = pytest.mark.e2e

Drawn = APIOperation[Any, Any, Any, Any]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
FEW, MANY = num_examples(50), 500
STREAM = {"stream": True}
COUNTED = STREAM | {"stream_options": {"include_usage": True}}
EXAMPLES = settings(
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),  # how fast requests are drawn is not ours to mend
)
LABELS = endpoints(document(app._HANDLERS, (), max_choices=1))
OF_SOUND = [label for label in LABELS if "/audio/" in label]  # 404 from a model of text
WITH_BODY = [label for label in LABELS if label.startswith("POST") and label not in OF_SOUND]
KNOWN_ERRORS = {
    (failure.status, failure.type, code.value if failure.shows_code else None)
    for code, failure in FAILURES.items()
}
SCHEMA_CODES = {None, "invalid_type", "missing_required_parameter", "empty_array"}
# Where a valid value may be refused: what the loaded model or another field's value forbids.
BEYOND_JSON_SCHEMA = {
    "model",  # is served here
    "prompt",  # ids of the vocabulary, at least one token, no more than the context
    "input",  # likewise
    "dimensions",  # no more than the model's embeddings have
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

    def __init__(self, operation: Drawn) -> None:
        self.seen: Counter[int] = Counter()
        self._documented = documentation(operation)

    def check(self, case: Case[Any], response: Response) -> None:
        """Every answer is one that the document promises for this request."""
        self.seen[response.status_code] += 1
        num_bytes = int(response.request.headers.get("Content-Length", 0))
        is_too_large = num_bytes > app.MAX_BODY_BYTES
        assert (response.status_code == 413) == is_too_large
        if response.status_code == 200:
            assert self._is_allowed(case)
            self._documented.check(response.headers["content-type"][0], response.text)
        else:
            error = checked_error(response)
            field = (error["param"] or "").partition(".")[0]
            is_beyond = field in BEYOND_JSON_SCHEMA and error["code"] not in SCHEMA_CODES
            is_beyond |= is_too_large
            is_beyond |= field in OF_OTHER_SERVERS  # the document names them in words only
            assert is_beyond or not self._is_allowed(case), error

    def _is_allowed(self, case: Case[Any]) -> bool:
        body = None if isinstance(case.body, NotSet) else case.body
        try:
            return self._documented.allows(json.loads(body) if isinstance(body, bytes) else body)
        except ValueError:  # it is not JSON
            return False


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
    assert response.status_code in {400, 404, 413}, error
    return error


@pytest.fixture(scope="module")
def operations(formula_server: RunningServer) -> dict[str, Drawn]:
    """The operations that the server's document describes, each under its main path."""
    served = httpx.get(f"{formula_server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(served)
    schema.config.max_stream_events = sys.maxsize  # every stream is read to its end
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    return {operation.label: operation for operation in found if operation.label in LABELS}


def documentation(operation: Drawn) -> Operation:
    """What the server's document says of an operation."""
    return Operation(operation.schema.raw_schema, operation.method, operation.path)


def drive(operation: Drawn, url: str, mode: GenerationMode, examples: int) -> Counter[int]:
    """Sends as many requests; returns how often each status was answered."""
    checker = Checker(operation)

    @settings(EXAMPLES, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        note(case.as_curl_command())
        checker.check(case, case.call(base_url=url))

    ask()
    return checker.seen


@pytest.mark.parametrize("label", [label for label in LABELS if label not in OF_SOUND])
def test_what_the_document_allows_is_answered(
    operations: Any, formula_server: RunningServer, label: str
) -> None:
    seen = drive(operations[label], formula_server.url, POSITIVE, FEW)
    assert seen[404 if label.endswith("{model_id}") else 200]  # no drawn name is the model's


@pytest.mark.parametrize("label", OF_SOUND)
def test_forms_with_sounds_are_refused_by_a_model_of_text(
    operations: Any, formula_server: RunningServer, label: str
) -> None:
    seen = drive(operations[label], formula_server.url, POSITIVE, FEW)
    assert seen.keys() == {404}


@pytest.mark.parametrize("label", WITH_BODY)
def test_what_the_document_forbids_is_refused(
    operations: Any, formula_server: RunningServer, label: str
) -> None:
    assert drive(operations[label], formula_server.url, NEGATIVE, FEW)[400]


@pytest.mark.parametrize(
    ("label", "drawn"),
    [("POST /v1/chat/completions", chats), ("POST /v1/completions", completions)],
)
def test_answers_of_every_kind_have_their_documented_shape(
    operations: Any, formula_server: RunningServer, label: str, drawn: Any
) -> None:
    documented = documentation(operations[label])
    seen: Counter[int] = Counter()
    with httpx.Client(base_url=formula_server.url) as http:

        @settings(EXAMPLES, max_examples=FEW)
        @given(body=drawn(has_logprobs=True), framing=st.sampled_from([{}, STREAM, COUNTED]))
        def ask(body: dict[str, Any], framing: dict[str, Any]) -> None:
            response = http.post(operations[label].path, json=body | framing)
            seen[response.status_code] += 1
            if response.status_code == 200:
                assert documented.allows(body | framing)
                documented.check(response.headers["content-type"], response.text)

        ask()
    assert seen[200] > FEW / 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("label", WITH_BODY)
def test_many_requests_are_answered_as_documented(
    operations: Any, formula_server: RunningServer, label: str, mode: GenerationMode
) -> None:
    seen = drive(operations[label], formula_server.url, mode, MANY)
    assert seen[200 if mode is POSITIVE else 400]
