"""Starts a formula server for a test or a benchmark, and ends it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from benchmarks.formula.settings import FormulaSettings
from tests.e2e.server import ROOT, RunningServer, running_server

PLAIN = FormulaSettings()


@contextmanager
def running_formula(*flags: str, settings: FormulaSettings = PLAIN) -> Iterator[RunningServer]:
    """A ready formula server behind the demo model's tokenizer; `flags` are the launcher's."""
    own = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(settings).items()]
    python = ("env", f"PYTHONPATH={ROOT}", sys.executable)  # it is started from elsewhere
    program = (*python, "-m", "benchmarks.formula.server", *own, "--")
    with running_server("--hf-model", "demo", *flags, program=program) as server:
        yield server
