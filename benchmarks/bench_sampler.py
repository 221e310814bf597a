"""Microseconds to sample one step and to tell it, by batch, vocabulary and what requests ask for.

The ceiling is reading the step's logits once: N x V x 4 bytes over the memory bandwidth, which is
measured here too, by copying as many bytes. A greedy step comes near it; what a setting adds shows
in its row.

    python -m benchmarks.bench_sampler [--device cuda]
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_worker.logprobs import Scorer
from gpu_worker.sampler import Sampler
from scheduler.plan import Admission, Chunk, StepPlan
from shared.sampling import SamplingParams

VOCABULARIES = (49_152, 128_256)
BATCHES = (1, 8, 32)
PROMPT = tuple(range(200))
NUM_ROUNDS = 7  # the best of them counts: the least disturbed
COPY_BYTES = 256 * 2**20

PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": ((5, 1.0),),
    "min_tokens": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "min_p": {"min_p": 0.05},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p": {"top_k": 50, "top_p": 0.9},
    "top_k 1000, top_p": {"top_k": 1000, "top_p": 0.9},
    "top_p": {"top_p": 0.9},
    "greedy, logprobs 0": {"temperature": 0.0, "num_logprobs": 0},
    "greedy, logprobs 20": {"temperature": 0.0, "num_logprobs": 20},
    "greedy, penalties": {"temperature": 0.0, **PENALTIES},
    "all": {"top_k": 50, "top_p": 0.9, "min_p": 0.01, **PENALTIES},
}


def synchronize(device: torch.device) -> None:
    """Waits for an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def microseconds(work: Callable[[], object], device: torch.device) -> float:
    """The best of some runs, after one to warm up."""
    best = float("inf")
    for _ in range(1 + NUM_ROUNDS):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def bytes_per_second(device: torch.device) -> float:
    """Memory bandwidth, from a copy that reads and writes."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (microseconds(lambda: target.copy_(source), device) * 1e-6)


def step(
    num_rows: int, vocab_size: int, asked: dict[str, Any], device: torch.device
) -> Callable[[], object]:
    """One decode step of rows that all ask for this."""
    sampler, scorer = Sampler(num_rows, vocab_size, device), Scorer(vocab_size, device)
    for row in range(num_rows):
        sampling = SamplingParams(seed=row, **asked)
        admission = Admission(row, sampling, PROMPT, len(PROMPT) // 2, frozenset({1}), ())
        sampler.begin(admission)
        scorer.begin(admission)
    rows = list(range(num_rows))
    on_device = torch.arange(num_rows, device=device)
    logits = 3.0 * torch.randn(num_rows, vocab_size, device=device)
    first_index = len(PROMPT) // 2 + 1
    indices = iter(range(first_index, first_index + NUM_ROUNDS + 1))

    def run() -> object:
        index = next(indices)
        chunks = tuple(Chunk(row, index, (7,), (), index, True) for row in rows)
        sampler.observe(StepPlan(index, (), chunks, num_rows))
        token_ids = sampler.sample(logits, on_device, torch.full_like(on_device, index), rows)
        return token_ids, scorer.score_sampled(logits, token_ids, rows)

    return run


def measure(device: torch.device) -> list[dict[str, Any]]:
    """One line of the table for each case and size."""
    bandwidth = bytes_per_second(device)
    lines = []
    for vocab_size in VOCABULARIES:
        for num_rows in BATCHES:
            ceiling = num_rows * vocab_size * 4 / bandwidth * 1e6
            for case, asked in CASES.items():
                took = microseconds(step(num_rows, vocab_size, asked, device), device)
                lines.append({
                    "case": case, "vocabulary": vocab_size, "rows": num_rows,
                    "microseconds": round(took, 1), "ceiling": round(ceiling, 1),
                    "times_ceiling": round(took / ceiling, 1),
                })  # fmt: skip
    return lines


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    with torch.inference_mode():
        lines = measure(device)
    print(f"{'':20}{'V':>8}{'rows':>6}{'µs a step':>12}{'ceiling':>10}{'ratio':>8}")
    for line in lines:
        print(
            f"{line['case']:20}{line['vocabulary']:8}{line['rows']:6}"
            f"{line['microseconds']:12.1f}{line['ceiling']:10.1f}{line['times_ceiling']:8.1f}"
        )
    print(json.dumps({"device": str(device), "threads": torch.get_num_threads(), "lines": lines}))


if __name__ == "__main__":
    main()
