"""The ASGI side of one request that a tokenizer alone answers: ids of a text, or text of ids."""

from collections.abc import Callable
from typing import Any

import orjson
from litestar.types import Receive, Scope, Send

from frontend.delivery import run_until_gone, with_ignored_fields
from frontend.engine_client import EngineClient
from frontend.events import TextFound, TokensFound, VectorsFound
from frontend.generation import Generation
from frontend.submission import Lookup

Body = Callable[[TokensFound | TextFound], dict[str, Any]]


class LookupDelivery:
    """Answers one validated lookup; an ASGI application, so that a caller who leaves is noticed."""

    def __init__(
        self, engine: EngineClient, wanted: Lookup, ignored_fields: str, body: Body
    ) -> None:
        self._engine = engine
        self._wanted = wanted
        self._ignored_fields = ignored_fields
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestError when the lookup fails."""
        with self._engine.look_up(self._wanted) as generation:
            await run_until_gone(self._answer(generation, send), receive)

    async def _answer(self, generation: Generation, send: Send) -> None:
        found = await generation.found()
        assert not isinstance(found, VectorsFound), "asked of a tokenizer"
        body = orjson.dumps(self._body(found))
        plain = {"content-type": "application/json", "content-length": str(len(body))}
        named = with_ignored_fields(plain, self._ignored_fields)
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
