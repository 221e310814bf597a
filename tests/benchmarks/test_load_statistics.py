"""The load test's figures, from runs that are small enough to work out by hand."""

import math

import pytest

from benchmarks.load.outcome import Completed, Failed, Refused, Run, first_of_each
from benchmarks.load.statistics import (
    details,
    figures,
    is_good,
    most_concurrent,
    open_requests,
    peak_tokens_per_second,
    samples,
    summary,
    token_rates,
)

# Sent at 10, first text after 1 s, two gaps of 0.5 and 1.5 s, the end 0.5 s later.
FIRST = Completed(10.0, 13.5, (11.0, 11.5, 13.0), prompt_tokens=20, output_tokens=6)
# One token, and so neither gaps nor time per token.
SECOND = Completed(12.0, 14.0, (13.5,), prompt_tokens=10, output_tokens=1)
TEXTLESS = Completed(10.0, 11.0, (), prompt_tokens=5, output_tokens=2)
ALL = ("ttft", "tpot", "itl", "e2el")


def run_of(*outcomes: Completed | Refused | Failed) -> Run:
    """A run that began at second 10 and used half a second of the processor."""
    return Run(10.0, outcomes, max_send_delay=0.0, cpu_seconds=0.5)


# ── latencies ────────────────────────────────────────────────────────────────────────────────────


def test_each_latency_is_what_its_definition_says() -> None:
    answers = [FIRST, SECOND]
    assert samples(answers, "ttft") == [1.0, 1.5]
    assert samples(answers, "itl") == [0.5, 1.5]
    assert samples(answers, "e2el") == [3.5, 2.0]
    assert samples(answers, "tpot") == [(3.5 - 1.0) / 5]


def test_answers_without_text_have_no_latency_but_their_whole() -> None:
    assert [samples([TEXTLESS], metric) for metric in ALL] == [[], [], [], [1.0]]


def test_a_summary_is_in_milliseconds_under_vllms_names() -> None:
    found = summary([0.001, 0.002, 0.003, 0.006], "ttft", [50, 99.9])
    assert found["mean_ttft_ms"] == pytest.approx(3.0)
    assert found["median_ttft_ms"] == pytest.approx(2.5)
    assert found["std_ttft_ms"] == pytest.approx(math.sqrt(3.5))
    assert found["p50_ttft_ms"] == pytest.approx(2.5)
    assert found["p99.9_ttft_ms"] == pytest.approx(5.991)


def test_a_summary_of_nothing_says_nothing() -> None:
    assert summary([], "itl", [99]) == {
        "mean_itl_ms": None, "median_itl_ms": None, "std_itl_ms": None, "p99_itl_ms": None,
    }  # fmt: skip


# ── throughput ───────────────────────────────────────────────────────────────────────────────────


def test_throughputs_are_over_the_whole_run_and_of_whole_answers_only() -> None:
    failed = Failed(10.0, 15.0, "timeout", "late")  # the run is 5 s long
    found = figures(run_of(FIRST, SECOND, failed), ALL, [99], {})
    assert found["duration"] == 5.0
    assert (found["completed"], found["failed"], found["refused"]) == (2, 1, 0)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 7)
    assert found["request_throughput"] == 2 / 5
    assert found["output_throughput"] == 7 / 5
    assert found["total_token_throughput"] == 37 / 5
    assert found["client_cpu_percent"] == 10.0
    assert found["request_goodput"] is None


def test_only_the_metrics_that_were_asked_for_are_there() -> None:
    found = figures(run_of(FIRST), ["ttft"], [25], {})
    assert {name for name in found if name.endswith("_ms")} == {
        "mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p25_ttft_ms",
    }  # fmt: skip


def test_the_best_second_may_begin_anywhere() -> None:
    # Two tokens for each of three pieces, at 11.0, 11.5 and 13.0; one at 13.5.
    assert peak_tokens_per_second(run_of(FIRST, SECOND)) == pytest.approx(4.0)
    halves = Completed(10.0, 12.0, (10.9, 11.1), 1, 10)
    assert peak_tokens_per_second(run_of(halves)) == pytest.approx(10.0)
    assert peak_tokens_per_second(run_of()) == 0.0


def test_rates_over_time_add_up_to_all_tokens() -> None:
    assert token_rates(run_of(FIRST, SECOND), 2) == [pytest.approx(2.0), pytest.approx(1.5)]
    assert token_rates(run_of(TEXTLESS), 2) == [0.0, 0.0]


def test_requests_are_open_from_sending_to_their_end() -> None:
    assert open_requests([FIRST, SECOND]) == [(10.0, 1), (12.0, 2), (13.5, 1), (14.0, 0)]
    assert most_concurrent([FIRST, SECOND]) == 2


def test_a_request_that_is_sent_as_another_ends_is_not_open_beside_it() -> None:
    assert most_concurrent([FIRST, Completed(13.5, 14.0, (), 1, 1)]) == 1


# ── goodput ──────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_good_when_it_meets_every_goal_to_the_millisecond() -> None:
    assert is_good(FIRST, {"ttft": 1000.0, "tpot": 500.0, "e2el": 3500.0})
    assert not is_good(FIRST, {"ttft": 999.0, "tpot": 500.0})
    assert not is_good(FIRST, {"ttft": 1000.0, "tpot": 499.0})


def test_one_token_meets_any_time_per_token_and_no_text_meets_no_first_token() -> None:
    assert is_good(SECOND, {"tpot": 0.0})
    assert not is_good(TEXTLESS, {"ttft": 1e9})


def test_goodput_counts_good_answers_a_second() -> None:
    found = figures(run_of(FIRST, SECOND), ALL, [99], {"ttft": 1200.0})
    assert found["request_goodput"] == 1 / 4


# ── problems and details ─────────────────────────────────────────────────────────────────────────


def test_problems_are_counted_by_kind_with_the_message_that_came_first() -> None:
    later, earlier = Failed(0, 9, "timeout", "later"), Failed(1, 3, "timeout", "earlier")
    refused = Refused(0, 5, 429, "full")
    assert first_of_each([later, refused, earlier]) == {
        "timeout": (2, "earlier"), "HTTP 429": (1, "full"),
    }  # fmt: skip


def test_refusals_are_apart_from_failures_and_have_their_own_latency() -> None:
    refusals = [Refused(10.0, 10.0 + seconds, 503, "draining") for seconds in (0.1, 0.3)]
    found = figures(run_of(FIRST, *refusals), ALL, [99], {})
    assert (found["refused"], found["failed"]) == (2, 0)
    assert found["problems"] == {"HTTP 503": {"count": 2, "first_message": "draining"}}
    assert found["median_refusal_ms"] == pytest.approx(200.0)
    assert found["mean_e2el_ms"] == pytest.approx(3500.0)


def test_details_list_every_request_in_the_order_of_sending() -> None:
    found = details(run_of(SECOND, Failed(11.0, 12.0, "timeout", "late"), FIRST))
    assert found == {
        "input_lens": [20, 0, 10],
        "output_lens": [6, 0, 1],
        "start_times": [0.0, 1.0, 2.0],
        "ttfts": [1.0, 0.0, 1.5],
        "itls": [[0.5, 1.5], [], []],
        "e2els": [3.5, 1.0, 2.0],
        "errors": ["", "timeout: late", ""],
    }


def test_estimated_and_textless_answers_are_counted() -> None:
    estimated = Completed(10.0, 11.0, (10.5,), 1, 1, is_estimated=True)
    found = figures(run_of(FIRST, TEXTLESS, estimated), ALL, [99], {})
    assert (found["estimated"], found["without_text"]) == (1, 1)
