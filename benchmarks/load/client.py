"""Sends one prompt over HTTP and times what comes back."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import orjson

from benchmarks.load.answers import Arrival, message_of, read_answer, read_rejection
from benchmarks.load.outcome import Failed, Outcome
from benchmarks.load.prompts import Prompt

Clock = Callable[[], float]  # seconds
Item = TypeVar("Item")  # what one request sends: a prompt, or a sound
ContraItem = TypeVar("ContraItem", contravariant=True)
IDLE_SECONDS = 3.0  # less than servers keep idle connections (uvicorn: 5), or they close under us


class Unreachable(Exception):
    """The server cannot be measured; the message says why."""


class Asks(Protocol[ContraItem]):
    """Makes a request of an item, and reads what came back."""

    @property
    def url(self) -> str:
        """Where it is asked."""

    def request(self, item: ContraItem, /) -> dict[str, Any]:
        """The body and what belongs to it, as aiohttp takes them."""

    def read(
        self, sent: float, ended: float, item: ContraItem, arrivals: list[Arrival], /
    ) -> Outcome:
        """What became of a request that was answered with status 200."""


@dataclass(frozen=True)
class Target:
    """What is asked about a prompt, and how."""

    base_url: str
    endpoint: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)  # of every request's body

    @property
    def url(self) -> str:
        """See `Asks`."""
        return self.base_url + self.endpoint

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """See `Asks`."""
        return {"data": self._body(prompt), "headers": {"Content-Type": "application/json"}}

    def read(self, sent: float, _: float, prompt: Prompt, arrivals: list[Arrival]) -> Outcome:
        """See `Asks`."""
        return read_answer(sent, prompt.text, arrivals)

    def _body(self, prompt: Prompt) -> bytes:
        if self.endpoint.endswith("/chat/completions"):
            content: dict[str, Any] = {"messages": [{"role": "user", "content": prompt.text}]}
        else:
            content = {"prompt": prompt.text}
        return orjson.dumps({
            "model": self.model,
            **content,
            "max_tokens": prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        })  # fmt: skip


class Client(Generic[Item]):
    """Asks one target; any number of requests at a time."""

    def __init__(
        self, session: aiohttp.ClientSession, target: Asks[Item], clock: Clock = perf_counter
    ) -> None:
        self._session = session
        self._target = target
        self._clock = clock

    async def ask(self, item: Item) -> Outcome:
        """Awaits one answer; raises nothing that a server or a network may cause."""
        request = self._target.request(item)
        arrivals: list[Arrival] = []
        sent = self._clock()
        try:
            async with self._session.post(self._target.url, **request) as response:
                if response.status != 200:
                    rejection = await response.read()
                    return read_rejection(sent, self._clock(), response.status, rejection)
                async for data in response.content.iter_any():
                    arrivals.append((self._clock(), data))
        except TimeoutError:
            return Failed(sent, self._clock(), "timeout", "no whole answer within --timeout")
        except aiohttp.ClientPayloadError as error:
            return Failed(sent, self._clock(), "cut stream", str(error))
        except aiohttp.ClientError as error:
            return Failed(sent, self._clock(), type(error).__name__, str(error))
        return self._target.read(sent, self._clock(), item, arrivals)


@asynccontextmanager
async def open_session(
    api_key: str | None, timeout_seconds: float
) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without a limit to their number; `timeout_seconds` bounds each request."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        headers=headers,
    ) as session:
        yield session


async def first_model(session: aiohttp.ClientSession, base_url: str) -> str:
    """The first name that the server lists; raises `Unreachable` when there is none."""
    url = f"{base_url}/v1/models"
    try:
        async with session.get(url) as response:
            body = await response.read()
            if response.status != 200:
                raise Unreachable(f"{url}: HTTP {response.status}, {message_of(body)}")
    except (TimeoutError, aiohttp.ClientError) as error:
        raise Unreachable(f"{url}: {str(error) or 'timeout'}; is the server up?") from error
    try:
        return str(orjson.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise Unreachable(f"{url} lists no model: name it with --model") from error
