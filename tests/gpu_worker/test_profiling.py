"""Profiling changes no answer, ends by itself, and leaves a table and a trace."""

import json
from collections import Counter
from pathlib import Path

import pytest

from gpu_worker.profiling import ProfilingRunner, kind_of
from scheduler.plan import StepPlan
from tests.builders import make_scheduler, make_sequence
from tests.fakes import FormulaRunner, formula_answer

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
    """A profiled formula."""
    return ProfilingRunner(FormulaRunner(**SIZES), num_steps, str(tmp_path / "traces"))


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
