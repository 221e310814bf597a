"""The ASGI side of one request for vectors."""

import asyncio
import base64
import logging
from collections.abc import Iterator
from typing import Any, cast

import orjson
from litestar.types import Receive, Scope, Send

from frontend.delivery import REQUEST_ID, run_until_gone, with_ignored_fields
from frontend.direct_body import DIRECT_BODY
from frontend.engine_client import EngineClient
from frontend.events import Accepted, VectorsFound
from frontend.generation import Generation
from frontend.pulse import Pulse, WriteStalledError
from frontend.submission import Embedding

logger = logging.getLogger(__name__)

_NUMBERS_AT_ONCE = 16 * 1024  # that are written before others run: a millisecond or two


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
        write_seconds: float,
    ) -> None:
        self._engine = engine
        self._wanted = wanted
        self._model = model
        self._ignored_fields = ignored_fields
        self._is_base64 = is_base64
        self._write_seconds = write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestError when the request fails."""
        caller_id = str(scope.get(REQUEST_ID, ""))
        with self._engine.submit(self._wanted, caller_id) as generation:
            pulse = Pulse(
                send,
                cast("dict[str, Any]", scope)[DIRECT_BODY],
                write_seconds=self._write_seconds,
                on_silence=lambda: None,  # nothing can be sent that means nothing
            )
            try:
                await run_until_gone(self._answer(generation, pulse), receive)
            except WriteStalledError:
                logger.info("%s: the client stopped reading", generation.request_id)

    async def _answer(self, generation: Generation, pulse: Pulse) -> None:
        (accepted,) = await generation.accepted()
        found = cast("VectorsFound", await generation.found())
        plain = with_ignored_fields({"content-type": "application/json"}, self._ignored_fields)
        headers = [(name.encode(), value.encode()) for name, value in plain.items()]
        with pulse:
            await pulse.send({"type": "http.response.start", "status": 200, "headers": headers})
            for piece in self._pieces(accepted, memoryview(found.vectors)):
                await pulse.send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)  # a client that reads fast would never let others run
            await pulse.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _pieces(self, accepted: Accepted, vectors: memoryview) -> Iterator[bytes]:
        """The body; as much of it at a time as may be made without letting others run."""
        num_inputs = len(self._wanted.inputs)
        size = len(vectors) // num_inputs
        at_once = max(1, 4 * _NUMBERS_AT_ONCE // size)
        yield b'{"object":"list","data":['
        for first in range(0, num_inputs, at_once):
            entries = [
                self._entry(index, vectors[index * size : (index + 1) * size])
                for index in range(first, min(first + at_once, num_inputs))
            ]
            yield b"," * (first > 0) + b",".join(entries)
        count = accepted.prompt_tokens
        usage = {"prompt_tokens": count, "total_tokens": count}
        yield b"]," + orjson.dumps({"model": self._model, "usage": usage}).removeprefix(b"{")

    def _entry(self, index: int, vector: memoryview) -> bytes:
        embedding: Any = vector.cast("f").tolist()
        if self._is_base64:
            embedding = base64.b64encode(vector).decode()
        return orjson.dumps({"object": "embedding", "index": index, "embedding": embedding})
