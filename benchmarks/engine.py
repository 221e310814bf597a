"""A model behind the scheduler, in this process and without sockets: what the benchmarks measure.

It keeps the time of every token, from which first tokens, gaps and rates follow.
"""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from gpu_worker.kv_cache import BLOCK_SIZE
from gpu_worker.loading import serve
from gpu_worker.pipeline import Pipeline
from gpu_worker.step_times import StepTimes
from scheduler.outcome import SampledToken
from scheduler.plan import StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams

GREEDY = SamplingParams(seed=0, temperature=0.0)


@dataclass
class Timeline:
    """When a request came and when each of its tokens was there; seconds of one clock."""

    arrived: float
    tokens: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    @property
    def first_token_seconds(self) -> float:
        """From arrival to the first token."""
        return self.tokens[0] - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [late - early for early, late in zip(self.tokens, self.tokens[1:], strict=False)]


@dataclass(frozen=True)
class Step:
    """One step as it was measured, planning and recording included."""

    plan: StepPlan
    seconds: float


class Engine:
    """The plain loop: plan, execute, apply."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_rows: int,
        max_model_len: int,
        max_tokens_per_step: int,
        prefix_caching: bool = False,
        cuda_graphs: bool = True,
        torch_compile: bool = False,
    ) -> None:
        settings = WorkerConfig(
            model=ModelConfig("benchmark", max_model_len),
            continuous_batching_batch_size=num_rows,
            max_num_batched_tokens=max_tokens_per_step,
            prefix_caching=prefix_caching,
            cuda_graphs=cuda_graphs,
            torch_compile=torch_compile,
        )
        self._loaded = serve(model, settings)
        self.scheduler = Scheduler(
            num_blocks=self._loaded.cache.num_blocks,
            block_size=BLOCK_SIZE,
            max_sequences=num_rows,
            max_tokens_per_step=max_tokens_per_step,
            prefix_caching=prefix_caching,
        )
        self.timelines: dict[str, Timeline] = {}

    def add(self, request_id: str, prompt: Iterable[int], max_tokens: int) -> None:
        """Queues a greedy request that ends at its length alone."""
        sequence = Sequence(request_id, tuple(prompt), max_tokens, frozenset(), GREEDY)
        self.timelines[request_id] = Timeline(time.perf_counter())
        self.scheduler.add(sequence)

    @property
    def times(self) -> StepTimes:
        """Where the time of steps goes."""
        return self._loaded.times

    def pipeline(self, *, overlaps: bool) -> Pipeline:
        """Computes steps as the worker does; one at a time may have a step under way."""
        return Pipeline(self.scheduler, self._loaded.runner, self.times, overlaps=overlaps)

    def step(self) -> Step:
        """Plans and computes one step."""
        start = time.perf_counter()
        plan = self.scheduler.schedule()
        outputs = self.scheduler.apply(plan, self._loaded.runner.execute(plan))
        end = time.perf_counter()
        self._note(outputs, end)
        return Step(plan, end - start)

    def _note(self, outputs: list[SampledToken], now: float) -> None:
        for output in outputs:
            timeline = self.timelines[output.sequence.request_id]
            timeline.tokens.append(now)
            timeline.token_ids.append(output.token_id)

    def run(self) -> list[Step]:
        """Steps until every request has ended."""
        steps = []
        while not self.scheduler.is_idle:
            steps.append(self.step())
        return steps

    def run_ahead(self) -> int:
        """The same with steps launched ahead, as far as the scheduler allows; how many were."""
        pipeline, num_ahead = self.pipeline(overlaps=True), 0
        while not self.scheduler.is_idle:
            finished = pipeline.advance()
            if finished is not None:
                self._note(finished.outputs, time.perf_counter())
                num_ahead += finished.plan.is_ahead
        return num_ahead


def random_prompt(seed: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids that no other seed's prompt begins with."""
    return tuple(random.Random(seed).choices(range(3, vocab_size), k=length))
