"""The worker that several tests put on the stage, and the threads that all of them use."""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu_worker.stage import Stage, make_stage


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    """Small models compute faster on one thread than two threads agree on who does what."""
    torch.set_num_threads(1)


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """A worker on a formula, without prefix caching; once without overlap, once with it."""
    return make_stage(overlaps=request.param)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """What torch counts begins at nothing, and no other test's graphs are there."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
