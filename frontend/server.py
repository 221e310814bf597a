"""A frontend process: one event loop that serves HTTP and reads the mailbox.

All frontends accept connections on the one socket that they inherit: whichever comes first.
It answers from its start, while the model still loads. It ends when the launcher says `Stop`: open
requests fail with the launcher's reason, and their bytes get one second to leave.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn
import uvloop

from frontend.admission import Limits
from frontend.app import build_app
from frontend.connection import limited_protocol
from frontend.engine_client import EngineClient
from frontend.health import Health
from frontend.metrics import Metrics
from frontend.occupancy import Occupancy
from frontend.served_model import ServedModel
from frontend.service import Service
from frontend.sheet import Sheet
from frontend.sound_budget import SoundBudget
from shared.config import FrontendConfig
from shared.mailbox import LAUNCHER, Mailbox
from shared.messages import Drained

SWEEP_SECONDS = 1.0  # how late a deadline may be noticed
DRAIN_SWEEP_SECONDS = 0.05  # how late the last answer's end may be noticed when we drain
GOODBYE_SECONDS = 1  # for the last bytes of open requests at the end
KEEP_ALIVE_SECONDS = 120  # longer than clients keep idle connections, so that they close first


def run(config: FrontendConfig, mailbox: Mailbox) -> None:
    """Serves on the inherited listening socket until the launcher says stop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, mailbox))


async def _serve(config: FrontendConfig, mailbox: Mailbox) -> None:
    service = _build_service(config, mailbox)
    server = _Server(service, mailbox)
    with server.watching_mailbox():
        await server.serve(sockets=[socket.socket(fileno=config.socket_fd)])
    if server.failure is not None:
        raise server.failure


def _build_service(config: FrontendConfig, mailbox: Mailbox) -> Service:
    identity = config.identity
    index = identity.index
    sheet = Sheet.shared(config.sheet_fd, config.num_frontends, index, identity.epoch)
    metrics = Metrics(config.model_name, sheet)
    limits = Limits(
        max_concurrent=config.max_concurrent,
        max_queue=config.max_queue,
        queue_timeout_seconds=config.queue_timeout,
        request_timeout_seconds=config.request_timeout,
        first_token_timeout_seconds=config.first_token_timeout,
    )
    health = Health(config.stall_timeout)
    occupancy = Occupancy(sheet, index)
    engine = EngineClient(mailbox, metrics, health, limits, occupancy, time.monotonic)
    model = ServedModel(config, created=config.created, facts=engine.model)
    return Service(config, engine, metrics, model, SoundBudget(sheet))


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to the launcher, and the loop's other duty: the mailbox."""

    def __init__(self, service: Service, mailbox: Mailbox) -> None:
        super().__init__(_uvicorn_config(service))
        self._engine = service.engine
        self._mailbox = mailbox
        self._has_drained = False
        self.failure: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Reports ready as soon as connections are answered."""
        await super().startup(sockets)
        self._mailbox.report_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none: `shared/process.py` ignores them, and the launcher says stop."""
        yield

    @contextlib.contextmanager
    def watching_mailbox(self) -> Iterator[None]:
        """Handles messages on arrival, and sweeps about once a second."""
        loop = asyncio.get_running_loop()
        fileno = self._mailbox.fileno()
        loop.add_reader(fileno, self._guard, self._engine.receive)
        # The descriptor tells of changes only: what came before it was watched must be fetched.
        self._guard(self._engine.receive)
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop)
        try:
            yield
        finally:
            self._timer.cancel()
            loop.remove_reader(fileno)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._guard(self._engine.sweep)
        self._mailbox.beat()
        if self._engine.is_draining:
            self._note_drained()
        interval = DRAIN_SWEEP_SECONDS if self._engine.is_draining else SWEEP_SECONDS
        self._timer = loop.call_later(interval, self._sweep, loop)

    def _note_drained(self) -> None:
        """Tells the launcher, until it is reached, that every response is on its way."""
        if not self._has_drained and self._engine.is_empty and not self.server_state.tasks:
            identity = self._mailbox.identity
            drained = Drained(identity.room, identity.epoch)
            self._has_drained = self._mailbox.send(LAUNCHER, drained)

    def _guard(self, duty: Callable[[], None]) -> None:
        """Runs one duty; a bug in it ends the process, because the ledger can no longer be true."""
        try:
            duty()
        except Exception as error:  # noqa: BLE001 — the loop's boundary: `run` raises it
            self.failure = error
            self.should_exit = True
        if self._mailbox.stop is not None:
            self.should_exit = True


def _uvicorn_config(service: Service) -> uvicorn.Config:
    config = service.config
    return uvicorn.Config(
        build_app(service),
        http=limited_protocol(config.upload_timeout),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
