"""The ASGI side of one request for vectors."""

import asyncio
import base64
from array import array
from typing import cast

import orjson
from litestar.types import Receive, Scope, Send

from frontend.delivery import REQUEST_ID, run_until_gone
from frontend.engine_client import EngineClient
from frontend.events import Accepted, VectorsFound
from frontend.generation import Generation
from frontend.lookup import send_json
from frontend.submission import Embedding

_NUMBERS_AT_ONCE = 16 * 1024  # written without letting others run: a millisecond or two


class EmbeddingDelivery:
    """Answers one validated request for vectors; an ASGI application."""

    def __init__(
        self,
        engine: EngineClient,
        wanted: Embedding,
        model: str,
        ignored_fields: str,
        *,
        is_base64: bool,
    ) -> None:
        self._engine = engine
        self._wanted = wanted
        self._model = model
        self._ignored_fields = ignored_fields
        self._is_base64 = is_base64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestError when the request fails."""
        caller_id = str(scope.get(REQUEST_ID, ""))
        with self._engine.submit(self._wanted, caller_id) as generation:
            await run_until_gone(self._answer(generation, send), receive)

    async def _answer(self, generation: Generation, send: Send) -> None:
        (accepted,) = await generation.accepted()
        found = cast("VectorsFound", await generation.found())
        await send_json(send, await self._body(accepted, found.vectors), self._ignored_fields)

    async def _body(self, accepted: Accepted, vectors: bytes) -> bytes:
        """The list, made piece by piece: others want the loop as well."""
        num_inputs = len(self._wanted.inputs)
        size = len(vectors) // num_inputs
        parts = [b'{"object":"list","data":[']
        num_written = 0
        for index in range(num_inputs):
            parts += b"," * (index > 0), self._entry(index, vectors[index * size :][:size])
            num_written += size // 4
            if num_written >= _NUMBERS_AT_ONCE:
                num_written = 0
                await asyncio.sleep(0)
        count = accepted.prompt_tokens
        usage = {"prompt_tokens": count, "total_tokens": count}
        rest = orjson.dumps({"model": self._model, "usage": usage})
        return b"".join((*parts, b"],", rest.removeprefix(b"{")))

    def _entry(self, index: int, vector: bytes) -> bytes:
        embedding = (
            base64.b64encode(vector).decode() if self._is_base64 else array("f", vector).tolist()
        )
        return orjson.dumps({"object": "embedding", "index": index, "embedding": embedding})
