"""4-bit weights by `--hqq`: one layer beside the dense one by number of rows, then whole steps.

A decode waits for weights, so 4-bit ones may be 3.5 times as fast at most (2 bytes against 0.5625);
many rows wait for the matrix units, where the ceiling is the dense product.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional

from benchmarks.gpu import decode
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Values, Wrong
from gpu_worker.cuda_graphs import CudaGraphDevice
from gpu_worker.linears.int4 import Int4

NUM_ROWS = (1, 8, 64, 128, 2048)
SHAPE = (14336, 4096)  # of the 8-billion model's MLP; outputs, inputs
REHEARSED_SHAPE = (192, 128)
GRAPH_CALLS = 20  # whose weights together are more than the second-level cache holds
TOLERANCE = 0.02  # relative: the CPU rounds activations to 8 bits, the GPU's products to bfloat16


def stage(machine: Machine) -> Stage:
    """See the module."""
    return Stage("int4", 240.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    layers = [Row(f"layer, {rows} rows", partial(compare, machine, rows)) for rows in NUM_ROWS]
    return [*layers, *decode.int4_rows(machine)]


def compare(machine: Machine, num_rows: int) -> Values:
    """Seconds of one layer, 4-bit and dense; Wrong if they differ by more than rounding."""
    machine.require()
    shape = REHEARSED_SHAPE if machine.is_rehearsal else SHAPE
    torch.manual_seed(0)
    with machine.device:
        model = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=machine.dtype)
        x = torch.randn(num_rows, shape[1]).to(machine.dtype)
    quantization = Int4(model)
    weight = model.weight.detach()
    parts = quantization.quantize(weight)
    layers = [
        quantization.layer(parts, shape, weight.dtype, None, is_conv1d=False, device=machine.device)
        for _ in range(1 if machine.is_rehearsal else GRAPH_CALLS)
    ]
    dense = [layer.unpack() for layer in layers]
    _check(layers[0](x), functional.linear(x.float(), dense[0].float()))
    small = _seconds(machine, [partial(layer, x) for layer in layers])
    large = _seconds(machine, [partial(functional.linear, x, weight) for weight in dense])
    return {
        "kind": layers[0].kind,
        "microseconds": small * 1e6,
        "dense_microseconds": large * 1e6,
        "times_as_fast_as_dense": large / small,
        "share_of_measured_bandwidth": layers[0].num_bytes / small / machine.bytes_per_second,
    }


def _check(output: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((output.float() - expected).norm() / expected.norm())
    if not error <= TOLERANCE:  # NaN is not
        raise Wrong(f"relative error {error:.2e} above {TOLERANCE}")


def _seconds(machine: Machine, calls: list[partial[torch.Tensor]]) -> float:
    """Of one call, while others of other weights ran before it."""
    if machine.is_rehearsal:
        return machine.seconds(calls[0], 3)
    graph = CudaGraphDevice().capture(lambda: [call() for call in calls][-1])
    return machine.seconds(graph, 30) / len(calls)
