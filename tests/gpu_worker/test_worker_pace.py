"""When the worker waits, how far it runs ahead, and what it reports of its load."""

import dataclasses

import pytest

from gpu_worker.lines import MAX_UNACKNOWLEDGED_STEPS
from gpu_worker.reporting import BUSY_INTERVAL_SECONDS, IDLE_INTERVAL_SECONDS
from shared.messages import (
    Abort,
    CreditGranted,
    Message,
    StepsAcknowledged,
    TokensSampled,
    WorkerReported,
)
from shared.parts import RequestLost
from tests.builders import GREEDY
from tests.fakes import POISON, SHUTDOWN
from tests.gpu_worker.stage import (
    DETOKENIZER,
    EPOCH,
    MICROSLEEP_SECONDS,
    STEP_SECONDS,
    Stage,
    expected_answer,
    generate,
    in_turn,
    many_steps,
)

NUM_ROWS = 4  # of the stage: requests in a step


@in_turn
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
            stage.mailbox.deliver(StepsAcknowledged(0, EPOCH, num_planned[-1] - 10))

    stage.mailbox.when_waiting = acknowledge
    stage.run()
    room = MAX_UNACKNOWLEDGED_STEPS - 10
    assert num_planned == [*range(MAX_UNACKNOWLEDGED_STEPS, num_steps, room), num_steps]


@pytest.mark.parametrize(
    "stale", [StepsAcknowledged(0, EPOCH - 1, 10**6), StepsAcknowledged(0, EPOCH, 0)]
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
    newest, line = StepsAcknowledged(0, EPOCH, 50), stage.worker._lines.open(0)
    stage.run(newest, StepsAcknowledged(0, EPOCH, 20))
    assert line.num_acknowledged == 50


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


@in_turn
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


def test_only_tokens_of_answers_are_counted(stage: Stage) -> None:
    """Not those of a step that was under way when an answer ended, failed or was given up."""
    prompts = ((a, b) for a in range(10, 40) for b in range(10, 40))
    ends = (p for p in prompts if 2 < len(expected_answer(generate("", *p, max_tokens=20))) < 20)
    messages = [generate(f"r-{n}", *next(ends), max_tokens=20) for n in range(3)]
    stage.run_with(generate("gone", 10, 11, max_tokens=20), Abort("gone"), step=3)
    stage.mailbox.stop = None
    stage.run(*messages, generate("poisoned", 10, POISON, max_tokens=20))
    assert [len(stage.answer(m.request_id)) for m in messages] == [
        len(expected_answer(m)) for m in messages
    ]
    num_told = sum(len(step.token_ids) for step in stage.steps)
    num_sampled = sum(chunk.samples for plan in stage.runner.plans for chunk in plan.chunks)
    assert reports(stage)[-1].num_generated_tokens == num_told < num_sampled


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


def test_steps_that_were_lost_are_not_waited_for(stage: Stage) -> None:
    """They were never acknowledged, so that the worker stood still for ever."""
    stage.mailbox.unreachable.add(DETOKENIZER)
    names = [f"r-{n}" for n in range(2 * MAX_UNACKNOWLEDGED_STEPS * NUM_ROWS)]
    stage.run(*(generate(name, max_tokens=1) for name in names))
    stage.mailbox.unreachable.clear()
    stage.mailbox.stop = None
    stage.run(generate("later"))
    assert {loss for step in stage.steps for loss in step.lost} == {
        RequestLost(n, 0) for n in names
    }
    assert stage.answer("later") == expected_answer(generate("later"))


def test_a_lost_step_ends_its_requests_and_the_next_one_tells_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = stage.mailbox.send, list[TokensSampled]()

    def lose_the_second(room: str, message: Message) -> bool:
        if isinstance(message, TokensSampled) and message.step == 2 and not lost:
            lost.append(message)
            return False
        return send(room, message)

    monkeypatch.setattr(stage.mailbox, "send", lose_the_second)
    stage.run(generate("r", max_tokens=9), generate("other", max_tokens=1, frontend=1))
    assert lost
    assert [loss for step in stage.steps for loss in step.lost] == [RequestLost("r", 0)]
    assert [step.step for step in stage.steps] == list(range(1, len(stage.steps) + 1))
    ends = [(end.request_id, end.finish_reason) for end in stage.ends]
    assert ends == [("other", "length"), ("r", "abort")]
    assert stage.worker.scheduler.is_idle


def test_a_message_for_somebody_else_is_ignored(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.run(CreditGranted("tokenizer-0", 1, 1), generate("r"))
    assert "CreditGranted" in caplog.text
    assert stage.answer("r") == expected_answer(generate("r"))


def test_a_leak_is_found_when_the_worker_comes_to_rest(stage: Stage) -> None:
    stage.worker.scheduler.pool.allocate(1)
    with pytest.raises(AssertionError, match="owners and block tables differ"):
        stage.worker.run()


def test_a_prompts_settings_reach_the_runner(stage: Stage) -> None:
    sampling = dataclasses.replace(GREEDY, seed=77)
    stage.run(dataclasses.replace(generate("r"), sampling=sampling))
    assert [a.sampling for plan in stage.runner.plans for a in plan.admissions] == [sampling]
