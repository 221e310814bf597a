"""The server that the tests of this folder share, and the table of what was measured."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import RunningServer
from tests.reliability.planted import FAULTS, STALL_SECONDS, save_template
from tests.reliability.rest import Rest
from tests.reliability.server import running_faulty

FLAGS = (
    *("--tokenizer-processes", "2"),
    *("--restart-limit", "1000"),
    *("--continuous-batching-batch-size", "16"),
)
Measured = Callable[[str, str, str, object], None]
_ROWS = pytest.StashKey[list[tuple[str, str, str, str]]]()


@pytest.fixture(scope="session", autouse=True)
def _start_quickly(nursery: None) -> None:
    """Servers need not import torch again."""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat template that fails at a word."""
    return save_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def faulty(template: Path) -> Iterator[RunningServer]:
    """A formula server with two tokenizers and every planted fault, that mends all deaths."""
    with running_faulty(*FLAGS, "--chat-template", str(template), faults=FAULTS) as server:
        yield server


@pytest.fixture(scope="session")
def rest(faulty: RunningServer) -> Rest:
    """What `faulty` is like when it has nothing to do."""
    return Rest(faulty)


@pytest.fixture(scope="session")
def impatient(template: Path) -> Iterator[RunningServer]:
    """The same, which soon takes a silent room for stuck; on a crowded machine also a slow one."""
    flags = (*FLAGS, "--chat-template", str(template), "--stall-timeout", str(STALL_SECONDS))
    with running_faulty(*flags, faults=FAULTS) as server:
        yield server


@pytest.fixture(scope="session")
def impatient_rest(impatient: RunningServer) -> Rest:
    """What `impatient` is like when it has nothing to do."""
    return Rest(impatient)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a figure for the table: promise, what, goal, value."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def note(promise: str, what: str, goal: str, value: object) -> None:
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        rows.append((promise, what, goal, shown))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table."""
    rows = terminalreporter.config.stash.get(_ROWS, [])
    if not rows:
        return
    table = [("promise", "what", "goal", "measured"), *sorted(rows)]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    terminalreporter.section("promises")
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
