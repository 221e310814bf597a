"""`/openapi.json`, `/docs` and `/server_info`: what they say is what the server does."""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.core.result import Ok

from frontend import app, fields
from frontend.descriptions import FIELDS
from frontend.fields import Fields
from frontend.other_servers import OF_OTHER_SERVERS
from frontend.version import VERSION
from shared.errors import FAILURES
from tests.frontend.conftest import RunningServer, serving
from tests.frontend.fakes import MAX_MODEL_LEN
from tests.frontend.test_chat_over_http import user
from tests.frontend.test_translate import BAD_BODIES, BAD_VALUES
from tests.frontend.test_translate_sampling import BAD_VALUES as BAD_SAMPLING

KEY = "sk-first"
BEARER = {"Authorization": f"Bearer {KEY}"}
BODIES = {
    "/v1/chat/completions": fields.CHAT,
    "/v1/completions": fields.COMPLETION,
    "/v1/embeddings": fields.EMBEDDING,
    "/v1/tokenize": fields.TOKENIZE,
    "/v1/detokenize": fields.DETOKENIZE,
}
# Refused for what another field says, the last message, the depth of arguments in a string, or as a
# name of another server, which the document gives in words.
BEYOND_JSON_SCHEMA = ("min_tokens", "continue_final_message", "arguments", *OF_OTHER_SERVERS)
REFUSED = [
    *(body for body, param, _ in BAD_BODIES if not str(param).endswith(BEYOND_JSON_SCHEMA)),
    *(
        {"messages": user("x"), name: value}
        for name, value, _ in (*BAD_VALUES, *BAD_SAMPLING)
        if name not in BEYOND_JSON_SCHEMA
    ),
]


@pytest.fixture(scope="module")
def document(ready: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = ready.http.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def keyed() -> Iterator[RunningServer]:
    with serving(model="/srv/models/tiny", api_key=KEY, served_model_name="chat,other") as running:
        yield running


def test_the_document_is_what_tools_read(document: dict[str, Any]) -> None:
    schema = schemathesis.openapi.from_dict(document)
    assert str(schema.specification.version).startswith("3.1")
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    labels = {operation.label for operation in found}
    assert "POST /v1/chat/completions" in labels
    assert len(labels) == sum(map(len, document["paths"].values()))
    for shape in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(shape)


def test_every_route_is_in_the_document_under_each_of_its_paths(document: dict[str, Any]) -> None:
    routes = {
        (re.sub(r"{(\w+):\w+}", r"{\1}", path), method.lower())
        for handler in app._HANDLERS
        for path in handler.paths
        for method in handler.http_methods
    }
    documented = {(path, method) for path, ops in document["paths"].items() for method in ops}
    assert documented == routes
    names = [op["operationId"] for ops in document["paths"].values() for op in ops.values()]
    assert len(set(names)) == len(names)


def test_every_route_has_a_twin_with_or_without_the_prefix(document: dict[str, Any]) -> None:
    bare = {path.removeprefix("/v1") or "/" for path in document["paths"]}
    assert document["paths"].keys() == bare | {f"/v1{path}".rstrip("/") for path in bare}


@pytest.mark.parametrize(("path", "known"), BODIES.items())
def test_a_body_is_the_struct_that_validates(
    document: dict[str, Any], path: str, known: Fields
) -> None:
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"]
    content = body["content"]["application/json"]
    assert content["schema"] == {"$ref": f"#/components/schemas/{known.shape.__name__}"}
    schema = document["components"]["schemas"][known.shape.__name__]
    assert schema["properties"].keys() == set(known.shape.__struct_fields__)
    for name, field in schema["properties"].items():
        assert field["description"] == FIELDS[name]
    whole = {**schema, "components": document["components"]}
    jsonschema_rs.validate(whole, content["example"])
    nulls = {name: None for name in schema["properties"] if name not in schema.get("required", ())}
    jsonschema_rs.validate(whole, {**nulls, **content["example"]})
    for name in (*known.neutral_values, *known.without_effect):
        assert name in body["description"]


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_refused_is_forbidden_by_the_document(
    document: dict[str, Any], body: dict[str, Any]
) -> None:
    schema = {
        **document["components"]["schemas"]["ChatRequest"],
        "components": document["components"],
    }
    assert not jsonschema_rs.is_valid(schema, body)


def test_every_description_is_of_a_field() -> None:
    obeyed = {name for known in BODIES.values() for name in known.shape.__struct_fields__}
    assert obeyed == FIELDS.keys()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_example_is_answered(ready: RunningServer, document: dict[str, Any], path: str) -> None:
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    script = {"messages": user("say a")} if "messages" in body else {"prompt": "say a"}
    assert ready.http.post(path, json={**body, **script}).status_code == 200


def test_errors_have_their_shape_and_every_status(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    statuses = {str(failure.status) for failure in FAILURES.values()}
    assert responses.keys() == {"200", *statuses} - {"401"}
    for status in statuses:
        response = document["components"]["responses"][f"Error{status}"]
        schema = response["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert "Retry-After" in document["components"]["responses"]["Error429"]["headers"]


def test_an_error_fits_its_schema(ready: RunningServer, document: dict[str, Any]) -> None:
    whole = {**document["components"]["schemas"]["ErrorBody"], "components": document["components"]}
    for response in (ready.http.get("/nope"), ready.http.post("/v1/tokenize", json={})):
        jsonschema_rs.validate(whole, response.json())


def test_the_document_says_where_a_key_is_needed(keyed: RunningServer) -> None:
    found = keyed.http.get("/v1/openapi.json", headers=BEARER).json()
    for path, operations in found["paths"].items():
        for operation in operations.values():
            needs_key = keyed.http.get(keyed.url + path).status_code == 401
            assert ("security" in operation) == needs_key, path
            assert ("401" in operation["responses"]) == needs_key, path


def test_the_page_to_read_has_every_route_and_loads_nothing(
    ready: RunningServer, document: dict[str, Any]
) -> None:
    response = ready.http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    for path in document["paths"]:
        assert path in response.text
    for name in FIELDS:
        assert f"<code>{name}</code>" in response.text
    assert not re.search(r"<script|<link|src=|https?://", response.text)
    style = re.search(r"<style>(.*?)</style>", response.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = response.headers["content-security-policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script-src 'none'" in policy


def test_the_index_lists_each_route_once(ready: RunningServer) -> None:
    endpoints = ready.http.get("/").json()["endpoints"]
    assert len(endpoints) == len(set(endpoints)) == len(app._HANDLERS)
    assert {"POST /v1/chat/completions", "GET /health", "GET /v1/models/{model_id}"} <= {*endpoints}


def test_server_info_tells_model_limits_and_flags_but_no_secret(keyed: RunningServer) -> None:
    response = keyed.http.get("/server_info", headers=BEARER)
    info = response.json()
    assert (info["version"], info["model"]) == (VERSION, "chat")
    assert {"other", "tiny", "model", "base"} == {*info["aliases"]}
    assert info["max_model_len"] == MAX_MODEL_LEN
    assert info["limits"]["max_concurrent"] == info["limits"]["max_choices"] == 8
    assert info["needs_api_key"]
    assert info["flags"]["served_model_name"] == "chat,other"
    assert info["flags"]["hf_model"] == "tiny"
    assert "api_key" not in info["flags"]
    assert KEY not in response.text
    assert "/srv" not in response.text
