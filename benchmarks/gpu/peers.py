"""The same requests through transformers' own continuous batching, in the same run.

Both serve the same random model; what counts is the ratio. Their times are their own timestamps, so
that neither side's start counts.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from benchmarks.engine import Engine, Timeline, random_prompt
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Unavailable, Values
from gpu_worker.paged_attention import ATTENTION


def stage(machine: Machine) -> Stage:
    """One row a number of requests."""
    return Stage("peers", 120.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    sizes = (2,) if machine.is_rehearsal else (8, 64)
    return [
        Row(f"generate_batch, {size} requests", partial(compare, machine, size)) for size in sizes
    ]


def compare(machine: Machine, num_requests: int) -> Values:
    """Seconds to first tokens and tokens a second, theirs and ours."""
    machine.require()
    prompt_tokens, max_tokens = (20, 8) if machine.is_rehearsal else (1000, 64)
    model = machine.model("sdpa")
    vocab_size: int = model.config.vocab_size
    prompts = [random_prompt(n, prompt_tokens, vocab_size) for n in range(num_requests)]
    theirs = _theirs(model, prompts, max_tokens)
    machine.free()  # their cache takes nearly all of the device
    model.set_attn_implementation(ATTENTION)
    ours = _ours(model, prompts, max_tokens)
    values = {}
    for side, timelines in (("ours", ours), ("theirs", theirs)):
        for name, value in _summary(timelines).items():
            values[f"{side}_{name}"] = value
    values["times_faster_decoding"] = (
        values["ours_decode_tokens_per_second"] / values["theirs_decode_tokens_per_second"]
    )
    return values


def _ours(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], max_tokens: int
) -> list[Timeline]:
    engine = Engine(
        model,
        num_rows=len(prompts),
        max_model_len=len(prompts[0]) + max_tokens,
        max_tokens_per_step=8192,
    )
    engine.add("warm", prompts[0], 3)
    engine.run()
    del engine.timelines["warm"]
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, max_tokens)
    engine.run()
    return list(engine.timelines.values())


def _theirs(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], max_tokens: int
) -> list[Timeline]:
    generate_batch: Any = getattr(model, "generate_batch", None)
    if generate_batch is None:
        raise Unavailable("this transformers has no generate_batch")
    settings = GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    outputs = generate_batch(
        inputs=[list(prompt) for prompt in prompts],
        generation_config=settings,
        record_timestamps=True,
    )
    if len(outputs) < len(prompts) or any(output.error for output in outputs.values()):
        errors = {output.error for output in outputs.values()}
        raise Unavailable(f"generate_batch answered {len(outputs)} requests: {errors}")
    return [
        Timeline(output.created_time, list(output.timestamps), list(output.generated_tokens))
        for output in outputs.values()
    ]


def _summary(timelines: list[Timeline]) -> Values:
    """Rates of requests that came together; decoding counts from when everybody has begun."""
    arrived = min(timeline.arrived for timeline in timelines)
    begun = max(timeline.tokens[0] for timeline in timelines)
    ended = max(timeline.tokens[-1] for timeline in timelines)
    decoded = sum(moment > begun for timeline in timelines for moment in timeline.tokens)
    return {
        "last_first_token_seconds": begun - arrived,
        "decode_tokens_per_second": decoded / (ended - begun),
        "tokens_per_second": sum(len(t.tokens) for t in timelines) / (ended - arrived),
    }
