"""Encoder-decoders under continuous batching beside what else serves them, in one run.

`--model t5`: transformers' own `generate()`, one request at a time and all in one batch.
`--model whisper`: faster-whisper's engine with the same weights, where a Python is named that has
it. Random weights; answers of the same number of tokens on every side, the same threads; the sides
take turns, so that a busy minute hits all of them.

    python -m benchmarks.bench_encdec --threads 2
    python -m benchmarks.bench_encdec --model whisper --faster-whisper-python ~/peer/bin/python

`--torch-compile` adds ours compiled; `--steps` compares our decode steps alone, compiled and not,
by processor time.

    python -m benchmarks.bench_encdec --model whisper --threads 1 --steps
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.encdec import t5, whisper


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["t5", "whisper"], default="t5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-compile", action="store_true", help="ours compiled, too")
    parser.add_argument("--steps", action="store_true", help="our decode steps, compiled and not")
    parser.add_argument(
        "--batch-sizes", default="1,8,16", help="windows that come at once; rows under --steps"
    )
    group = parser.add_argument_group("whisper")
    group.add_argument("--dtypes", default="float32", help="ours, with commas")
    group.add_argument("--compute-types", default="float32", help="the peer's, by its own names")
    group.add_argument(
        "--faster-whisper-python",
        type=Path,
        help="a Python with faster-whisper, transformers and torch",
    )
    return parser.parse_args()


def main() -> None:
    """Prints a line a side, then one line of JSON."""
    asked = parse()
    torch.set_num_threads(asked.threads)
    compare = _t5 if asked.model == "t5" else _whisper
    found = compare(asked, tuple(int(size) for size in asked.batch_sizes.split(",")))
    print(json.dumps({"model": asked.model, "threads": asked.threads, **found}))


def _t5(asked: argparse.Namespace, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    if asked.steps:
        return t5.compare_steps(batch_sizes)
    return t5.compare(asked.rounds, torch_compile=asked.torch_compile)


def _whisper(asked: argparse.Namespace, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    settings = whisper.Settings(
        asked.threads,
        asked.rounds,
        batch_sizes,
        tuple(asked.dtypes.split(",")),
        tuple(asked.compute_types.split(",")),
        asked.faster_whisper_python,
        asked.torch_compile,
    )
    return whisper.compare_steps(settings) if asked.steps else whisper.compare(settings)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
