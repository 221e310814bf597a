"""What the worker reports of itself, for Prometheus.

It reports to every frontend, and one may have missed something while it was dead: what is shown is
the newest report that any of them has had, and of totals the highest.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from frontend.sheet import Sheet
from shared.messages import WorkerReported

_OURS = "transformers_openai_api"
_GAUGES = (
    ("vllm:num_requests_running", "Requests in the running batch."),
    ("vllm:num_requests_waiting", "Requests that wait for it."),
    ("vllm:kv_cache_usage_perc", "Share of KV blocks used, 0 to 1."),
    (f"{_OURS}:worker_steps", "Steps finished."),
    (f"{_OURS}:worker_mixed_steps", "Steps of prefill and decode."),
)
_NUM_OF_LOAD = 3  # gauges, the first, that are zero where there is no worker
_TOTALS = (
    ("vllm:num_preemptions", "Sequences that lost their blocks for a while."),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache."),
    ("vllm:prefix_cache_hits", "Of those, found there."),
)
# What the worker does in a step, as its reports name it.
_PARTS = ("plan", "prepare", "forward", "sample", "wait", "send")


class _Total:
    """A counter that follows a total kept elsewhere, which begins again with each life there."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._sum = sheet.claim_counted(2)
        self._told = self._sum + 1  # the total as it was last told

    def follow(self, total: float) -> None:
        row = self._sheet.own
        told = row[self._told]
        row[self._sum] += total - told if total >= told else total
        row[self._told] = total

    @property
    def highest(self) -> float:
        return max(row[self._sum] for row in self._sheet.rows)


class WorkerLoad(Collector):
    """Gauges and counters of the worker; `now` is monotonic seconds."""

    def __init__(self, labels: Sequence[str], values: Sequence[str], sheet: Sheet) -> None:
        self._labels = labels
        self._values = values
        self._sheet = sheet
        self._reported_at = sheet.claim_counted(1)
        self._first = sheet.claim_counted(len(_GAUGES))
        self._totals = [_Total(sheet) for _ in _TOTALS]
        self._parts = {part: _Total(sheet) for part in _PARTS}

    def show(self, report: WorkerReported, now: float) -> None:
        """Shows a report."""
        kv_usage = report.num_used_blocks / max(report.num_blocks, 1)
        load = (report.num_running, report.num_waiting, kv_usage)
        self._set((*load, report.step, report.num_mixed_steps), now)
        told = (report.num_preemptions, report.num_queried_tokens, report.num_cached_tokens)
        for total, number in zip(self._totals, told, strict=True):
            total.follow(number)
        for part, seconds in report.part_seconds.items():
            self._parts[part].follow(seconds)

    def show_none(self, now: float) -> None:
        """Shows that nothing runs; the last report of a dead worker is no load."""
        rest = range(self._first + _NUM_OF_LOAD, self._first + len(_GAUGES))
        newest = self._newest
        self._set([*(0.0,) * _NUM_OF_LOAD, *(newest[column] for column in rest)], now)

    def collect(self) -> Iterator[Metric]:
        """Everything, from the frontend that was told last."""
        newest = self._newest
        for column, (name, text) in enumerate(_GAUGES, start=self._first):
            gauge = GaugeMetricFamily(name, text, labels=self._labels)
            gauge.add_metric(self._values, newest[column])
            yield gauge
        for total, (name, text) in zip(self._totals, _TOTALS, strict=True):
            counter = CounterMetricFamily(name, text, labels=self._labels)
            counter.add_metric(self._values, total.highest)
            yield counter
        name, text = f"{_OURS}:worker_step_seconds", "Seconds of a part of all steps."
        parts = CounterMetricFamily(name, text, labels=[*self._labels, "part"])
        for part, total in self._parts.items():
            parts.add_metric([*self._values, part], total.highest)
        yield parts

    @property
    def _newest(self) -> "memoryview[float]":
        """The row of the frontend that was told last."""
        return max(self._sheet.rows, key=lambda row: row[self._reported_at])

    def _set(self, numbers: Sequence[float], now: float) -> None:
        row = self._sheet.own
        for column, number in enumerate(numbers, start=self._first):
            row[column] = number
        row[self._reported_at] = now
