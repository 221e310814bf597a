"""Decode steps of an 8-billion model at about a thousand tokens of context, by batch size.

The ceiling is memory: a step reads every weight and every key and value once. It is given against
the bandwidth that a large copy reaches on this device, and for the H200 against its data sheet's.
"""

import statistics
from collections.abc import Sequence
from functools import cached_property, partial

from transformers import PreTrainedModel

from benchmarks.engine import Engine, random_prompt
from benchmarks.gpu import equality
from benchmarks.gpu.machine import Machine, kv_bytes_per_token, weight_bytes
from benchmarks.gpu.record import Row, Stage, Unavailable, Values
from gpu_worker.linears.int4 import Int4
from gpu_worker.linears.quantization import quantize_linears
from gpu_worker.paged_attention import ATTENTION
from scheduler.plan import StepPlan

WARM_STEPS = 5
TIMED_STEPS = 30
MAX_TOKENS = 400  # more than the steps of all batch sizes together


def stage(machine: Machine, *, cuda_graphs: bool) -> Stage:
    """The prefill of all prompts, then decode steps from the largest batch to the smallest."""
    name = "decode" if cuda_graphs else "eager"
    return Stage(name, 120.0, partial(_rows, machine, cuda_graphs))


def compiled_stage(machine: Machine) -> Stage:
    """The same under torch.compile and CUDA graphs, once compiled answers are the right ones."""
    return Stage("compiled", 300.0, partial(_compiled_rows, machine))


def _compiled_rows(machine: Machine) -> Sequence[Row]:
    compare = partial(equality.compare, machine, "llama", torch_compile=True)
    return [Row("equality, llama", compare), *_rows(machine, cuda_graphs=True, torch_compile=True)]


def int4_rows(machine: Machine) -> Sequence[Row]:
    """The same with 4-bit weights; against the rows of `decode`."""
    return _rows(machine, cuda_graphs=True, int4=True)


def _rows(
    machine: Machine, cuda_graphs: bool, torch_compile: bool = False, int4: bool = False
) -> Sequence[Row]:
    run = _Run(machine, cuda_graphs=cuda_graphs, torch_compile=torch_compile, int4=int4)
    decodes = [Row(f"batch {size}", partial(run.decode, size)) for size in run.batch_sizes]
    return [Row("prefill", run.prefill), *decodes]


class _Run:
    """One engine whose sequences all decode; the batch only ever shrinks."""

    def __init__(
        self, machine: Machine, *, cuda_graphs: bool, torch_compile: bool, int4: bool
    ) -> None:
        self._machine = machine
        self._int4 = int4
        self._cuda_graphs = cuda_graphs
        self._torch_compile = torch_compile
        self.batch_sizes = (4, 2, 1) if machine.is_rehearsal else (256, 64, 8, 1)
        self._prompt_tokens = 40 if machine.is_rehearsal else 1000
        self._tokens_per_step = 64 if machine.is_rehearsal else 8192

    def prefill(self) -> Values:
        """Prompt tokens a second while the largest batch is filled, and the share of the peak."""
        engine, model = self._engine, self._model
        num_prompts = self.batch_sizes[0]
        for number in range(num_prompts):
            prompt = random_prompt(number, self._prompt_tokens, model.config.vocab_size)
            engine.add(str(number), prompt, MAX_TOKENS)
        steps = [engine.step()]
        while engine.scheduler.num_waiting or not _is_decode(steps[-1].plan):
            steps.append(engine.step())
        seconds = sum(step.seconds for step in steps[:-1])
        rate = num_prompts * self._prompt_tokens / seconds
        parameters = self._dense_bytes / model.dtype.itemsize
        return {
            "tokens": num_prompts * self._prompt_tokens,
            "tokens_per_second": rate,
            "share_of_measured_flops": 2 * parameters * rate / self._machine.flops_per_second,
        }

    def decode(self, batch_size: int) -> Values:
        """Median step at a batch size, and its share of what memory allows."""
        engine = self._engine
        if engine.scheduler.num_running < batch_size:
            raise Unavailable("the prefill did not come so far")
        for number in range(batch_size, self.batch_sizes[0]):
            if engine.scheduler.holds(str(number)):
                engine.scheduler.abort(str(number))
        for _ in range(WARM_STEPS):
            engine.step()
        steps = [engine.step() for _ in range(TIMED_STEPS)]
        assert all(len(step.plan.chunks) == batch_size for step in steps)
        contexts = sum(chunk.start + 1 for chunk in steps[TIMED_STEPS // 2].plan.chunks)
        return self._values(batch_size, contexts, [step.seconds for step in steps])

    def _values(self, batch_size: int, contexts: int, times: list[float]) -> Values:
        seconds = statistics.median(times)
        weights = weight_bytes(self._model) + self._int4_bytes
        num_bytes = weights + contexts * kv_bytes_per_token(self._model)
        values = {
            "ms_per_step": seconds * 1e3,
            "slowest_ms": max(times) * 1e3,
            "tokens_per_second": batch_size / seconds,
            "mean_context": contexts / batch_size,
            "gigabytes_per_step": num_bytes / 1e9,
            "share_of_measured_bandwidth": num_bytes / seconds / self._machine.bytes_per_second,
        }
        if self._machine.data_sheet_bytes_per_second:
            share = num_bytes / seconds / self._machine.data_sheet_bytes_per_second
            values["share_of_data_sheet"] = share
        return values

    @cached_property
    def _model(self) -> PreTrainedModel:
        model = self._machine.model(ATTENTION)
        self._dense_bytes, self._int4_bytes = weight_bytes(model), 0
        if self._int4:
            layers = quantize_linears(model, Int4(model), None).layers.values()
            self._int4_bytes = sum(layer.num_bytes for layer in layers)
            self._machine.free()
        return model

    @cached_property
    def _engine(self) -> Engine:
        """Made by the first row that needs it, and warm."""
        engine = Engine(
            self._model,
            num_rows=self.batch_sizes[0],
            max_model_len=self._prompt_tokens + MAX_TOKENS,
            max_tokens_per_step=self._tokens_per_step,
            cuda_graphs=self._cuda_graphs,
            torch_compile=self._torch_compile,
        )
        engine.add("warm", random_prompt(-1, self._prompt_tokens, 100), 3)
        engine.run()
        return engine


def _is_decode(plan: StepPlan) -> bool:
    return plan.num_decodes == len(plan.chunks)
