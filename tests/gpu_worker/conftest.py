"""The worker that several tests put on the stage, and the threads that all of them use."""

import pytest
import torch

from tests.gpu_worker.stage import Stage, make_stage


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    """Small models compute faster on one thread than two threads agree on who does what."""
    torch.set_num_threads(1)


@pytest.fixture
def stage() -> Stage:
    """A worker on a formula, without prefix caching."""
    return make_stage()
