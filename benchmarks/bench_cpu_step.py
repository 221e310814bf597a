"""Milliseconds of decode and prefill steps of a random 135M Llama on the CPU, route by route.

A decode step reads every weight once, so its ceiling is their bytes over the memory's bandwidth,
measured here too. Routes take turns, step by step, so that a busy minute hits all of them; compare
within one run only. `--prototype` lets a script with a `Runner(path, **options)` take part. On a
busy machine, `--threads 1 --cpu-time` counts the processor's time in place of the wall clock's.

    python -m benchmarks.bench_cpu_step --threads 2 --rounds 20 --routes native
"""

import argparse
import functools
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from gpu_worker.attention.backend import AttentionBackend
from gpu_worker.attention.cpu_paged import choose_cpu_backend
from gpu_worker.attention.torch_paged import TorchAttention
from gpu_worker.families.causal_lm import CausalLM
from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry, LayerGeometry
from gpu_worker.linears.choice import settle_linears
from gpu_worker.paged_attention import ATTENTION
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.config import WorkerConfig
from shared.sampling import SamplingParams

CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
NUM_BLOCKS = 600
CONTEXT = 120  # tokens of the longest sequence when decoding begins; the shortest has half of it
BATCHES = (1, 8, 32)
PROMPTS = (98, 512)
WARM_STEPS = 5
# dtype, native attention, linear layers
ROUTES: dict[str, tuple[torch.dtype, bool, str]] = {
    "f32 torch attention": (torch.float32, False, "plain"),
    "f32 native, packed": (torch.float32, True, "packed"),
    "f32 native, int8": (torch.float32, True, "int8"),
    "f32 native, int4": (torch.float32, True, "int4"),
    "bf16 torch attention": (torch.bfloat16, False, "plain"),
    "bf16 torch attention, packed": (torch.bfloat16, False, "packed"),
    "bf16 native, packed": (torch.bfloat16, True, "packed"),
    "bf16 native, int8": (torch.bfloat16, True, "int8"),
    "bf16 native, int4": (torch.bfloat16, True, "int4"),
}
PROTOTYPE = "prototype: f32 native, packed"
PROTOTYPE_OPTIONS = {"linear": "packed32", "attention": "native", "compile": False}
Step = Callable[[], None]
Clock = Callable[[], float]  # seconds
Table = dict[str, dict[str, float]]  # route, then kind of step, to milliseconds


class OurRoute:
    """The worker's own runner on plans of its own scheduler."""

    def __init__(self, dtype: torch.dtype, *, native: bool, linears: str) -> None:
        model = random_model(dtype)
        quantization = linears if linears == "int8" else ""
        if linears != "plain":
            settle_linears(model, WorkerConfig(quantization=quantization, hqq=linears == "int4"))
        self._runner = CausalLM(model, backend_of(model, native=native), max(BATCHES))

    def decoding(self, num_sequences: int) -> Step:
        """A function that computes one more token of as many sequences."""
        lengths = [CONTEXT - index * 7 % (CONTEXT // 2) for index in range(num_sequences)]
        scheduler = scheduler_of(lengths)
        return functools.partial(self._step, scheduler)

    def prefilling(self, num_tokens: int) -> Step:
        """A function that computes one prompt."""
        return lambda: self._step(scheduler_of([num_tokens]))

    def _step(self, scheduler: Scheduler) -> None:
        plan = scheduler.schedule()
        scheduler.apply(plan, self._runner.execute(plan))


class PrototypeRoute:
    """A script that was written before the worker, on the same weights' shapes."""

    def __init__(self, script: Path, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("prototype", script)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        random_model(torch.float32).save_pretrained(folder)
        self._runner = module.Runner(str(folder), **PROTOTYPE_OPTIONS)

    def decoding(self, num_sequences: int) -> Step:
        """See `OurRoute`."""
        width = 2 * CONTEXT // BLOCK_SIZE
        tables = [[1 + i * width + n for n in range(width)] for i in range(num_sequences)]
        lengths = [CONTEXT - index * 7 % (CONTEXT // 2) for index in range(num_sequences)]
        keep = list(range(num_sequences))

        def step() -> None:
            logits = self._runner.step([7] * num_sequences, list(lengths), tables, (), keep)
            logits.argmax(-1).tolist()
            lengths[:] = [length + 1 for length in lengths]

        return step

    def prefilling(self, num_tokens: int) -> Step:
        """See `OurRoute`."""
        table = list(range(1, num_tokens // BLOCK_SIZE + 2))
        return lambda: self._runner.prefill(list(range(3, 3 + num_tokens)), table)


def random_model(dtype: torch.dtype) -> PreTrainedModel:
    """The model, always with the same weights."""
    torch.manual_seed(0)
    auto_model: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
    model: PreTrainedModel = auto_model.from_config(
        LlamaConfig(**CONFIG), dtype=dtype, attn_implementation=ATTENTION
    ).eval()
    return model


def backend_of(model: PreTrainedModel, *, native: bool) -> AttentionBackend:
    """A pool for every layer of the model."""
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    layer = LayerGeometry(config.num_key_value_heads, head_size, head_size)
    layers = (layer,) * config.num_hidden_layers
    geometry = KVGeometry(layers, model.dtype, model.device)
    if not native:
        return TorchAttention(geometry, NUM_BLOCKS)
    heads = [config.num_attention_heads] * len(layers)
    backend = choose_cpu_backend(geometry, heads, NUM_BLOCKS)
    if backend is None:
        raise SystemExit("no native kernels here: choose --routes torch")
    return backend


@functools.cache
def prompt(num_tokens: int) -> tuple[int, ...]:
    """Any tokens."""
    return tuple(range(3, 3 + num_tokens))


def scheduler_of(lengths: list[int]) -> Scheduler:
    """A scheduler whose next step computes prompts of these lengths at once."""
    scheduler = Scheduler(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_sequences=len(lengths),
        max_tokens_per_step=sum(lengths),
    )
    for index, length in enumerate(lengths):
        greedy = SamplingParams(seed=index, temperature=0.0)
        scheduler.add(Sequence(str(index), prompt(length), CONTEXT, frozenset(), greedy))
    return scheduler


def measure(routes: dict[str, Any], rounds: int, clock: Clock) -> Iterator[tuple[str, str, float]]:
    """Route, kind of step and median milliseconds, for every one of them."""
    kinds = [(f"B={n}", "decoding", n, rounds) for n in BATCHES]
    kinds += [(f"prefill {n}", "prefilling", n, max(rounds // 3, 3)) for n in PROMPTS]
    for kind, method, size, num_steps in kinds:
        steps = {name: getattr(route, method)(size) for name, route in routes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in routes}
        for _ in range(WARM_STEPS + num_steps if method == "decoding" else 1 + num_steps):
            for name, step in steps.items():
                start = clock()
                step()
                seconds[name].append(clock() - start)
        for name in routes:
            yield name, kind, 1e3 * statistics.median(seconds[name][-num_steps:])


def gigabytes_per_second(clock: Clock) -> float:
    """Bandwidth of reading memory that no cache holds: the best of several passes."""
    numbers = torch.ones(2**28)  # 1 GiB
    seconds = []
    for _ in range(5):
        start = clock()
        numbers.sum()
        seconds.append(clock() - start)
    return numbers.nbytes / min(seconds) / 1e9


def print_table(table: Table, ceilings: dict[str, float]) -> None:
    """Milliseconds, and for one sequence the share of the ceiling."""
    kinds = list(next(iter(table.values())))
    print(f"{'milliseconds':34}" + "".join(f"{kind:>13}" for kind in kinds) + "  of ceiling, B=1")
    for name, row in table.items():
        share = f"{ceilings[name] / row['B=1']:15.0%}"
        print(f"{name:34}" + "".join(f"{row[kind]:13.1f}" for kind in kinds) + share)


def ceiling_milliseconds(dtype: torch.dtype, bandwidth: float) -> float:
    """The time to read every weight once."""
    return random_model(dtype).num_parameters() * dtype.itemsize / bandwidth / 1e6


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--routes", nargs="*", default=[""], help="words of the routes' names")
    parser.add_argument("--prototype", type=Path)
    return parser.parse_args()


def main() -> None:
    """Prints a table, then one line of JSON."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    bandwidth = gigabytes_per_second(clock)
    routes: dict[str, Any] = {
        name: OurRoute(dtype, native=native, linears=linears)
        for name, (dtype, native, linears) in ROUTES.items()
        if any(word in name for word in asked.routes)
    }
    ceilings = {name: ceiling_milliseconds(ROUTES[name][0], bandwidth) for name in routes}
    if asked.prototype:
        with tempfile.TemporaryDirectory() as folder:
            routes[PROTOTYPE] = PrototypeRoute(asked.prototype, Path(folder))
        ceilings[PROTOTYPE] = ceiling_milliseconds(torch.float32, bandwidth)
    table: Table = {name: {} for name in routes}
    for name, kind, milliseconds in measure(routes, asked.rounds, clock):
        table[name][kind] = milliseconds
    print(f"{asked.threads} threads, {bandwidth:.0f} GB/s")
    print_table(table, ceilings)
    print(json.dumps({"threads": asked.threads, "gb_per_s": bandwidth, "milliseconds": table}))


if __name__ == "__main__":
    main()
