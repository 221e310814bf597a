"""Decoding under CUDA graphs: a forward pass is captured once for every batch size padded to.

A graph repeats its launches on the addresses of its capture, so each size has fixed inputs, and
all share one buffer of logits. Rows of padding read and write the scratch block. What a step
changes in the block tables goes to the device before the graph runs.
"""

import logging
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_worker.batch import DECODE_FIELDS, Batch, over_fixed_inputs

logger = logging.getLogger(__name__)

_SMALL_SIZES = (1, 2, 4)
_SIZE_STEP = 8


class GraphDevice(Protocol):
    """Whoever records device work and repeats it."""

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Returns what repeats `run` on the same memory; RuntimeError if it cannot be recorded."""


class CudaGraphDevice:
    """CUDA graphs that share their temporary memory: one runs at a time, on one stream."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """See `GraphDevice`."""
        self._warm_up(run)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # left also where torch does not: on a failed capture
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
        ):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    def _warm_up(self, run: Callable[[], torch.Tensor]) -> None:
        """Lets kernels compile and libraries set up; RuntimeError if `run` waits for the device."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
            with _waiting_is_an_error():
                run()
        current.wait_stream(self._stream)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # "is a prototype"
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@dataclass
class _Graph:
    """The forward pass of one batch size."""

    batch: Batch  # whose tensors it reads, and which must therefore live as long
    inputs: torch.Tensor  # [DECODE_FIELDS, size] int64, of these
    replay: Callable[[], torch.Tensor]  # [size, V]
    num_filled: int  # the inputs after these are padding


class DecodeGraphs:
    """Runs batches of decodes by graphs of the next larger size, once `capture` has made them."""

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        device: GraphDevice,
        *,
        max_batch_size: int,
        padding: torch.Tensor,
    ) -> None:
        """`forward` is [T] to logits [T, V]; `padding`, [DECODE_FIELDS], is a row of nobody."""
        self._forward = forward
        self._device = device
        self._sizes = batch_sizes(max_batch_size)
        self._padding = padding[:, None]
        self._graphs: dict[int, _Graph] = {}

    def capture(self) -> None:
        """Captures all sizes, or none and says why; the largest first: its memory fits all."""
        logger.info(
            "capturing CUDA graphs for decode: %d batch sizes up to %d",
            len(self._sizes), self._sizes[-1],
        )  # fmt: skip
        start = time.monotonic()
        try:
            logits = torch.empty_like(self._forward(self._batch(self._sizes[-1])))
            for size in reversed(self._sizes):
                self._graphs[size] = self._captured(size, logits[:size])
        except RuntimeError as error:
            self._graphs = {}
            reason = str(error).partition("\n")[0]
            logger.warning("decoding without CUDA graphs: capture failed: %s", reason)
            return
        logger.info("captured CUDA graphs in %.1f s", time.monotonic() - start)

    def covers(self, batch: Batch) -> bool:
        """True when a graph computes this batch."""
        return batch.is_decode and bool(self._graphs) and batch.num_decodes <= self._sizes[-1]

    def run(self, batch: Batch) -> torch.Tensor:
        """The logits [T, V] of a batch that is covered, valid until the next run."""
        num_decodes = batch.num_decodes
        graph = self._graphs[self._sizes[bisect_left(self._sizes, num_decodes)]]
        numbers = batch.packed[: DECODE_FIELDS * num_decodes].view(DECODE_FIELDS, num_decodes)
        graph.inputs[:, :num_decodes].copy_(numbers)
        if graph.num_filled > num_decodes:
            graph.inputs[:, num_decodes : graph.num_filled].copy_(self._padding)
        graph.num_filled = num_decodes
        return graph.replay()[:num_decodes]

    def _captured(self, size: int, logits: torch.Tensor) -> _Graph:
        batch = self._batch(size)
        replay = self._device.capture(lambda: logits.copy_(self._forward(batch)))
        inputs = batch.packed.view(DECODE_FIELDS, size)
        return _Graph(batch, inputs, replay, num_filled=0)

    def _batch(self, size: int) -> Batch:
        """A batch of padding over inputs of its own."""
        return over_fixed_inputs(self._padding.repeat(1, size))


def batch_sizes(max_batch_size: int) -> list[int]:
    """The sizes that batches are padded to, ascending: 1, 2, 4, 8, 16, 24, … and the largest."""
    sizes = {*_SMALL_SIZES, *range(_SIZE_STEP, max_batch_size, _SIZE_STEP), max_batch_size}
    return sorted(size for size in sizes if size <= max_batch_size)


def padding_row(scratch_row: int, device: torch.device) -> torch.Tensor:
    """What a row of padding computes, [DECODE_FIELDS]: a first token, in the scratch block."""
    token_id, position, slot, rope_length, context_length = 0, 0, 0, 1, 1
    numbers = [token_id, position, slot, rope_length, scratch_row, context_length]
    return torch.tensor(numbers, dtype=torch.long, device=device)
