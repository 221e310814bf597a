"""Figures of a run, under the names of vLLM's benchmark. Pure.

TTFT is the time from sending to the first piece with text; TPOT is (E2EL - TTFT) / (output tokens
- 1); ITL is the gap between two pieces with text; E2EL is the time from sending to the stream's
end. Tokens are the server's own count. `failed` does not hold refusals, which vLLM would count.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load.outcome import Completed, Outcome, Refused, Run, first_of_each

Goals = Mapping[str, float]  # metric to milliseconds, of --goodput
PER_REQUEST: dict[str, Callable[[Completed], float | None]] = {
    "ttft": lambda answer: answer.ttft,
    "tpot": lambda answer: answer.tpot,
    "e2el": lambda answer: answer.e2el,
}
METRICS = ("ttft", "tpot", "itl", "e2el")
REFUSAL_PERCENTILES = (99.0,)


def samples(answers: Iterable[Completed], metric: str) -> list[float]:
    """Every value of a metric, in seconds; answers that have none are left out."""
    if metric == "itl":
        return [gap for answer in answers for gap in answer.itls]
    values = map(PER_REQUEST[metric], answers)
    return [value for value in values if value is not None]


def summary(seconds: Sequence[float], metric: str, percentiles: Iterable[float]) -> dict[str, Any]:
    """Mean, median, deviation and percentiles in milliseconds; None where there is no value."""
    names = ["mean", "median", "std", *(f"p{percentile:g}" for percentile in percentiles)]
    keys = [f"{name}_{metric}_ms" for name in names]
    if not len(seconds):
        return dict.fromkeys(keys)
    values = np.asarray(seconds) * 1e3
    figures = [values.mean(), np.median(values), values.std()]
    figures += [np.percentile(values, percentile) for percentile in percentiles]
    return dict(zip(keys, map(float, figures), strict=True))


def is_good(answer: Completed, goals: Goals) -> bool:
    """True when an answer meets every goal.

    An answer of one token has no TPOT and meets any; one without text has no TTFT and meets none.
    """
    for metric, milliseconds in goals.items():
        value = PER_REQUEST[metric](answer)
        if value is None:
            value = math.inf if metric == "ttft" else 0.0
        if value * 1e3 > milliseconds:
            return False
    return True


def most_concurrent(outcomes: Sequence[Outcome]) -> int:
    """The most requests that were open at one moment."""
    return max((count for _, count in open_requests(outcomes)), default=0)


def open_requests(outcomes: Sequence[Outcome]) -> list[tuple[float, int]]:
    """How many requests are open from each moment on at which that changes."""
    changes = [(outcome.sent, 1) for outcome in outcomes]
    changes += [(outcome.ended, -1) for outcome in outcomes]
    counts, count = [], 0
    for seconds, change in sorted(changes):  # at one moment, ends come before starts
        count += change
        counts.append((seconds, count))
    return counts


def token_rates(run: Run, num_bins: int) -> list[float]:
    """Output tokens a second in each of some equal parts of a run."""
    width = run.duration / num_bins
    times, tokens = np.array([*_pieces(run)]).reshape(-1, 2).T
    counts, _ = np.histogram(
        times - run.started, bins=num_bins, range=(0.0, run.duration), weights=tokens
    )
    return [float(count / width) for count in counts]


def peak_tokens_per_second(run: Run) -> float:
    """The most output tokens within any one second, wherever it begins."""
    pieces = sorted(_pieces(run))
    if not pieces:
        return 0.0
    times, tokens = np.array(pieces).T
    so_far = np.concatenate([[0.0], np.cumsum(tokens)])
    begins = np.searchsorted(times, times - 1.0, side="right")
    return float((so_far[1:] - so_far[begins]).max())


def _pieces(run: Run) -> Iterator[tuple[float, float]]:
    """When text came, and how many tokens: an answer's are spread over its pieces of text."""
    for answer in run.completed:
        for seconds in answer.text_times:
            yield seconds, answer.output_tokens / len(answer.text_times)


def throughputs(run: Run, goals: Goals) -> dict[str, Any]:
    """Totals, and what they are a second."""
    completed, duration = run.completed, run.duration or math.inf
    num_input = sum(answer.prompt_tokens for answer in completed)
    num_output = sum(answer.output_tokens for answer in completed)
    good = sum(is_good(answer, goals) for answer in completed)
    return {
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(completed) / duration,
        "request_goodput": good / duration if goals else None,
        "output_throughput": num_output / duration,
        "total_token_throughput": (num_input + num_output) / duration,
        "max_output_tokens_per_s": peak_tokens_per_second(run),
        "max_concurrent_requests": most_concurrent(run.outcomes),
    }


def sound_figures(run: Run) -> dict[str, Any]:
    """How much sound was transcribed; `rtfx` is its seconds in each second of the run."""
    known = [a.audio_seconds for a in run.completed if a.audio_seconds is not None]
    return {
        "total_audio_seconds": sum(known),
        "rtfx": sum(known) / (run.duration or math.inf),
        "without_length": len(run.completed) - len(known),
    }


def problems(run: Run) -> dict[str, Any]:
    """What went wrong, kind by kind, and how long refusals took."""
    found = {
        kind: {"count": count, "first_message": message}
        for kind, (count, message) in first_of_each([*run.refused, *run.failed]).items()
    }
    refusals = [refusal.ended - refusal.sent for refusal in run.refused]
    return {
        "problems": found,
        **(summary(refusals, "refusal", REFUSAL_PERCENTILES) if refusals else {}),
    }


def figures(
    run: Run, metrics: Sequence[str], percentiles: Sequence[float], goals: Goals
) -> dict[str, Any]:
    """Everything that is reported about a run but its single requests."""
    latencies: dict[str, Any] = {}
    for metric in metrics:
        latencies |= summary(samples(run.completed, metric), metric, percentiles)
    return {
        "duration": run.duration,
        "completed": len(run.completed),
        "failed": len(run.failed),
        "refused": len(run.refused),
        "estimated": sum(answer.is_estimated for answer in run.completed),
        "without_text": sum(a.is_streamed and not a.text_times for a in run.completed),
        **throughputs(run, goals),
        **latencies,
        **problems(run),
        "client_cpu_percent": 100 * run.cpu_seconds / (run.duration or math.inf),
    }


def details(run: Run) -> dict[str, Any]:
    """Every request in the order of sending; zeros where one has no value."""
    outcomes = sorted(run.outcomes, key=lambda outcome: outcome.sent)
    answers = [outcome if isinstance(outcome, Completed) else None for outcome in outcomes]
    return {
        "input_lens": [answer.prompt_tokens if answer else 0 for answer in answers],
        "output_lens": [answer.output_tokens if answer else 0 for answer in answers],
        "start_times": [outcome.sent - run.started for outcome in outcomes],
        "ttfts": [(answer.ttft or 0.0) if answer else 0.0 for answer in answers],
        "itls": [answer.itls if answer else [] for answer in answers],
        "e2els": [outcome.ended - outcome.sent for outcome in outcomes],
        "errors": [_error(outcome) for outcome in outcomes],
    }


def _error(outcome: Outcome) -> str:
    if isinstance(outcome, Completed):
        return ""
    kind = f"HTTP {outcome.status}" if isinstance(outcome, Refused) else outcome.kind
    return f"{kind}: {outcome.message}"
