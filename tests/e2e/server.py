"""Starts the real server, as a user would, for end-to-end tests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.e2e.forked import Forked
from tests.e2e.nursery import Nursery
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = (sys.executable, str(ROOT / "launcher.py"))
START_SECONDS = 120.0
GONE_SECONDS = 5.0
RESTING_AT_ZERO = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "transformers_openai_api:open_requests",
)
nursery: Nursery | None = None  # where the tests' servers are born, unless they say `afresh`
_READY = re.compile(r"ready: serving (\S+) on http://[^:]+:(\d+)")


class RunningServer:
    """One launcher process and what it has said so far."""

    def __init__(self, command: list[str], *, afresh: bool = False) -> None:
        self.command = command
        reader, writer = os.pipe()
        self._stderr = os.fdopen(reader)
        self.process = _started(command, writer, afresh=afresh)
        os.close(writer)
        self.log: list[str] = []
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Returns once every room is ready; fails at once when the launcher has ended."""
        wait_until(lambda: self.port or self.process.poll() is not None, START_SECONDS)
        assert self.port, "".join(self.log)

    def children(self) -> dict[str, psutil.Process]:
        """The rooms by name, such as `worker-0`."""
        named = {}
        for child in self._descendants():
            with suppress(psutil.NoSuchProcess):  # it is gone
                if words := child.cmdline():  # and not about to be
                    named[words[0].rsplit(" ", 1)[-1]] = child
        return named

    def metric(self, name: str) -> float:
        """The value of one series of /metrics, whatever its labels; 0 when it is absent."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def is_at_rest(self) -> bool:
        """True when nothing runs or waits and no block is in use."""
        return not any(self.metric(name) for name in RESTING_AT_ZERO)

    def stop(
        self, number: signal.Signals = signal.SIGTERM, within_seconds: float = GONE_SECONDS
    ) -> int:
        """Asks the launcher to end and returns its exit status; by then no room is left."""
        rooms = self._descendants()
        self.process.send_signal(number)
        status = self.process.wait(within_seconds)
        assert not any(map(is_alive, rooms))
        return status

    def kill(self) -> None:
        """Makes sure that nothing is left, whatever the test did: rooms die with their launcher."""
        if self.process.poll() is None:
            rooms = self._descendants()
            self.process.kill()
            wait_until(lambda: not any(map(is_alive, rooms)), GONE_SECONDS)
        self.process.wait()
        self._reader.join()
        self._stderr.close()

    def _descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def _read(self) -> None:
        for line in self._stderr:
            self.log.append(line)
            if found := _READY.search(line):
                self.port = int(found[2])


def _started(command: list[str], stderr: int, *, afresh: bool) -> subprocess.Popen[bytes] | Forked:
    """The launcher: forked where that can be, else executed."""
    words, environ = list(command), dict(os.environ)
    while words[0] == "env":
        del words[0]
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
    if nursery is None or afresh or words[0] != sys.executable:
        return subprocess.Popen(command, stderr=stderr, cwd=tempfile.gettempdir())
    return nursery.start(words[1:], environ, stderr)


def is_alive(process: psutil.Process) -> bool:
    """True for a process that runs; a zombie that nobody has reaped yet does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running_server(
    *arguments: str,
    prefix: Iterable[str] = (),
    program: Iterable[str] = LAUNCHER,
    afresh: bool = False,
) -> Iterator[RunningServer]:
    """A ready server on a free port with a run directory of its own.

    One that is started afresh imports all that it needs, as a user's does.
    """
    with tempfile.TemporaryDirectory(prefix="toa-") as run_directory:
        os.chmod(run_directory, 0o700)  # noqa: PTH101 — as short as it can be said
        common = ["--host", "127.0.0.1", "--port", "0", "--run-directory", run_directory]
        server = RunningServer([*prefix, *program, *common, *arguments], afresh=afresh)
        try:
            server.wait_ready()
            yield server
        finally:
            server.kill()
