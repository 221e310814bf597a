"""A ceiling for streams: an ASGI application that sends events and does nothing else.

    python -m benchmarks.bare_stream

Prints its port. `POST /128/250` is answered with 128 events of 250 bytes. It runs under the
frontend's own uvicorn set-up.
"""

import asyncio
import socket

import uvicorn
import uvloop
from litestar.types import Receive, Scope, Send

from frontend.connection import LimitedProtocol

_BEGIN, _END = b'data: {"delta":{"content":"x"}', b"\n\n"


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """One event at each turn of the loop, so that the streams take turns."""
    num_events, event_bytes = map(int, scope["path"].split("/")[1:])
    event = _BEGIN.ljust(event_bytes - len(_END)) + _END
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(num_events):
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve() -> None:
    """Serves on a free port until it is killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        stream,
        http=LimitedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
