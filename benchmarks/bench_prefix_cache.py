"""Seconds to the first token with and without the prefix cache, and what a long prompt delays.

The ceiling of the cache is the share of the prompt that is left to compute; of chunked prefill, one
chunk's step: no token of a running answer may wait longer than that. A random model of the shape of
SmolLM 135M; with fewer layers (`--layers`) it is faster, and both ratios stay about the same.

    python -m benchmarks.bench_prefix_cache
"""

import argparse
import json
import statistics
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.engine import Engine, random_prompt
from gpu_worker.loading import choose_dtype
from gpu_worker.paged_attention import ATTENTION

VOCABULARY = 49152
NUM_REQUESTS = 32
PREFIX_TOKENS = 1024
OWN_TOKENS = 32  # of each prompt, after the shared prefix
NUM_STREAMS = 8
LONG_PROMPT_TOKENS = 6000
TOKENS_PER_STEP = 512


def small_llama(num_layers: int, context: int, device: torch.device) -> PreTrainedModel:
    """A random Llama of 135 million parameters when it has 30 layers."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    auto_model: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
    with device:
        model: PreTrainedModel = auto_model.from_config(
            config, dtype=choose_dtype("auto", device), attn_implementation=ATTENTION
        )
    model.eval()
    return model


def shared_prompts(num_requests: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Prompts that all begin alike and end each on its own."""
    prefix = random_prompt(0, PREFIX_TOKENS, vocab_size)
    return [prefix + random_prompt(n, OWN_TOKENS, vocab_size) for n in range(1, num_requests + 1)]


def first_token_seconds(
    model: PreTrainedModel, *, prefix_caching: bool, tokens_per_step: int = TOKENS_PER_STEP
) -> list[float]:
    """Of requests that arrive together, after one that brought the prefix into the cache."""
    vocab_size: int = model.config.vocab_size
    engine = Engine(
        model,
        num_rows=NUM_REQUESTS,
        max_model_len=PREFIX_TOKENS + OWN_TOKENS + 8,
        max_tokens_per_step=tokens_per_step,
        prefix_caching=prefix_caching,
    )
    warm, *measured = shared_prompts(NUM_REQUESTS + 1, vocab_size)
    engine.add("warm", warm, 1)
    engine.run()
    for number, prompt in enumerate(measured):
        engine.add(str(number), prompt, 1)
    engine.run()
    return [engine.timelines[str(number)].first_token_seconds for number in range(NUM_REQUESTS)]


def prefix_row(model: PreTrainedModel, tokens_per_step: int = TOKENS_PER_STEP) -> dict[str, Any]:
    """Mean seconds to the first token, without and with the cache."""
    cold, warm = (
        statistics.mean(
            first_token_seconds(model, prefix_caching=caching, tokens_per_step=tokens_per_step)
        )
        for caching in (False, True)
    )
    return {
        "requests": NUM_REQUESTS,
        "shared_tokens": PREFIX_TOKENS,
        "own_tokens": OWN_TOKENS,
        "without_cache_seconds": cold,
        "with_cache_seconds": warm,
        "times_faster": cold / warm,
        "ceiling": (PREFIX_TOKENS + OWN_TOKENS) / OWN_TOKENS,
    }


def long_prompt_row(model: PreTrainedModel) -> dict[str, Any]:
    """The longest wait of running answers for a token while a long prompt is computed."""
    vocab_size: int = model.config.vocab_size
    engine = Engine(
        model,
        num_rows=NUM_STREAMS + 1,
        max_model_len=LONG_PROMPT_TOKENS + 8,
        max_tokens_per_step=TOKENS_PER_STEP,
    )
    for stream in range(NUM_STREAMS):
        engine.add(str(stream), random_prompt(stream, 16, vocab_size), 60)
    alone = [engine.step().seconds for _ in range(20)][10:]
    engine.add("long", random_prompt(99, LONG_PROMPT_TOKENS, vocab_size), 1)
    steps = engine.run()
    chunk_steps = [step for step in steps if step.plan.is_mixed]
    slowest = max(step.seconds for step in chunk_steps)
    longest_gap = max(gap for n in range(NUM_STREAMS) for gap in engine.timelines[str(n)].gaps[10:])
    return {
        "streams": NUM_STREAMS,
        "prompt_tokens": LONG_PROMPT_TOKENS,
        "chunk_steps": len(chunk_steps),
        "decode_step_ms": statistics.median(alone) * 1e3,
        "slowest_chunk_step_ms": slowest * 1e3,
        "longest_gap_ms": longest_gap * 1e3,
        "longest_gap_in_chunk_steps": longest_gap / slowest,
        "whole_prompt_ms": sum(step.seconds for step in chunk_steps) * 1e3,
    }


def main() -> None:
    """Prints a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=30, help="layers of the model (default: 30)")
    layers = parser.parse_args().layers
    model = small_llama(layers, 8192, torch.device("cpu"))
    print(f"random Llama, {layers} layers, {model.num_parameters() / 1e6:.0f} M parameters, "
          f"{model.dtype}, {torch.get_num_threads()} threads")  # fmt: skip
    rows = {}
    for title, measure in (("shared prefix", prefix_row), ("long prompt", long_prompt_row)):
        rows[title] = measure(model)
        print(title, flush=True)
        for name, value in rows[title].items():
            print(f"  {name:28} {value:10.2f}", flush=True)
    print(json.dumps({"layers": layers, **rows}))


if __name__ == "__main__":
    main()
