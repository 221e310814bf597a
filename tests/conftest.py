"""What all tests need before they import anything."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.e2e import server
from tests.e2e.nursery import running_nursery
from tests.examples import EVERY_EXAMPLE

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported,
# which torch may do in any test.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# How fast examples are drawn and tried depends on what else the machine does.
for profile in ("any pace", EVERY_EXAMPLE):
    settings.register_profile(profile, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


SHARED = ("tests/e2e", "tests/reliability")  # their servers are for all files of the folder


class WhereFixturesAre(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """A file's tests run in one process, and all of some folders: fixtures are made once.

    So servers start one after the other, beside tests that need a single core.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in SHARED if file.startswith(f"{folder}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Decides which process of several runs a test."""
    return WhereFixturesAre(config, log)


def pytest_collection_finish() -> None:
    """What collecting has imported stays, and no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nursery() -> Iterator[None]:
    """Servers are forked by a process that has imported all they need, unless they say `afresh`."""
    with running_nursery() as server.nursery:
        yield
    server.nursery = None
