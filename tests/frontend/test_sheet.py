"""Numbers that frontends share, and the page of metrics that is the same whichever is asked."""

import os
import stat
from pathlib import Path

import pytest

from frontend.events import Accepted, Finished, TextAdded
from frontend.meter import Meter
from frontend.metrics import Metrics
from frontend.sheet import NUM_COLUMNS, Sheet
from shared.errors import ErrorCode
from tests.frontend.fakes import make_report


def metrics_of(directory: Path, index: int, count: int = 2) -> Metrics:
    """A frontend's metrics, as a life of it begins."""
    return Metrics("m", Sheet.shared(str(directory), count, index))


def serve(metrics: Metrics, *, num_tokens: int, reason: str = "stop") -> None:
    """One request of 9 prompt tokens, begun at second 10, with a token a second."""
    meter = Meter(metrics.requests, "chatcmpl-1", 10.0)
    meter.observe(Accepted(9), 10.5)
    for number in range(1, num_tokens + 1):
        is_last = number == num_tokens
        added = TextAdded(0, "a", number, reason if is_last else None)
        meter.observe(added, 10.0 + number)
    meter.observe(Finished(num_tokens, 0), 10.0 + num_tokens)


def values(metrics: Metrics) -> dict[str, float]:
    """All series by name and labels."""
    lines = metrics.render().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {series: float(value) for series, _, value in pairs}


def test_the_file_is_private_and_each_row_its_frontends(tmp_path: Path) -> None:
    first, second = (Sheet.shared(str(tmp_path), 2, index) for index in range(2))
    column = first.claim(3)
    assert second.claim(3) == column
    first.own[column] += 2
    second.own[column] += 3
    assert first.total(column) == second.total(column) == 5
    assert (first.own[column], second.own[column]) == (2, 3)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_blocks > 0, "a sparse file would fault where the disk is full"


def test_more_columns_than_there_are_is_a_mistake_of_ours() -> None:
    sheet = Sheet.private()
    sheet.claim(NUM_COLUMNS)
    with pytest.raises(RuntimeError, match="too few"):
        sheet.claim(1)


def test_descriptors_do_not_pile_up(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 — the links point at what is closed
    sheets = [Sheet.shared(str(tmp_path), 2, 0) for _ in range(8)]
    mapped = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert mapped - before <= len(sheets)  # mmap keeps a copy of its own


def test_whoever_is_asked_shows_the_sum_of_all(tmp_path: Path) -> None:
    first, second = (metrics_of(tmp_path, index) for index in range(2))
    serve(first, num_tokens=3)
    serve(second, num_tokens=4, reason="length")
    second.refused(ErrorCode.QUEUE_FULL).inc()
    first.queue_time.observe(0.5)
    assert values(first) == values(second)
    shown = values(first)
    labels = 'engine="0",model_name="m"'
    assert shown[f"vllm:generation_tokens_total{{{labels}}}"] == 7
    assert shown[f"vllm:prompt_tokens_total{{{labels}}}"] == 18
    assert shown[f"vllm:inter_token_latency_seconds_count{{{labels}}}"] == 2 + 3
    assert shown[f"vllm:inter_token_latency_seconds_sum{{{labels}}}"] == 2 + 3
    assert shown['vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"}'] == 2
    assert (
        shown['vllm:request_success_total{engine="0",finished_reason="length",model_name="m"}'] == 1
    )
    assert (
        shown['vllm:admission_rejections_total{engine="0",model_name="m",reason="queue_full"}'] == 1
    )
    assert not any('reason="timeout"' in series for series in shown)


def test_what_a_dead_life_has_counted_is_still_shown(tmp_path: Path) -> None:
    serve(metrics_of(tmp_path, 1), num_tokens=5)
    first = metrics_of(tmp_path, 0)
    before = values(first)
    reborn = metrics_of(tmp_path, 1)
    assert values(reborn) == values(first) == before
    serve(reborn, num_tokens=2)
    assert values(first)['vllm:generation_tokens_total{engine="0",model_name="m"}'] == 7


def test_tokens_of_running_requests_are_shown_elsewhere_once_they_are_published(
    tmp_path: Path,
) -> None:
    first, second = (metrics_of(tmp_path, index) for index in range(2))
    first.requests.tokens.num_tokens += 3
    assert values(second) != values(first)
    first.publish()
    assert values(second) == values(first)


def test_the_worker_is_shown_once_and_as_it_was_reported_last(tmp_path: Path) -> None:
    first, second = (metrics_of(tmp_path, index) for index in range(2))
    for metrics, now in ((first, 1.0), (second, 1.5)):
        metrics.worker.show(make_report(7, running=2, used=5, num_preemptions=3), now)
    second.worker.show(make_report(9, running=1, used=5, num_preemptions=4), 2.0)
    assert values(first) == values(second)
    shown = values(first)
    assert shown['vllm:num_requests_running{engine="0",model_name="m"}'] == 1
    assert shown['vllm:num_preemptions_total{engine="0",model_name="m"}'] == 4
    first.worker.show_none(3.0)
    assert values(second)['vllm:num_requests_running{engine="0",model_name="m"}'] == 0
    assert values(second)['transformers_openai_api:worker_steps{engine="0",model_name="m"}'] == 9
