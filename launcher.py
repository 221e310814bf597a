"""The program: reads flags and environment, opens the port, and lets the rooms run.

    python launcher.py --hf-model demo

It reads the settings once, holds the listening socket and the run directory's lock, and leaves the
processes to the supervisor (shared/launching/supervisor.py).
"""

import sys

if sys.platform != "linux":  # before the imports, of which some need Linux
    sys.exit("transformers-openai-api needs Linux: use WSL2 or Docker on Windows, Docker on macOS")

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared import logs
from shared.errors import FatalError
from shared.launching import flags, notices, preflight
from shared.launching.environment import usable_environment
from shared.launching.listener import open_listener, warn_when_open

if TYPE_CHECKING:
    from shared.launching.supervisor import MakeSupervisor


def serve(make_supervisor: "MakeSupervisor | None" = None) -> int:
    """Runs one server to its end; returns the exit status, or raises FatalError."""
    settings = flags.read(sys.argv[1:], usable_environment(os.environ))
    config = settings.config
    if config.launcher.print_config:
        sys.stdout.write(flags.described(settings))
        return 0
    logs.set_up("launcher", config.launcher.loglevel, config.launcher.log_format)
    notices.log_what_is_not_used(settings, os.environ.get("HOSTNAME", ""))
    preflight.check(config)
    listener = open_listener(config.launcher.host, config.launcher.port)
    warn_when_open(listener, has_keys=bool(config.frontend.api_keys))
    # Sockets and messages take longer to load than `--help` to answer, and it has no use for them.
    from shared.launching import run_directory, supervisor  # noqa: PLC0415

    port = listener.getsockname()[1]
    path = run_directory.open_run_directory(config.launcher.run_directory, port, os.environ)
    make = make_supervisor or supervisor.Supervisor
    status = make(config, path, listener, os.environ).run()
    run_directory.remove_leftovers(Path(path))
    return status


def main(make_supervisor: "MakeSupervisor | None" = None) -> int:
    """The boundary of the program: a FatalError is one line and its exit status."""
    try:
        return serve(make_supervisor)
    except FatalError as error:
        print(f"{notices.PROGRAM}: {error}", file=sys.stderr)  # noqa: T201 — the one line of a failed start
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
