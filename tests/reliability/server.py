"""A formula server with planted faults: as a program, and for tests to start.

python -m tests.reliability.server --faults '[{"at": "step", "do": "raise", "match": "boom"}]' -- \
    --hf-model demo --port 0
"""

import argparse
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec

import launcher
from benchmarks.formula.server import FormulaSupervisor
from benchmarks.formula.settings import FormulaSettings
from shared.config import ServerConfig
from shared.launching import children
from tests.e2e.server import ROOT, RunningServer, running_server
from tests.reliability.faults import FILE_NAME, Fault, save_faults

SETTINGS = FormulaSettings(step_ms=10.0)
# The formula says any token, also one that begins thoughts; they stay in the content.
FLAGS = ("--hf-model", "demo", "--reasoning-field", "none")


class FaultySupervisor(FormulaSupervisor):
    """The supervisor, whose rooms fail as planned."""

    def __init__(
        self,
        config: ServerConfig,
        run_directory: str,
        listener: socket.socket,
        environ: Mapping[str, str],
        *,
        faults: str,
    ) -> None:
        super().__init__(config, run_directory, listener, environ, settings=SETTINGS)
        save_faults(msgspec.json.decode(faults, type=list[Fault]), run_directory)

    def run(self) -> int:
        """Serves, and takes the plan away at the end."""
        try:
            return super().run()
        finally:
            (Path(self._run_directory) / FILE_NAME).unlink()

    def _program(self, kind: str) -> str:
        return "shared.process" if kind == "frontend" else "tests.reliability.rooms"


@contextmanager
def running_faulty(
    *flags: str, faults: Sequence[Fault] = (), start_seconds: float = children.START_SECONDS
) -> Iterator[RunningServer]:
    """A ready server with these faults; `flags` are the launcher's."""
    with running_server(*FLAGS, *flags, program=program(faults, start_seconds)) as it:
        yield it


def program(
    faults: Sequence[Fault] = (), start_seconds: float = children.START_SECONDS
) -> tuple[str, ...]:
    """What starts such a server, before the launcher's flags."""
    plan = msgspec.json.encode([asdict(fault) for fault in faults]).decode()
    python = ("env", f"PYTHONPATH={ROOT}", sys.executable)  # it is started from elsewhere
    own = ("--faults", plan, "--start-seconds", str(start_seconds))
    return (*python, "-m", "tests.reliability.server", *own, "--")


def main() -> int:
    """Runs the server to its end; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", default="[]")
    parser.add_argument("--start-seconds", type=float, default=children.START_SECONDS)
    middle = sys.argv.index("--")
    own = parser.parse_args(sys.argv[1:middle])
    children.START_SECONDS = own.start_seconds
    children.TOKENIZER_NICENESS = 0  # on a crowded machine a new life would take minutes
    sys.argv[1:] = sys.argv[middle + 1 :]
    return launcher.main(partial(FaultySupervisor, faults=own.faults))


if __name__ == "__main__":
    sys.exit(main())
