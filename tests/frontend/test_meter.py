"""What is measured of requests and shown of the worker, by the names that dashboards know."""

import dataclasses
import re

import pytest

from frontend.events import Aborted, Accepted, Failed, Finished, TextAdded, WindowStarted
from frontend.meter import Meter
from frontend.metrics import Metrics
from frontend.sheet import Sheet
from shared.errors import ErrorCode, RequestError
from tests.frontend.fakes import make_report

TOTALS = {
    "vllm:num_preemptions_total": "num_preemptions",
    "vllm:prefix_cache_queries_total": "num_queried_tokens",
    "vllm:prefix_cache_hits_total": "num_cached_tokens",
}


def value(metrics: Metrics, name: str, label: str = "") -> float:
    """One series of the page, by its exact name and one more label."""
    pattern = rf'^{re.escape(name)}{{engine="0",[^}}]*{label}[^}}]*}} (\S+)$'
    (found,) = re.findall(pattern, metrics.render().decode(), re.MULTILINE)
    return float(found)


def meter(metrics: Metrics) -> Meter:
    """Of a request that came at second 10."""
    return Meter(metrics.requests, "chatcmpl-1", 10.0)


def test_the_tokens_of_all_answers_count_and_the_first_of_any_is_the_first() -> None:
    metrics = Metrics("m", Sheet.private())
    request = meter(metrics)
    request.observe(Accepted(100), 11.0)
    request.observe(TextAdded(1, "", 0), 12.0)  # no token yet
    request.observe(TextAdded(1, "a", 1), 13.0)
    request.observe(TextAdded(0, "b", 1), 13.0)
    request.observe(TextAdded(1, "c", 5, "length"), 15.0)
    request.observe(TextAdded(0, "", 2, "stop"), 16.0)
    request.observe(Finished(7, 64), 16.0)
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") == 3.0
    assert value(metrics, "vllm:time_to_first_token_seconds_count") == 1
    assert value(metrics, "vllm:generation_tokens_total") == 7
    assert value(metrics, "vllm:prompt_tokens_total") == 100
    assert value(metrics, "vllm:prompt_tokens_cached_total") == 64
    assert value(metrics, "vllm:request_generation_tokens_sum") == 7
    assert value(metrics, "vllm:request_generation_tokens_count") == 1
    assert value(metrics, "vllm:e2e_request_latency_seconds_sum") == 6.0
    assert value(metrics, "vllm:request_success_total", 'finished_reason="stop"') == 1


def test_the_seconds_of_a_sound_are_counted_with_its_end() -> None:
    metrics = Metrics("m", Sheet.private())
    request = meter(metrics)
    request.observe(Accepted(0), 11.0)
    request.observe(WindowStarted(0, 0.0, 30.0, 1000, 0.02), 11.0)
    request.observe(TextAdded(0, "a", 9, "stop"), 12.0)
    request.observe(WindowStarted(1, 30.0, 2.5, 1000, 0.02), 12.0)
    assert value(metrics, "transformers_openai_api:audio_seconds_total") == 0
    request.observe(Finished(18, 0), 13.0)
    assert value(metrics, "transformers_openai_api:audio_seconds_total") == 32.5


def test_the_time_between_tokens_is_that_within_an_answer() -> None:
    metrics = Metrics("m", Sheet.private())
    request = meter(metrics)
    request.observe(Accepted(1), 11.0)
    for step in range(3):
        for choice in range(4):
            request.observe(TextAdded(choice, "x", step + 1), 12.0 + step)
    request.observe(Finished(12, 0), 15.0)
    assert value(metrics, "vllm:inter_token_latency_seconds_sum") == pytest.approx(4 * 2 * 1.0)
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 4 * 2


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Failed(RequestError(ErrorCode.INTERNAL, "why")), "error"),
        (Aborted(), "abort"),
        (Finished(3, 0), "length"),
    ],
)
def test_one_line_a_request_tells_all_its_tokens_and_its_end(
    caplog: pytest.LogCaptureFixture, outcome: Failed | Aborted | Finished, reason: str
) -> None:
    caplog.set_level("INFO")
    metrics = Metrics("m", Sheet.private())
    request = meter(metrics)
    request.observe(Accepted(9), 10.5)
    request.observe(TextAdded(0, "a", 2, "length"), 11.0)
    request.observe(TextAdded(1, "a", 1), 11.0)
    request.observe(outcome, 12.0)
    (line,) = caplog.messages
    assert line.startswith("chatcmpl-1 prompt=9 completion=3 ttft=1.000s total=2.000s finish=")
    assert reason in line
    assert value(metrics, "vllm:request_success_total", f'finished_reason="{reason}"') == 1


@pytest.mark.parametrize(("name", "field"), TOTALS.items())
def test_the_workers_totals_are_counters(name: str, field: str) -> None:
    metrics = Metrics("m", Sheet.private())
    assert value(metrics, name) == 0
    for total in (3, 3, 10):
        metrics.worker.show(make_report(1, **{field: total}), now=1.0)
        assert value(metrics, name) == total
    assert f"# TYPE {name} counter" in metrics.render().decode()


@pytest.mark.parametrize(("name", "field"), TOTALS.items())
def test_a_counter_goes_on_when_a_new_worker_begins_at_nothing(name: str, field: str) -> None:
    metrics = Metrics("m", Sheet.private())
    for total in (10, 0, 4):
        metrics.worker.show(make_report(1, **{field: total}), now=1.0)
    assert value(metrics, name) == 14


def test_every_total_is_shown_by_its_own_name() -> None:
    metrics = Metrics("m", Sheet.private())
    totals = {field: number for number, field in enumerate(TOTALS.values(), start=1)}
    metrics.worker.show(make_report(1, **totals), now=1.0)
    assert [value(metrics, name) for name in TOTALS] == [1, 2, 3]


def test_the_parts_of_steps_are_counters_that_outlive_the_worker() -> None:
    metrics = Metrics("m", Sheet.private())
    name = "transformers_openai_api:worker_step_seconds_total"
    for plan, forward in ((0.5, 2.0), (0.75, 4.0), (0.25, 1.0)):  # the last is another life's
        parts = {"plan": plan, "forward": forward}
        metrics.worker.show(dataclasses.replace(make_report(1), part_seconds=parts), now=1.0)
    assert value(metrics, name, 'part="plan"') == 1.0
    assert value(metrics, name, 'part="forward"') == 5.0
    assert f"# TYPE {name} counter" in metrics.render().decode()
