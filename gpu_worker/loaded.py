"""A model that is ready to execute plans, and what the rest of the worker must know of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gpu_worker.intake import EncoderLimits, IntakeLimits
from gpu_worker.pooling import POOLS_LAST
from gpu_worker.runner import Runner
from gpu_worker.step_times import StepTimes
from scheduler.scheduler import Scheduler
from shared.config import WorkerConfig


@dataclass(frozen=True)
class Cache:
    """The room for keys and values, as the scheduler counts it.

    A decoder's is cut into small blocks; where rows are slots, each is one block of full length.
    """

    num_blocks: int
    block_size: int  # tokens
    num_rows: int  # most sequences in a step
    rows_are_slots: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """What a family's loading gives to the step loop."""

    runner: Runner
    cache: Cache
    max_model_len: int  # tokens of prompt and answer; with an encoder, of the answer
    vocab_size: int
    end_token_ids: frozenset[int]
    rope_class: Callable[[int], str]  # prompts whose lengths' classes differ share no cached keys
    details: dict[str, str]  # for people: see `ModelFacts`
    state_size: int = 0  # numbers of a vector of a text; 0: none are made
    pooling: str = POOLS_LAST  # how they are
    encoder: EncoderLimits | None = None
    times: StepTimes = field(default_factory=StepTimes)  # that the runner marks
    overlaps: bool = False  # a step is launched before the results of the last are read

    @property
    def limits(self) -> IntakeLimits:
        """What a request must keep to."""
        return IntakeLimits(
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            end_token_ids=self.end_token_ids,
            rope_class=self.rope_class,
            encoder=self.encoder,
            embedding_size=self.state_size,
        )

    def scheduler(self, config: WorkerConfig) -> Scheduler:
        """A scheduler over this cache."""
        return Scheduler(
            num_blocks=self.cache.num_blocks,
            block_size=self.cache.block_size,
            max_sequences=self.cache.num_rows,
            max_tokens_per_step=config.max_num_batched_tokens,
            max_early_aborts=2 * config.max_concurrent,
            prefix_caching=config.prefix_caching and not self.cache.rows_are_slots,
            rows_are_slots=self.cache.rows_are_slots,
        )
