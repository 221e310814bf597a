"""The step loop against a formula model and a mailbox of lists: what is told, and to whom."""

import dataclasses
import inspect
from dataclasses import dataclass

import pytest

from gpu_worker.intake import IntakeLimits
from gpu_worker.reporting import BUSY_INTERVAL_SECONDS, IDLE_INTERVAL_SECONDS
from gpu_worker.worker import DETOKENIZER, MAX_UNACKNOWLEDGED_STEPS, Worker
from scheduler.plan import StepPlan, StepResult
from shared.config import Identity
from shared.errors import ErrorCode
from shared.messages import (
    Abort,
    CreditGranted,
    Generate,
    Message,
    RequestFailed,
    SequenceEnded,
    StepsAcknowledged,
    TextStart,
    TokensSampled,
    WorkerReported,
)
from tests.builders import END_TOKEN, GREEDY, make_scheduler
from tests.fakes import (
    POISON,
    SHUTDOWN,
    FakeMailbox,
    FormulaRunner,
    ManualClock,
    formula_answer,
)

EPOCH = 3
LIMITS = IntakeLimits(max_model_len=256, vocab_size=100, end_token_ids=frozenset({END_TOKEN}))
MICROSLEEP_SECONDS = 0.001
STEP_SECONDS = 0.01


@dataclass
class Stage:
    """A worker and everything it talks to."""

    worker: Worker
    mailbox: FakeMailbox
    runner: FormulaRunner

    def run(self, *messages: Message) -> None:
        """Lets these arrive together, and runs until nothing is left to do."""
        self.mailbox.deliver(*messages)
        self.worker.run()
        self.worker.scheduler.check()

    def run_with(self, message: Message, *later: Message, step: int) -> None:
        """Lets the others arrive while this step is computed."""
        self.mailbox.deliver(message)
        self.mailbox.deliver(*later, at=(step - 0.5) * STEP_SECONDS)
        self.run()

    @property
    def steps(self) -> list[TokensSampled]:
        """What the detokenizer was told."""
        return self.mailbox.of_type(TokensSampled)

    @property
    def starts(self) -> list[TextStart]:
        """Every text that the detokenizer was asked to begin."""
        return [start for step in self.steps for start in step.started]

    @property
    def ends(self) -> list[SequenceEnded]:
        """Every end that the detokenizer was told."""
        return [end for step in self.steps for end in step.ended]

    def answer(self, request_id: str) -> list[int]:
        """The request's tokens, whose numbers have no gap."""
        rows = [
            (seq, token_id)
            for step in self.steps
            for name, seq, token_id in zip(step.request_ids, step.seqs, step.token_ids, strict=True)
            if name == request_id
        ]
        assert [seq for seq, _ in rows] == list(range(len(rows)))
        return [token_id for _, token_id in rows]


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


class SlowRunner(FormulaRunner):
    """A formula that takes its time."""

    def __init__(self, clock: ManualClock, **sizes: int) -> None:
        super().__init__(**sizes)
        self._clock = clock

    def execute(self, plan: StepPlan) -> StepResult:
        self._clock.advance(STEP_SECONDS)
        return super().execute(plan)


def generate(request_id: str, *prompt: int, max_tokens: int = 3, frontend: int = 0) -> Generate:
    """A request whose prompt, unless given, is 10, 11, 12."""
    text = TextStart(request_id, frontend, prompt[-2:], ("stop",))
    return Generate(request_id, prompt or (10, 11, 12), max_tokens, GREEDY, text)


def expected_answer(message: Generate) -> list[int]:
    """What the formula answers."""
    return formula_answer(message.prompt_token_ids, message.max_tokens, LIMITS.end_token_ids)


def test_the_loop_fits_on_a_screen() -> None:
    assert len(inspect.getsource(Worker.run).splitlines()) <= 40


def test_one_request_from_generate_to_end(stage: Stage) -> None:
    message = generate("r", 20, 21, 22, max_tokens=4)
    stage.run(message)
    answer = expected_answer(message)
    assert stage.answer("r") == answer
    assert stage.starts == [message.text]
    assert stage.steps[0].started == (message.text,)
    assert stage.ends == [SequenceEnded("r", "length", hides_last_token=False)]
    assert stage.steps[-1].ended == tuple(stage.ends)
    assert [step.step for step in stage.steps] == list(range(1, len(answer) + 1))
    assert {(step.worker_id, step.epoch) for step in stage.steps} == {(0, EPOCH)}
    assert all(room == DETOKENIZER for room, m in stage.mailbox.sent if m in stage.steps)


def test_an_end_token_is_told_but_hidden(stage: Stage) -> None:
    prompts = ((number,) for number in range(10, 100))
    messages = (generate("r", *prompt, max_tokens=40) for prompt in prompts if POISON not in prompt)
    message = next(m for m in messages if expected_answer(m)[-1] == END_TOKEN)
    stage.run(message)
    assert stage.answer("r")[-1] == END_TOKEN
    assert stage.ends == [SequenceEnded("r", "stop", hides_last_token=True)]


def test_one_message_a_step_holds_all_sequences(stage: Stage) -> None:
    messages = tuple(generate(name, number, 30) for number, name in enumerate("abc", start=20))
    stage.run(*messages)
    assert len(stage.steps) == len(stage.runner.plans) == 3
    assert all(step.request_ids == ("a", "b", "c") for step in stage.steps)
    for message in messages:
        assert stage.answer(message.request_id) == expected_answer(message)


def test_many_requests_in_any_order_get_their_own_answers(stage: Stage) -> None:
    messages = [
        generate(f"r-{n}", *range(n, n + 1 + 7 * n % 31), max_tokens=1 + n % 5) for n in range(20)
    ]
    for number, message in enumerate(messages):
        stage.mailbox.deliver(message, at=number * STEP_SECONDS / 2)
    stage.run()
    for message in messages:
        assert stage.answer(message.request_id) == expected_answer(message)
    assert sorted(start.request_id for start in stage.starts) == sorted(
        message.request_id for message in messages
    )
    assert len(stage.ends) == 20
    assert stage.runner.num_mixed > 0


def test_a_prompt_in_chunks_begins_its_text_with_its_first_token(stage: Stage) -> None:
    stage.run(generate("long", *range(40)))
    assert [len(step.started) for step in stage.steps] == [0, 0, 1, 0, 0]
    assert [len(step.token_ids) for step in stage.steps] == [0, 0, 1, 1, 1]


def test_an_abort_before_the_first_token_is_not_told(stage: Stage) -> None:
    stage.run(generate("r", *range(40)), Abort("r"))
    assert stage.steps == []
    assert stage.worker._texts == {}


def test_an_abort_within_the_prompt_is_not_told(stage: Stage) -> None:
    stage.run_with(generate("r", *range(40)), Abort("r"), step=1)
    assert len(stage.runner.plans) == 1
    assert (stage.starts, stage.ends) == ([], [])
    assert stage.worker._texts == {}


def test_an_abort_during_the_answer_is_told_at_once_though_nothing_else_runs(stage: Stage) -> None:
    message = generate("r", max_tokens=9)
    stage.run_with(message, Abort("r"), step=1)
    assert stage.ends == [SequenceEnded("r", "abort", hides_last_token=False)]
    assert stage.steps[-1].token_ids == ()
    assert [step.step for step in stage.steps] == [1, 2]
    assert stage.answer("r") == expected_answer(message)[:1]


def test_an_abort_among_others_is_told_with_their_next_tokens(stage: Stage) -> None:
    both = (generate("r", 20, max_tokens=9), generate("s", 21, max_tokens=4))
    stage.mailbox.deliver(both[0])
    stage.run_with(both[1], Abort("r"), step=1)
    assert stage.steps[1].request_ids == ("s",)
    assert stage.steps[1].ended == (SequenceEnded("r", "abort", hides_last_token=False),)
    assert [end.request_id for end in stage.ends] == ["r", "s"], "each end is told once"
    assert stage.answer("s") == expected_answer(both[1])


def test_an_abort_frees_its_blocks_at_once(stage: Stage) -> None:
    stage.run_with(generate("r", *range(40), max_tokens=100), Abort("r"), step=3)
    assert len(stage.runner.plans) == 3
    assert stage.worker.scheduler.pool.num_used == 0


def test_an_abort_of_the_unknown_or_the_ended_is_not_told(stage: Stage) -> None:
    stage.mailbox.deliver(Abort("nobody"))
    stage.run_with(generate("r", max_tokens=1), Abort("r"), Abort("r"), step=1)
    assert stage.ends == [SequenceEnded("r", "length", hides_last_token=False)]


def test_a_generate_after_its_abort_is_never_started(stage: Stage) -> None:
    stage.run(Abort("r"), generate("r"), generate("s"))
    assert [start.request_id for start in stage.starts] == ["s"]
    assert stage.answer("r") == []
    assert stage.worker._texts == {}


def test_a_generate_that_could_do_harm_fails_at_its_frontend(stage: Stage) -> None:
    stage.run(generate("bad", 5, 1000, frontend=1), generate("good"))
    (failed,) = stage.mailbox.of_type(RequestFailed)
    assert (failed.request_id, failed.code) == ("bad", ErrorCode.INTERNAL)
    assert ("frontend-1", failed) in stage.mailbox.sent
    assert stage.answer("good") == expected_answer(generate("good"))
    assert [start.request_id for start in stage.starts] == ["good"]


def test_logits_that_are_no_numbers_end_their_request_alone(stage: Stage) -> None:
    bad, good = generate("bad", 20, POISON), generate("good", 21)
    stage.run(bad, good)
    assert SequenceEnded("bad", "error", hides_last_token=False) in stage.ends
    assert bad.text in stage.starts, "the detokenizer must know whose end it is"
    assert stage.answer("bad") == []
    assert stage.answer("good") == expected_answer(good)


def many_steps(stage: Stage) -> int:
    """Delivers a request of far more steps than may be unacknowledged; returns their number."""
    prompts = ((a, b) for a in range(10, 40) for b in range(10, 40))
    messages = (generate("r", *prompt, max_tokens=200) for prompt in prompts)
    message = next(m for m in messages if len(expected_answer(m)) > 2 * MAX_UNACKNOWLEDGED_STEPS)
    stage.mailbox.deliver(message)
    return len(expected_answer(message))


def test_it_stops_planning_when_the_detokenizer_is_behind_and_goes_on_after_it(
    stage: Stage,
) -> None:
    num_steps = many_steps(stage)
    num_planned: list[int] = []

    def acknowledge(timeout_seconds: float | None) -> None:
        if timeout_seconds != IDLE_INTERVAL_SECONDS:
            return
        num_planned.append(len(stage.runner.plans))
        if num_planned[-1] == num_steps:
            stage.mailbox.stop = SHUTDOWN
        else:
            stage.mailbox.deliver(StepsAcknowledged(EPOCH, num_planned[-1] - 10))

    stage.mailbox.when_waiting = acknowledge
    stage.run()
    room = MAX_UNACKNOWLEDGED_STEPS - 10
    assert num_planned == [*range(MAX_UNACKNOWLEDGED_STEPS, num_steps, room), num_steps]


@pytest.mark.parametrize(
    "stale", [StepsAcknowledged(EPOCH - 1, 10**6), StepsAcknowledged(EPOCH, 0)]
)
def test_only_its_own_new_acknowledgements_let_it_go_on(
    stage: Stage, stale: StepsAcknowledged
) -> None:
    many_steps(stage)
    num_waits = 0

    def acknowledge(timeout_seconds: float | None) -> None:
        nonlocal num_waits
        num_waits += 1
        assert len(stage.runner.plans) in (0, MAX_UNACKNOWLEDGED_STEPS)
        stage.mailbox.deliver(stale)
        if num_waits > 5:
            stage.mailbox.stop = SHUTDOWN

    stage.mailbox.when_waiting = acknowledge
    stage.run()
    assert num_waits == 6


def test_an_old_acknowledgement_does_not_take_a_newer_one_back(stage: Stage) -> None:
    newest = StepsAcknowledged(EPOCH, 50)
    stage.run(newest, StepsAcknowledged(EPOCH, 20))
    assert stage.worker._num_acknowledged == 50


def test_aborts_are_heard_while_the_detokenizer_is_behind(stage: Stage) -> None:
    many_steps(stage)

    def abort(_: float | None) -> None:
        is_behind = len(stage.runner.plans) == MAX_UNACKNOWLEDGED_STEPS
        if is_behind and not stage.worker.scheduler.is_idle:
            stage.mailbox.deliver(Abort("r"))
        elif is_behind:
            assert stage.worker.scheduler.pool.num_used == 0
            stage.mailbox.stop = SHUTDOWN

    stage.mailbox.when_waiting = abort
    stage.run()
    assert len(stage.runner.plans) == MAX_UNACKNOWLEDGED_STEPS


def test_a_stop_ends_it_though_the_detokenizer_is_behind(stage: Stage) -> None:
    many_steps(stage)
    stage.run()
    assert stage.mailbox.stop == SHUTDOWN


def test_companions_of_the_first_arrival_share_its_first_step(stage: Stage) -> None:
    stage.mailbox.deliver(generate("a", 20))
    stage.mailbox.deliver(generate("b", 21), at=0.9 * MICROSLEEP_SECONDS)
    stage.mailbox.deliver(generate("c", 22), at=1.1 * MICROSLEEP_SECONDS)
    stage.run()
    assert stage.steps[0].request_ids == ("a", "b")
    assert stage.steps[1].request_ids == ("a", "b", "c")


def test_the_wait_for_companions_is_short(stage: Stage) -> None:
    waits: list[float | None] = []
    stop_when_done = stage.mailbox.when_waiting

    def note(timeout_seconds: float | None) -> None:
        if timeout_seconds != IDLE_INTERVAL_SECONDS:
            waits.append(timeout_seconds)
        stop_when_done(timeout_seconds)

    stage.mailbox.when_waiting = note
    stage.run(generate("a"))
    assert waits == [pytest.approx(MICROSLEEP_SECONDS)]


def test_a_busy_worker_never_waits(stage: Stage) -> None:
    stage.run(generate("a", max_tokens=9))
    busy_seconds = len(stage.runner.plans) * STEP_SECONDS
    assert stage.mailbox.clock.now == pytest.approx(
        busy_seconds + MICROSLEEP_SECONDS + IDLE_INTERVAL_SECONDS
    )


def reports(stage: Stage, frontend: str = "frontend-0") -> list[WorkerReported]:
    """What a frontend was told of the load."""
    sent = stage.mailbox.sent
    return [m for room, m in sent if room == frontend and isinstance(m, WorkerReported)]


def test_the_load_falls_to_nothing_at_rest(stage: Stage) -> None:
    messages = tuple(generate(f"r-{n}", 20 + n, 5, max_tokens=6) for n in range(6))
    stage.run(*messages)
    last = reports(stage)[-1]
    assert (last.num_running, last.num_waiting, last.num_used_blocks) == (0, 0, 0)
    assert last.num_blocks == 64
    assert (last.worker_id, last.epoch) == (0, EPOCH)
    assert last.step == len(stage.runner.plans)
    assert last.num_prompt_tokens == sum(len(m.prompt_token_ids) for m in messages)
    assert last.num_generated_tokens == sum(len(expected_answer(m)) for m in messages)
    assert last.num_mixed_steps == stage.runner.num_mixed


def test_every_frontend_is_told(stage: Stage) -> None:
    stage.run(generate("r"))
    assert reports(stage, "frontend-0") == reports(stage, "frontend-1") != []


def test_a_busy_worker_reports_a_few_times_a_second(stage: Stage) -> None:
    many_steps(stage)
    stage.run()
    busy = [report for report in reports(stage) if report.num_running]
    busy_seconds = MAX_UNACKNOWLEDGED_STEPS * STEP_SECONDS
    assert 2 <= len(busy) <= busy_seconds / BUSY_INTERVAL_SECONDS + 2


def test_an_idle_worker_still_reports(stage: Stage) -> None:
    num_waits = 0

    def stay_idle(_: float | None) -> None:
        nonlocal num_waits
        num_waits += 1
        if num_waits == 5:
            stage.mailbox.stop = SHUTDOWN

    stage.mailbox.when_waiting = stay_idle
    stage.run()
    assert len(reports(stage)) == 5


def test_a_detokenizer_that_is_gone_does_not_stop_the_loop(stage: Stage) -> None:
    stage.mailbox.unreachable.add(DETOKENIZER)
    stage.run(generate("r"))
    assert stage.worker.scheduler.is_idle
    assert stage.steps == []


def test_a_message_for_somebody_else_is_ignored(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.run(CreditGranted("tokenizer-0", 1, 1), generate("r"))
    assert "CreditGranted" in caplog.text
    assert stage.answer("r") == expected_answer(generate("r"))


def test_a_leak_is_found_when_the_worker_comes_to_rest(stage: Stage) -> None:
    stage.worker.scheduler.pool.allocate(1)
    with pytest.raises(AssertionError, match="used blocks"):
        stage.worker.run()


def test_a_prompts_settings_reach_the_runner(stage: Stage) -> None:
    sampling = dataclasses.replace(GREEDY, seed=77)
    stage.run(dataclasses.replace(generate("r"), sampling=sampling))
    assert [a.sampling for plan in stage.runner.plans for a in plan.admissions] == [sampling]
