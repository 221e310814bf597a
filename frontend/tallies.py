"""What is counted for every token of every stream.

The library's own counters take locks and several microseconds; these are read when the page is
made, by the collector interface of prometheus_client.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class TokenTallies(Collector):
    """Tokens so far, and the times between them in buckets with these upper edges, in seconds."""

    def __init__(
        self, labels: Sequence[str], values: Sequence[str], edges: Iterable[float]
    ) -> None:
        self.num_tokens = 0
        self._labels = labels
        self._values = values
        self._edges = tuple(edges)
        self._counts = [0] * (len(self._edges) + 1)  # the last: above all edges
        self._seconds = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes further tokens of an answer that came together, and the time since the last."""
        gap = seconds / num_tokens
        self.num_tokens += num_tokens
        self._counts[bisect_left(self._edges, gap)] += 1
        self._seconds += gap

    def collect(self) -> Iterator[Metric]:
        """Both metrics under vLLM's names."""
        tokens = CounterMetricFamily(
            "vllm:generation_tokens", "Tokens generated.", labels=self._labels
        )
        tokens.add_metric(self._values, self.num_tokens)
        yield tokens
        gaps = HistogramMetricFamily(
            "vllm:inter_token_latency_seconds", "From one token to the next.", labels=self._labels
        )
        names = [*map(floatToGoString, self._edges), "+Inf"]
        counts = accumulate(self._counts)
        gaps.add_metric(self._values, [*zip(names, counts, strict=True)], self._seconds)
        yield gaps
