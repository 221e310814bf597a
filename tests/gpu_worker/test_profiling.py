"""Profiling changes no answer, ends by itself, and leaves a table and a trace."""

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from gpu_worker import profiling
from gpu_worker.profiling import ProfilingRunner, kind_of
from scheduler.plan import StepPlan
from shared.config import WorkerConfig
from shared.messages import SwitchProfiling
from tests.builders import make_scheduler, make_sequence
from tests.fakes import FormulaRunner, formula_answer
from tests.gpu_worker.stage import expected_answer, generate, make_stage

SIZES = {"num_blocks": 64, "block_size": 4, "max_sequences": 4}
PROMPTS = (30, 5)  # with 16 tokens a step: the second joins while the first is prefilled


def serve(runner: ProfilingRunner | FormulaRunner) -> tuple[list[list[int]], list[StepPlan]]:
    """Answers two requests, the second of which comes while the first runs."""
    scheduler = make_scheduler()
    sequences = [make_sequence(str(n), length, 8) for n, length in enumerate(PROMPTS)]
    arrivals, plans = iter(sequences), []
    while (arrived := next(arrivals, None)) or not scheduler.is_idle:
        for _ in range(3 if arrived else 1):  # so that the first decodes when the second comes
            if arrived is not None and not scheduler.holds(arrived.request_id):
                scheduler.add(arrived)
            plans.append(scheduler.schedule())
            scheduler.apply(plans[-1], runner.execute(plans[-1]))
    return [s.token_ids[s.num_prompt_tokens :] for s in sequences], plans


def labels(trace: Path) -> Counter[str]:
    """How often each kind of step is in a trace."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return Counter(name for name in names if name in {"prefill", "decode", "mixed"})


def profiled(tmp_path: Path, num_steps: int) -> ProfilingRunner:
    """A formula whose steps are recorded."""
    runner = ProfilingRunner(FormulaRunner(**SIZES), num_steps, str(tmp_path / "traces"))
    runner.switch()
    return runner


def test_answers_are_the_same(tmp_path: Path) -> None:
    answers, _ = serve(profiled(tmp_path, 100))
    assert answers == serve(FormulaRunner(**SIZES))[0]
    prompt = list(range(10, 10 + PROMPTS[0]))
    assert answers[0] == formula_answer(prompt, 8, frozenset({1}))


def test_every_step_is_in_the_trace_under_its_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = profiled(tmp_path, 100)
    _, plans = serve(runner)
    runner.close()
    runner.wait()
    assert runner.trace is not None
    assert runner.trace.parent == tmp_path / "traces"
    assert labels(runner.trace) == Counter(kind_of(plan) for plan in plans)
    assert set(labels(runner.trace)) == {"prefill", "decode", "mixed"}
    assert "decode" in caplog.text
    assert str(runner.trace) in caplog.text


def test_only_so_many_steps_are_recorded_and_reported_at_once(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 3)
    _, plans = serve(runner)
    assert len(plans) > 3
    assert runner.trace is not None
    assert sum(labels(runner.trace).values()) == 3


def test_a_report_is_made_once(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 3)
    serve(runner)
    runner.close()
    runner.close()
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_without_a_step_there_is_no_report(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 3)
    runner.close()
    assert runner.trace is None
    assert not (tmp_path / "traces").exists()


def test_a_trace_that_cannot_be_written_does_not_stop_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "traces").write_text("not a directory")
    answers, _ = serve(profiled(tmp_path, 3))
    assert answers == serve(FormulaRunner(**SIZES))[0]
    assert "--torch-profiling-directory: no trace was written" in caplog.text


# ── at run time ──────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_recorded_until_it_is_switched_on(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 100)
    runner.switch()
    serve(runner)
    runner.close()
    assert runner.trace is None
    assert not (tmp_path / "traces").exists()


def test_what_runs_between_two_switches_is_recorded(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 1000)
    _, plans = serve(runner)
    runner.switch()
    assert runner.trace is not None
    assert sum(labels(runner.trace).values()) == len(plans)
    serve(runner)  # bare
    assert len(list((tmp_path / "traces").iterdir())) == 1


def test_after_a_report_it_can_be_switched_on_again_up_to_the_same_bound(tmp_path: Path) -> None:
    runner = profiled(tmp_path, 3)
    serve(runner)
    first = runner.trace
    assert not runner.is_recording
    runner.wait()
    runner.switch()
    serve(runner)
    assert runner.trace not in (None, first)
    assert [sum(labels(t).values()) for t in (tmp_path / "traces").iterdir()] == [3, 3]


def test_switching_off_without_a_step_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    runner = profiled(tmp_path, 3)
    runner.switch()
    assert "there was no step" in caplog.text


def test_while_a_table_is_being_made_recording_does_not_begin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = threading.Event()
    monkeypatch.setattr(profiling, "_log_table", lambda _: finish.wait())
    runner = profiled(tmp_path, 3)
    serve(runner)
    runner.switch()
    assert not runner.is_recording
    assert "send SIGUSR2 again" in caplog.text
    finish.set()
    runner.wait()
    runner.switch()
    assert runner.is_recording


@pytest.mark.parametrize("is_on", [False, True])
def test_the_flag_says_how_it_begins(tmp_path: Path, is_on: bool) -> None:
    config = WorkerConfig(torch_profiling=is_on, torch_profiling_directory=str(tmp_path))
    with profiling.profiled(FormulaRunner(**SIZES), config) as runner:
        assert runner.is_recording is is_on
        serve(runner)
    assert (runner.trace is not None) is is_on


def test_the_launchers_message_switches_it() -> None:
    switched: list[bool] = []
    stage = make_stage(switch_profiling=lambda: switched.append(True))
    stage.run(SwitchProfiling(), generate("r"), SwitchProfiling())
    assert switched == [True, True]
    assert stage.answer("r") == expected_answer(generate("r"))
