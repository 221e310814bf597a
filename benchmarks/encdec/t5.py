"""T5 under continuous batching beside transformers' own `generate()`.

Random weights in the geometry of flan-t5-small; requests of mixed inputs and answers arrive at
once. `generate()` gets them one at a time, and all as one batch, which ends with its longest
answer. Every side says the same number of tokens, in float32.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from benchmarks.encdec import decode_steps
from benchmarks.encdec.turns import median_rates
from gpu_worker.loaded import LoadedModel
from gpu_worker.slot_loading import serve_slots
from scheduler.plan import EncoderInput
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.config import ModelConfig, WorkerConfig
from shared.sampling import SamplingParams

FLAN_T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
NUM_REQUESTS = 32
INPUT_TOKENS = (8, 128)  # at least and at most
ANSWER_TOKENS = (8, 128)
MAX_LEN = 128
START = (0,)


@dataclass(frozen=True)
class Request:
    """What one caller asks."""

    input_ids: tuple[int, ...]
    num_tokens: int  # of the answer, whatever the model says


def requests() -> list[Request]:
    """The same in every run."""
    draw = random.Random(0)
    made = []
    for _ in range(NUM_REQUESTS):
        ids = draw.choices(range(3, FLAN_T5_SMALL["vocab_size"]), k=draw.randint(*INPUT_TOKENS))
        made.append(Request(tuple(ids), draw.randint(*ANSWER_TOKENS)))
    return made


def make_model() -> PreTrainedModel:
    """Always with the same weights."""
    torch.manual_seed(0)
    model: PreTrainedModel = T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL)).eval()
    return model


class Ours:
    """The worker's runner behind its scheduler."""

    def __init__(self, *, torch_compile: bool = False) -> None:
        config = WorkerConfig(
            model=ModelConfig("benchmark", MAX_LEN),
            max_encoder_len=MAX_LEN,
            continuous_batching_batch_size=NUM_REQUESTS,
            max_num_batched_tokens=NUM_REQUESTS * MAX_LEN,
            torch_compile=torch_compile,
        )
        self._config = config
        self._loaded: LoadedModel = serve_slots(
            make_model(),
            config,
            end_token_ids=frozenset(),
            device_name="cpu",
            report=lambda _: None,
        )

    def __call__(self, wanted: list[Request]) -> int:
        """Answers all of them; how many tokens that were."""
        scheduler = self._scheduled(wanted)
        num_tokens = 0
        while not scheduler.is_idle:
            plan = scheduler.schedule()
            num_tokens += len(scheduler.apply(plan, self._loaded.runner.execute(plan)))
        return num_tokens

    def steps(self, num_requests: int) -> Iterator[float]:
        """The decode steps of the first so many requests."""
        return decode_steps.served(self._loaded, self._scheduled(requests()[:num_requests]))

    def _scheduled(self, wanted: list[Request]) -> Scheduler:
        scheduler = self._loaded.scheduler(self._config)
        greedy = SamplingParams(seed=0, temperature=0.0)
        for number, request in enumerate(wanted):
            scheduler.add(
                Sequence(
                    str(number),
                    START,
                    request.num_tokens,
                    frozenset(),
                    greedy,
                    encoder_input=EncoderInput.text(request.input_ids),
                )
            )
        return scheduler


class Stock:
    """`generate()`, so many requests in one batch."""

    def __init__(self, batch_size: int) -> None:
        self._model: Any = make_model()
        self._batch_size = batch_size

    def __call__(self, wanted: list[Request]) -> int:
        """As `Ours`; what a batch says beyond its shorter answers counts for nothing."""
        for start in range(0, len(wanted), self._batch_size):
            self._generate(wanted[start : start + self._batch_size])
        return sum(request.num_tokens for request in wanted)

    def _generate(self, batch: list[Request]) -> None:
        longest = max(len(request.input_ids) for request in batch)
        rows = [[*r.input_ids, *(0,) * (longest - len(r.input_ids))] for r in batch]
        lengths = torch.tensor([len(request.input_ids) for request in batch])
        num_tokens = max(request.num_tokens for request in batch)
        self._model.generate(
            torch.tensor(rows),
            attention_mask=(torch.arange(longest) < lengths[:, None]).long(),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
        )


def tokens_per_second(side: Callable[[list[Request]], int], wanted: list[Request]) -> float:
    """Of answers, as callers count them."""
    start = time.perf_counter()
    num_tokens = side(wanted)
    return num_tokens / (time.perf_counter() - start)


def compare_steps(batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Our decode steps, compiled and not; prints a line a batch size."""
    plain, compiled = Ours(), Ours(torch_compile=True)
    return {"decode_steps": decode_steps.compare(plain.steps, compiled.steps, batch_sizes)}


def compare(num_rounds: int, *, torch_compile: bool = False) -> dict[str, Any]:
    """Prints a line a side; the same for programs."""
    wanted = requests()
    sides: dict[str, Callable[[list[Request]], int]] = {
        "continuous batching": Ours(),
        **({"continuous batching, compiled": Ours(torch_compile=True)} if torch_compile else {}),
        "generate(), one at a time": Stock(1),
        f"generate(), batches of {NUM_REQUESTS}": Stock(NUM_REQUESTS),
    }
    for side in sides.values():
        side(wanted[:2])
    turns = {name: partial(tokens_per_second, side, wanted) for name, side in sides.items()}
    medians = median_rates(turns, num_rounds)
    ours, *others = medians.values()
    for name, rate in medians.items():
        print(f"{name:34} {rate:8.1f} tokens/s")
    print(f"times faster: {', '.join(f'{ours / other:.2f}' for other in others)}")
    return {"tokens_per_second": medians}
