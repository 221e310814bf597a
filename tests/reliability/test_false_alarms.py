"""An hour of prefills of a minute each, on a clock by hand: nobody is called stuck; a hang is."""

from types import SimpleNamespace
from typing import Any

import pytest

from frontend.health import Health
from gpu_worker.worker import Worker
from scheduler.plan import StepPlan, StepResult
from shared import mailbox as mailbox_module
from shared.config import Identity, ServerConfig
from shared.launching.children import Child
from shared.mailbox import BEAT_SECONDS, LAUNCHER, Mailbox
from shared.messages import (
    Message,
    RoomGetsOn,
    StepsAcknowledged,
    TokensSampled,
    WorkerReported,
)
from shared.parts import Peer
from tests.builders import make_scheduler
from tests.fakes import SHUTDOWN, FakeMailbox, FormulaRunner, ManualClock
from tests.gpu_worker.stage import LIMITS, generate
from tests.reliability.conftest import Measured

HOUR = 3600.0
PREFILL_SECONDS = 60.0
TICK_SECONDS = 0.25
SIZES: dict[str, Any] = {"num_blocks": 64, "block_size": 4, "max_sequences": 4}
STALL_SECONDS = ServerConfig().launcher.stall_timeout
DETOKENIZER = "detokenizer-0"
PEERS = ("frontend-0", "tokenizer-0", DETOKENIZER, "worker-0")


class Watch:
    """What the launcher and the frontend make of a worker's signs of life."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        identity = Identity("worker", 0, 1, "")
        process: Any = None  # nothing of this needs one
        self._child = Child(identity, process, -1, heard_at=0.0, has_started=True, is_ready=True)
        self._health = Health(STALL_SECONDS)
        peers = {room: Peer(room, 1, "", True, None) for room in PEERS}
        self._health.note_peers(peers, 0.0, is_warm=True)
        self.num_alarms = 0

    def hear(self, message: Message) -> None:
        """Takes what the worker says."""
        match message:
            case RoomGetsOn():
                self._child.heard_at = self._clock()
            case WorkerReported():
                self._health.note_report(message, self._clock())
            case _:
                pass  # no sign of life

    def let_pass(self, seconds: float) -> None:
        """Looks at the worker again and again while this time passes."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self._clock.advance(TICK_SECONDS)
            now = self._clock()
            is_stuck = self._child.is_stuck(now, STALL_SECONDS + BEAT_SECONDS)
            self.num_alarms += is_stuck or self._health.problem(now) is not None


class BeatingMailbox(FakeMailbox):
    """A mailbox of lists with the real one's signs of life."""

    beat = Mailbox.beat
    _beat_due = 0.0

    def __init__(self, watch: Watch, clock: ManualClock) -> None:
        super().__init__(Identity("worker", 0, 1, ""), *PEERS, clock=clock)
        self._watch = watch

    def send(self, room: str, message: Message) -> bool:
        if room in (LAUNCHER, "frontend-0"):
            self._watch.hear(message)
        if isinstance(message, TokensSampled):
            self.deliver(StepsAcknowledged(0, message.epoch, message.step))
        return super().send(room, message)


class SlowRunner(FormulaRunner):
    """A formula whose prefills take their time, a part of it in each step."""

    def __init__(self, watch: Watch, step_seconds: float) -> None:
        super().__init__(**SIZES)
        self._watch = watch
        self._step_seconds = step_seconds

    def execute(self, plan: StepPlan) -> StepResult:
        self._watch.let_pass(self._step_seconds)
        return super().execute(plan)


def alarms_in_an_hour(step_seconds: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often somebody thought that a worker of such steps was stuck."""
    clock = ManualClock()
    monkeypatch.setattr(mailbox_module, "time", SimpleNamespace(monotonic=clock))
    watch = Watch(clock)
    mailbox = BeatingMailbox(watch, clock)
    chunk = 4
    num_steps = max(1, round(PREFILL_SECONDS / step_seconds))
    worker = Worker(
        mailbox,
        make_scheduler(**SIZES, max_tokens_per_step=chunk),
        SlowRunner(watch, step_seconds),
        LIMITS,
        microsleep_seconds=0.001,
        clock=clock,
    )
    requests = [
        generate(f"r-{n}", *[10 + n % 80] * (chunk * num_steps), max_tokens=1) for n in range(64)
    ]
    mailbox.deliver(*requests)
    worker.run()
    assert mailbox.stop == SHUTDOWN
    assert clock() >= HOUR
    return watch.num_alarms


@pytest.mark.parametrize("step_seconds", [1.0, 20.0, 59.0])
def test_long_prefills_raise_no_alarm(step_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alarms_in_an_hour(step_seconds, monkeypatch) == 0


def test_a_step_that_is_too_long_raises_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alarms_in_an_hour(STALL_SECONDS + 2, monkeypatch) > 0


@pytest.mark.slow
@pytest.mark.reliability
def test_the_figure_of_the_table(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = alarms_in_an_hour(1.0, monkeypatch)
    measured("P25", "false alarms in an hour of 60 s prefills (clock by hand)", "0", alarms)
    assert alarms == 0
