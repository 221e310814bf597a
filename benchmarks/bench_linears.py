"""Processor time of one linear layer on the CPU, by kind of layer and number of tokens.

A layer reads its weight once however many tokens there are, so its ceiling at one token is the
weight's bytes over the memory's bandwidth; at many it is arithmetic. Kinds take turns, call by
call, and the least processor time counts, in microseconds: other work on the machine disturbs that
least. It is the sum over all threads, with what they wait for each other while they spin: with
more threads than one it is longer than the call takes. `best` is an output layer of which only
the best of each row is wanted; the others give all outputs.

    python -m benchmarks.bench_linears --sizes 1536x576 49152x576 --tokens 1 8 32 128
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch.nn import functional

from gpu_worker.best import best_tokens
from gpu_worker.cpu_kernels.int4 import load_int4
from gpu_worker.cpu_kernels.linear import load_linears
from gpu_worker.linears import hqq_numbers
from gpu_worker.linears.int4_cpu import NativeInt4Linear
from gpu_worker.linears.int4_weight import Int4Weight
from gpu_worker.linears.int8 import Int8
from gpu_worker.linears.native import NativeLinear
from gpu_worker.linears.packed import PackedLinear

SIZES = ("576x576", "1536x576", "576x1536", "49152x576", "2048x2048", "4096x4096")
TOKENS = (1, 8, 32, 128, 512)
Layer = Callable[[torch.Tensor], object]


def layers_of(weight: torch.Tensor) -> dict[str, tuple[torch.dtype, Layer]]:
    """Every kind of layer with this weight, [out, in] float32, and the dtype that it is fed."""
    small = weight.bfloat16()
    packed, packed_small = PackedLinear(weight, None), PackedLinear(small, None)
    kinds: dict[str, tuple[torch.dtype, Layer]] = {
        "f32 plain": (torch.float32, lambda x: functional.linear(x, weight)),
        "f32 packed": (torch.float32, packed.compute),
        "bf16 packed": (torch.bfloat16, packed_small.compute),
        "f32 packed, best": (torch.float32, lambda x: best_tokens(packed.compute(x))),
    }
    library = load_linears()
    if library is None:
        return kinds
    parts = Int8(None).quantize(weight)
    int8 = NativeLinear(library, parts["weight"], None, scales=parts["scales"], dtype=weight.dtype)
    native = {"f32 native": (torch.float32, NativeLinear(library, weight, None))}
    if library.has(torch.bfloat16):
        native["bf16 native"] = (torch.bfloat16, NativeLinear(library, small, None))
    native["int8"] = (torch.float32, int8)
    if (int4_library := load_int4()) is not None:
        numbers = Int4Weight.of(*hqq_numbers.quantize(weight))
        shape = weight.shape[0], weight.shape[1]
        int4 = NativeInt4Linear(int4_library, numbers, shape, weight.dtype, None)
        kinds["int4"] = (torch.float32, int4.compute)
    for name, (dtype, layer) in native.items():
        kinds[name] = (dtype, layer.compute)
        kinds[f"{name}, best"] = (dtype, layer.best)
    return kinds


def least_microseconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Processor time of each, which take turns; of all threads together."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - start)
    return {name: 1e6 * seconds for name, seconds in least.items()}


@torch.inference_mode()
def measure(size: str, tokens: Sequence[int], rounds: int) -> dict[int, dict[str, float]]:
    """Of one size, OUTxIN: microseconds of every kind, by the number of tokens."""
    out_features, in_features = map(int, size.split("x"))
    torch.manual_seed(0)
    layers = layers_of(torch.randn(out_features, in_features))
    found = {}
    for num_tokens in tokens:
        x = torch.randn(num_tokens, in_features)
        calls = {name: partial(layer, x.to(dtype)) for name, (dtype, layer) in layers.items()}
        found[num_tokens] = least_microseconds(calls, rounds)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each size, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="OUTxIN")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    results = {}
    for size in asked.sizes:
        found = results[size] = measure(size, asked.tokens, asked.rounds)
        print(f"\n{size:22}" + "".join(f"{number:>10}" for number in found))
        for name in next(iter(found.values())):
            print(f"{name:22}" + "".join(f"{row[name]:10.0f}" for row in found.values()))
    print(json.dumps({"threads": asked.threads, "microseconds": results}))


if __name__ == "__main__":
    main()
