"""The worker that several tests put on the stage, and the threads that all of them use."""

import pytest
import torch

from gpu_worker.worker import DETOKENIZER, Worker
from shared.config import Identity
from tests.builders import make_scheduler
from tests.fakes import FakeMailbox, ManualClock
from tests.gpu_worker.stage import EPOCH, LIMITS, MICROSLEEP_SECONDS, SlowRunner, Stage


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    """Small models compute faster on one thread than two threads agree on who does what."""
    torch.set_num_threads(1)


@pytest.fixture
def stage() -> Stage:
    """A worker of four rows with a frontend and a detokenizer; each step takes ten milliseconds."""
    sizes = {"num_blocks": 64, "block_size": 4, "max_sequences": 4}
    clock = ManualClock()
    identity = Identity("worker", 0, EPOCH, "")
    mailbox = FakeMailbox(identity, "frontend-0", "frontend-1", DETOKENIZER, clock=clock)
    runner = SlowRunner(clock, **sizes)
    worker = Worker(
        mailbox,
        make_scheduler(**sizes),
        runner,
        LIMITS,
        microsleep_seconds=MICROSLEEP_SECONDS,
        clock=clock,
    )
    return Stage(worker, mailbox, runner)
