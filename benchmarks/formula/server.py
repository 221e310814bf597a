"""Starts a formula server: the launcher's flags come after `--`, its log is the launcher's.

python -m benchmarks.formula.server --step-ms 20 -- --hf-model demo --port 0
"""

import argparse
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import launcher
from benchmarks.formula.settings import FILE_NAME, FormulaSettings
from shared.config import ServerConfig
from shared.launching.supervisor import Supervisor

OWN_ROOMS = ("worker", "frontend")


class FormulaSupervisor(Supervisor):
    """The supervisor, with a formula in the worker and an observed frontend."""

    def __init__(
        self,
        config: ServerConfig,
        run_directory: str,
        listener: socket.socket,
        environ: Mapping[str, str],
        *,
        settings: FormulaSettings,
    ) -> None:
        super().__init__(config, run_directory, listener, environ)
        settings.save(run_directory)

    def run(self) -> int:
        """Serves, and takes the settings away at the end."""
        try:
            return super().run()
        finally:
            (Path(self._run_directory) / FILE_NAME).unlink()

    def _program(self, kind: str) -> str:
        return "benchmarks.formula.room" if kind in OWN_ROOMS else super()._program(kind)


def parse(arguments: list[str]) -> FormulaSettings:
    """The settings among the arguments before `--`."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s [options] -- [flags]")
    parser.add_argument("--step-ms", type=float, default=0.0, help="least time of a step")
    parser.add_argument("--end-probability", type=float, default=0.0, help="of each token")
    parser.add_argument("--text", choices=("plain", "letters", "mixed"), default="plain")
    parser.add_argument("--num-blocks", type=int, default=0, help="0: enough for every row")
    parser.add_argument("--record", default="", help="directory for what the rooms measure")
    return FormulaSettings(**vars(parser.parse_args(arguments)))


def main() -> int:
    """Runs the server to its end; returns the exit status."""
    program, *arguments = sys.argv
    middle = arguments.index("--") if "--" in arguments else len(arguments)
    settings = parse(arguments[:middle])
    sys.argv = [program, *arguments[middle + 1 :]]
    return launcher.main(partial(FormulaSupervisor, settings=settings))


if __name__ == "__main__":
    sys.exit(main())
