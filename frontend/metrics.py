"""What Prometheus sees: names, labels and buckets as vLLM's dashboards expect them.

Counts what it is told; knows neither the ledger nor HTTP.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from frontend.tallies import TokenTallies
from shared.messages import WorkerReported

MEDIA_TYPE = "text/plain; version=0.0.4"  # of the text format that `render` writes
_LABELS = ("model_name", "engine")
_OURS = "transformers_openai_api"  # the prefix of names that vLLM does not have

# vLLM's edges; the first three of _INTER_TOKEN are added, for accelerators faster than 10 ms.
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
_INTER_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
    7.5, 10, 20, 40, 80,
)  # fmt: skip
_WHOLE_REQUEST = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
_NUM_TOKENS = tuple(mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5))


class _Families:
    """Makes metrics of one model in one registry."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry = registry
        self._values = (model_name, "0")

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels(*self._values)

    def counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(*self._values)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, text, _LABELS, registry=self._registry, buckets=buckets)
        return family.labels(*self._values)

    def token_tallies(self, buckets: tuple[float, ...]) -> TokenTallies:
        tallies = TokenTallies(_LABELS, self._values, buckets)
        self._registry.register(tallies)
        return tallies

    def counters(self, name: str, text: str, label: str) -> Callable[[str], Counter]:
        """One counter for each value of one more label."""
        family = Counter(name, text, (*_LABELS, label), registry=self._registry)
        return lambda value: family.labels(*self._values, value)


class _Total:
    """A counter that follows a total kept elsewhere, which begins again with each life there."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._shown = 0

    def show(self, total: int) -> None:
        self._counter.inc(total - self._shown if total >= self._shown else total)
        self._shown = total


class WorkerLoad:
    """What the worker reports of itself."""

    def __init__(self, make: _Families) -> None:
        self._running = make.gauge("vllm:num_requests_running", "Requests in the running batch.")
        self._waiting = make.gauge("vllm:num_requests_waiting", "Requests that wait for it.")
        self._kv_usage = make.gauge("vllm:kv_cache_usage_perc", "Share of KV blocks used, 0 to 1.")
        self._preemptions = _Total(
            make.counter("vllm:num_preemptions", "Sequences that lost their blocks for a while.")
        )
        self._queried = _Total(
            make.counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.")
        )
        self._hits = _Total(make.counter("vllm:prefix_cache_hits", "Of those, found there."))
        self._steps = make.gauge(f"{_OURS}:worker_steps", "Steps finished.")
        self._mixed = make.gauge(f"{_OURS}:worker_mixed_steps", "Steps of prefill and decode.")

    def show(self, report: WorkerReported) -> None:
        """Shows a report."""
        self._running.set(report.num_running)
        self._waiting.set(report.num_waiting)
        self._kv_usage.set(report.num_used_blocks / max(report.num_blocks, 1))
        self._preemptions.show(report.num_preemptions)
        self._queried.show(report.num_queried_tokens)
        self._hits.show(report.num_cached_tokens)
        self._steps.set(report.step)
        self._mixed.set(report.num_mixed_steps)

    def show_none(self) -> None:
        """Shows that nothing runs; the last report of a dead worker is no load."""
        for gauge in (self._running, self._waiting, self._kv_usage):
            gauge.set(0)


class RequestTimes:
    """What `Meter` measures of each request."""

    def __init__(self, make: _Families) -> None:
        self.prompt_tokens = make.counter("vllm:prompt_tokens", "Prompt tokens accepted.")
        self.cached_tokens = make.counter(
            "vllm:prompt_tokens_cached", "Prompt tokens whose keys and values were cached."
        )
        self.sound_seconds = make.counter(
            f"{_OURS}:audio_seconds", "Seconds of sound that were put into words."
        )
        self.tokens = make.token_tallies(_INTER_TOKEN)
        self.first_token = make.histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN
        )
        self.whole = make.histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to outcome.", _WHOLE_REQUEST
        )
        self.num_prompt_tokens = make.histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", _NUM_TOKENS
        )
        self.num_generation_tokens = make.histogram(
            "vllm:request_generation_tokens", "Generated tokens of a request.", _NUM_TOKENS
        )
        self.ended = make.counters("vllm:request_success", "Ended requests.", "finished_reason")


class Metrics:
    """One registry of our own, so that two servers in one process do not clash."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        make = _Families(self._registry, model_name)
        self.worker = WorkerLoad(make)
        self.requests = RequestTimes(make)
        self.open_requests = make.gauge(f"{_OURS}:open_requests", "Requests in the ledger.")
        self.queued_answers = make.gauge(f"{_OURS}:queued_answers", "Answers without a place.")
        self.queue_time = make.histogram(
            f"{_OURS}:queue_time_seconds", "Arrival to the places of a request.", _FIRST_TOKEN
        )
        self.refused = make.counters(
            "vllm:admission_rejections", "Requests that the server had no room for.", "reason"
        )

    def render(self) -> bytes:
        """Returns the page that Prometheus scrapes."""
        return generate_latest(self._registry)
