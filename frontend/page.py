"""The front door: a page that chats with the model for people, an index for programs."""

import base64
import hashlib
import re
from pathlib import Path

import orjson
from litestar import Response, get

from frontend.openapi import endpoints
from frontend.service import ApiRequest, service_of
from frontend.version import VERSION

_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@get(["/", "/v1"], public=True, answers={"application/json": None, "text/html": None})
async def show_front_door(request: ApiRequest) -> Response[bytes]:
    """HTML when the caller asks for it, else JSON."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(_PAGE.encode(), media_type="text/html", headers=_HEADERS)
    index = {
        "name": "transformers-openai-api",
        "version": VERSION,
        "model": service_of(request).model.name,
        "endpoints": endpoints(request.app.state.openapi),
    }
    return Response(orjson.dumps(index), media_type="application/json", headers={"vary": "accept"})


def content_security_policy(*, script: str = "", style: str = "") -> str:
    """Allows a page its one inline script and style, its own server, and nothing else."""
    return (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source(content: str) -> str:
    """The CSP source that allows this inline text; without any, none is allowed."""
    if not content:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _within(tag: str) -> str:
    """What the page's one element of this kind holds."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return match[1] if match else ""


_HEADERS = {
    "content-security-policy": content_security_policy(
        script=_within("script"), style=_within("style")
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "vary": "accept",
}
