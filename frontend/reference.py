"""The reference of the API: `/openapi.json` for programs, `/docs` for people.

The page is plain HTML without a script, so it loads nothing from anywhere.
"""

import html
from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import Response, get

from frontend.openapi import Json
from frontend.page import content_security_policy
from frontend.service import ApiRequest

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 52rem; margin: 0 auto; padding: 1rem; }
section { border-top: 1px solid #8884; margin-top: 1.5rem; }
pre { overflow: auto; padding: .6rem; border: 1px solid #8884; border-radius: .4rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; }
"""


@get(["/openapi.json", "/v1/openapi.json"])
async def show_openapi(request: ApiRequest) -> Response[bytes]:
    """The API as an OpenAPI document."""
    document = msgspec.json.encode(request.app.state.openapi)
    return Response(document, media_type="application/json")


@get(["/docs", "/v1/docs"], answers={"text/html": None})
async def show_docs(request: ApiRequest) -> Response[bytes]:
    """The API as a page to read."""
    page = "".join(_page(request.app.state.openapi)).encode()
    headers = {"content-security-policy": content_security_policy(style=_STYLE)}
    return Response(page, media_type="text/html", headers=headers)


def _page(document: Json) -> Iterator[str]:
    title = html.escape(f"{document['info']['title']} {document['info']['version']}")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    yield '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["x-main-path"] == path:
                yield from _section(document, f"{method.upper()} {path}", operation)
    yield "</body></html>"


def _section(document: Json, name: str, operation: Json) -> Iterator[str]:
    yield f"<section><h2>{html.escape(name)}</h2><p>{html.escape(operation['summary'])}</p>"
    main = operation["x-main-path"]
    others = [
        path
        for path, operations in document["paths"].items()
        if path != main and any(o["x-main-path"] == main for o in operations.values())
    ]
    if others:
        yield f"<p>Also at {html.escape(', '.join(others))}.</p>"
    if "requestBody" in operation:
        yield from _body(document, operation["requestBody"])
    yield "<details><summary>Errors</summary><table>"
    for status in operation["responses"]:
        if status != "200":
            description = document["components"]["responses"][f"Error{status}"]["description"]
            yield f"<tr><td>{status}</td><td>{html.escape(description)}</td></tr>"
    yield "</table></details></section>"


def _body(document: Json, body: Json) -> Iterator[str]:
    (content,) = body["content"].values()
    if "example" in content:
        example = msgspec.json.format(msgspec.json.encode(content["example"])).decode()
        yield f"<pre>{html.escape(example)}</pre>"
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    required = schema.get("required", ())
    yield "<table>"
    for name, field in schema["properties"].items():
        text = ("Required. " if name in required else "") + field.get("description", "")
        yield f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(_type(field))}</td>"
        yield f"<td>{html.escape(text)}</td></tr>"
    yield "</table><details><summary>Other fields</summary>"
    yield f"<p>{html.escape(body['description'])}</p></details>"


def _type(schema: Json) -> str:
    """A schema in a few words, such as `array or null`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "$ref" in schema:
        return "object"
    kind: Any = schema.get("type", "any")
    bounds = [schema.get("minimum"), schema.get("maximum")]
    if bounds == [None, None]:
        return str(kind)
    return f"{kind} {' to '.join('…' if bound is None else str(bound) for bound in bounds)}"
