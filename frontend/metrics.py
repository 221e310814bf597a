"""What Prometheus sees: names, labels and buckets as vLLM's dashboards expect them.

Counts what it is told; knows neither the ledger nor HTTP. Whichever frontend is asked, it shows
what all have counted, the dead ones included.
"""

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from frontend.sheet import Sheet
from frontend.tallies import (
    Distribution,
    LabelledTallies,
    Tally,
    TallyFamily,
    Title,
    TokenTallies,
)
from frontend.worker_load import WorkerLoad
from shared.errors import ErrorCode

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
# How a request may end: of answers, the last one's reason.
_FINISHED_REASONS = ("stop", "length", "abort", "error")
_NUM_TOKENS = tuple(mantissa * 10**power for power in range(6) for mantissa in (1, 2, 5))


class _Families:
    """Makes metrics of one model in one registry."""

    def __init__(self, registry: CollectorRegistry, model_name: str, sheet: Sheet) -> None:
        self._registry = registry
        self._values = (model_name, "0")
        self._sheet = sheet

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels(*self._values)

    def counter(self, name: str, text: str) -> Tally:
        family = TallyFamily(self._title(name, text), self._sheet)
        self._registry.register(family)
        return family.tally

    def histogram(self, name: str, text: str, edges: tuple[float, ...]) -> Distribution:
        distribution = Distribution(self._title(name, text), edges, self._sheet)
        self._registry.register(distribution)
        return distribution

    def counters(
        self, name: str, text: str, label: str, values: tuple[str, ...]
    ) -> LabelledTallies:
        """A counter for each value of one more label."""
        tallies = LabelledTallies(self._title(name, text), label, values, self._sheet)
        self._registry.register(tallies)
        return tallies

    def token_tallies(self, edges: tuple[float, ...]) -> TokenTallies:
        tokens = self.counter("vllm:generation_tokens", "Tokens generated.")
        name, text = "vllm:inter_token_latency_seconds", "From one token to the next."
        return TokenTallies(tokens, self.histogram(name, text, edges), edges)

    def worker_load(self) -> WorkerLoad:
        load = WorkerLoad(_LABELS, self._values, self._sheet)
        self._registry.register(load)
        return load

    def _title(self, name: str, text: str) -> Title:
        return Title(name, text, _LABELS, self._values)


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
        self.ended = make.counters(
            "vllm:request_success", "Ended requests.", "finished_reason", _FINISHED_REASONS
        )


class Metrics:
    """One registry of our own, so that two servers in one process do not clash."""

    def __init__(self, model_name: str, sheet: Sheet) -> None:
        self._registry = CollectorRegistry()
        make = _Families(self._registry, model_name, sheet)
        self.worker = make.worker_load()
        self.requests = RequestTimes(make)
        self.open_requests = make.gauge(f"{_OURS}:open_requests", "Requests in the ledger.")
        self.queued_answers = make.gauge(f"{_OURS}:queued_answers", "Answers without a place.")
        self.queue_time = make.histogram(
            f"{_OURS}:queue_time_seconds", "Arrival to the places of a request.", _FIRST_TOKEN
        )
        self.refused = make.counters(
            "vllm:admission_rejections",
            "Requests that the server had no room for.",
            "reason",
            tuple(ErrorCode),
        )

    def publish(self) -> None:
        """Lets the other frontends show what has been counted of running requests."""
        self.requests.tokens.write()

    def render(self) -> bytes:
        """Returns the page that Prometheus scrapes."""
        self.publish()
        return generate_latest(self._registry)
