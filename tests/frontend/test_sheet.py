"""Numbers that frontends share, and the page of metrics that is the same whichever is asked."""

import mmap
import os
from collections.abc import Iterator

import pytest

from frontend.events import Accepted, Finished, TextAdded
from frontend.meter import Meter
from frontend.metrics import Metrics
from frontend.sheet import NUM_COLUMNS, Sheet, begin_life
from shared.errors import ErrorCode
from tests.frontend.fakes import make_report

NUM_FREE_HELD = 15  # columns for what is held


@pytest.fixture
def file() -> Iterator[int]:
    """A file in memory, as the launcher holds one."""
    descriptor = os.memfd_create("sheet")
    yield descriptor
    os.close(descriptor)


def sheet_of(file: int, index: int, epoch: int = 1) -> Sheet:
    """What one of two frontends sees, as a life of it begins."""
    return Sheet.shared(os.dup(file), 2, index, epoch)


def metrics_of(file: int, index: int, epoch: int = 1) -> Metrics:
    """A frontend's metrics, as a life of it begins."""
    return Metrics("m", sheet_of(file, index, epoch))


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


def test_each_writes_its_own_row_and_sees_all(file: int) -> None:
    first, second = (sheet_of(file, index) for index in range(2))
    column = first.claim_counted(3)
    assert second.claim_counted(3) == column
    first.own[column] += 2
    second.own[column] += 3
    assert first.total(column) == second.total(column) == 5
    assert (first.own[column], second.own[column]) == (2, 3)


def test_more_columns_than_there_are_is_a_mistake_of_ours() -> None:
    sheet = Sheet.private()
    for claim in (sheet.claim_held, sheet.claim_counted):
        with pytest.raises(RuntimeError, match="too few"):
            claim(NUM_COLUMNS)


def test_what_is_held_and_what_is_counted_are_in_different_columns() -> None:
    sheet = Sheet.private()
    held = {sheet.claim_held(1) for _ in range(NUM_FREE_HELD)}
    with pytest.raises(RuntimeError, match="too few"):
        sheet.claim_held(1)
    assert len(held) == NUM_FREE_HELD
    assert 0 not in held, "the life's epoch is there"
    assert sheet.claim_counted(1) > max(held)


def test_descriptors_do_not_pile_up(file: int) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 — the links point at what is closed
    sheets = [sheet_of(file, 0) for _ in range(8)]
    mapped = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert mapped - before <= len(sheets)  # mmap keeps a copy of its own


# ── lives ────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_life_holds_nothing_and_goes_on_counting(file: int) -> None:
    old = sheet_of(file, 0)
    held, counted = old.claim_held(1), old.claim_counted(1)
    old.own[held], old.own[counted] = 5, 7
    new = sheet_of(file, 0, epoch=2)
    assert (new.own[held], new.own[counted]) == (0, 7)


def test_who_knows_of_a_death_leaves_out_what_the_dead_held(file: int) -> None:
    dead, other = (sheet_of(file, index) for index in range(2))
    held = dead.claim_held(1)
    dead.own[held] = 5
    assert other.elsewhere(held) == 5
    other.note_over(0, 1)
    assert other.elsewhere(held) == 0
    assert dead.own[held] == 5, "nobody writes in another's row"


@pytest.mark.parametrize("is_early", [True, False])
def test_a_new_life_counts_whether_its_neighbours_know_of_it_or_not(
    file: int, *, is_early: bool
) -> None:
    """One that is slow may hear of the death when the next life has let people in already."""
    dead, other = (sheet_of(file, index) for index in range(2))
    held = dead.claim_held(1)
    dead.own[held] = 5
    if is_early:
        other.note_over(0, 1)
    new = sheet_of(file, 0, epoch=2)
    new.own[held] = 2
    assert other.elsewhere(held) == 2
    other.note_over(0, 1)
    assert other.elsewhere(held) == 2


def test_word_of_an_earlier_death_takes_nothing_back(file: int) -> None:
    dead, other = (sheet_of(file, index, epoch=3) for index in range(2))
    held = dead.claim_held(1)
    dead.own[held] = 5
    other.note_over(0, 3)
    other.note_over(0, 2)
    assert other.elsewhere(held) == 0


class Steps(list[float]):
    """A row that keeps what it was after each number that was written to it."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__(numbers)
        self.seen: list[list[float]] = []

    def __setitem__(self, column: int, number: float) -> None:  # type: ignore[override]
        super().__setitem__(column, number)
        self.seen.append(list(self))


def test_at_no_moment_of_its_beginning_is_a_life_taken_to_hold_what_the_dead_did() -> None:
    row = Steps([1.0, *[5.0] * (NUM_COLUMNS - 1)])
    begin_life(row, 2)
    for numbers in row.seen:
        memory = mmap.mmap(-1, 2 * 8 * NUM_COLUMNS)
        reader = Sheet(memory, 1, 1)
        for column, number in enumerate(numbers):
            reader.rows[0][column] = number
        reader.note_over(0, 1)  # it knows that the dead is dead
        assert all(reader.elsewhere(reader.claim_held(1)) == 0 for _ in range(NUM_FREE_HELD))
    assert row[0] == 2


# ── the page of metrics ──────────────────────────────────────────────────────────────────────────


def test_whoever_is_asked_shows_the_sum_of_all(file: int) -> None:
    first, second = (metrics_of(file, index) for index in range(2))
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


def test_what_a_dead_life_has_counted_is_still_shown(file: int) -> None:
    serve(metrics_of(file, 1), num_tokens=5)
    first = metrics_of(file, 0)
    before = values(first)
    reborn = metrics_of(file, 1, epoch=2)
    assert values(reborn) == values(first) == before
    serve(reborn, num_tokens=2)
    assert values(first)['vllm:generation_tokens_total{engine="0",model_name="m"}'] == 7


def test_tokens_of_running_requests_are_shown_elsewhere_once_they_are_published(
    file: int,
) -> None:
    first, second = (metrics_of(file, index) for index in range(2))
    first.requests.tokens.num_tokens += 3
    assert values(second) != values(first)
    first.publish()
    assert values(second) == values(first)


def test_the_worker_is_shown_once_and_as_it_was_reported_last(file: int) -> None:
    first, second = (metrics_of(file, index) for index in range(2))
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
