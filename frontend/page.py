"""The front door: a page that chats with the model for people, an index for programs."""

import base64
import hashlib
import re
from pathlib import Path

import orjson
from litestar import Response, get

from frontend.service import ApiRequest, service_of
from frontend.version import VERSION

_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_ENDPOINTS = [
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "GET /health",
    "GET /ready",
    "GET /live",
    "GET /metrics",
    "GET /version",
]


@get(["/", "/v1"], public=True)
async def show_front_door(request: ApiRequest) -> Response[bytes]:
    """HTML when the caller asks for it, else JSON."""
    if "text/html" in request.headers.get("accept", ""):
        return Response(_PAGE.encode(), media_type="text/html", headers=_HEADERS)
    index = {
        "name": "transformers-openai-api",
        "version": VERSION,
        "model": service_of(request).model.name,
        "endpoints": _ENDPOINTS,
    }
    return Response(orjson.dumps(index), media_type="application/json", headers={"vary": "accept"})


def _source(tag: str) -> str:
    """The CSP source that allows the page's one inline element of this kind, and nothing else."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    content = match[1] if match else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_source('script')}; style-src {_source('style')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "vary": "accept",
}
