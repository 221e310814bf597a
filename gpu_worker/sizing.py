"""How many blocks the KV cache gets and how long a context may be, decided once at start.

The reason is one sentence for the log; what cannot work is refused with the flag and the way out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from gpu_worker.kv_cache import BLOCK_SIZE, KVGeometry
from gpu_worker.memory import free_bytes
from scheduler.plan import Admission, Chunk, StepPlan
from shared.config import WorkerConfig
from shared.errors import EXIT_CONFIGURATION, FatalError
from shared.sampling import MAX_LOGPROBS, SamplingParams

GPU_FRACTION = 0.9  # of the free memory, unless a flag says otherwise
CPU_FRACTION = 0.5  # the machine has other work, and weights may be read again
LENGTHS_ARE_FOR = (
    "lengths of the cache are for --static-cache, and an encoder's for encoder-decoders of text"
)
_MIB = 2**20
_TOP_K = 2000  # of the probe: too many to look at the best few, so the whole vocabulary is cut


@dataclass(frozen=True)
class CacheSize:
    """The decision: what the scheduler and the attention backend are built with."""

    num_blocks: int  # of BLOCK_SIZE tokens; the scratch block comes on top
    max_model_len: int  # longest prompt plus answer, in tokens
    reason: str  # a sentence for the log: what was chosen, and which bound decided


@dataclass(frozen=True)
class _Budget:
    """Memory for the cache, and how to speak of it."""

    num_blocks: int
    explanation: str


def size_cache(
    geometry: KVGeometry,
    config: WorkerConfig,
    longest_context: int,
    *,
    reserved_bytes: int = 0,
) -> CacheSize:
    """The cache's size under the flags; FatalError where memory or the model does not allow it.

    `longest_context` is the model's own, in tokens. `reserved_bytes` of the free memory are left to
    the forward pass.
    """
    wanted = wanted_context(config, longest_context)
    budget = _budget(geometry, config.kv_cache_memory_fraction, reserved_bytes)
    if config.static_cache:
        return _static_size(geometry, config, budget)
    num_sequences = config.continuous_batching_batch_size
    most_useful = num_sequences * _num_blocks(wanted)
    num_blocks = min(budget.num_blocks, most_useful)
    context = min(wanted, num_blocks * BLOCK_SIZE)
    _check_context(context, config.model.max_model_len, budget)
    reason = f"{_size(geometry, num_blocks)}, "
    if num_blocks == most_useful:
        reason += f"enough for {num_sequences} sequences of {context} tokens"
    else:
        reason += f"{budget.explanation}; context {context} tokens"
    if context < wanted:
        reason += f", lowered from the model's {wanted} to what the memory holds"
    return CacheSize(num_blocks, context, reason)


def wanted_context(config: WorkerConfig, longest_context: int) -> int:
    """The context that the flags ask for, else the model's longest; FatalError if it has less."""
    asked, static = config.model.max_model_len, config.static_cache_decoder_max_length
    if config.static_cache and asked not in (0, static):
        raise _refusal(
            f"--max-model-len {asked} and --static-cache-decoder-max-length {static} differ: "
            "under --static-cache give the latter alone"
        )
    name = "--max-model-len"
    if config.static_cache:
        name, asked = "--static-cache-decoder-max-length", static
    if asked > longest_context:
        raise _refusal(f"{name} {asked}: the model's longest context is {longest_context} tokens")
    return asked or longest_context


def lengths_without_effect(
    config: WorkerConfig, *, has_encoder: bool, hears: bool = False
) -> list[str]:
    """The flags of lengths that were set and that this cache does not follow."""
    unused = {
        "max_encoder_len": config.static_cache or not has_encoder or hears,
        "static_cache_encoder_max_length": not (config.static_cache and has_encoder) or hears,
        "static_cache_decoder_max_length": not config.static_cache or hears,
    }
    defaults = WorkerConfig()
    return [
        f"--{name.replace('_', '-')}"
        for name, is_unused in unused.items()
        if is_unused and getattr(config, name) != getattr(defaults, name)
    ]


def probe_plan(num_sequences: int, num_tokens: int, context: int) -> StepPlan:
    """As large a step as will ever run: a full token budget, and every row samples in every way.

    All of it is told with as many logprobs as may be asked for.

    No row is longer than `context`: beyond it a table of positions has no entry, and a GPU that
    reads there is lost to the process.
    """
    length = min(max(1, num_tokens // num_sequences), context)
    sampling = SamplingParams(
        seed=0,
        top_p=0.5,
        top_k=_TOP_K,
        min_p=0.1,
        repetition_penalty=2.0,
        frequency_penalty=1.0,
        num_logprobs=MAX_LOGPROBS,
        num_prompt_logprobs=MAX_LOGPROBS,
    )
    blocks_each = _num_blocks(length)
    admissions, chunks = [], []
    for row in range(num_sequences):
        tokens = (0,) * length
        admissions.append(Admission(row, sampling, tokens, length, frozenset(), ()))
        blocks = range(row * blocks_each + 1, (row + 1) * blocks_each + 1)
        chunks.append(Chunk(row, 0, tokens, tuple(blocks), output_index=0, samples=True))
    return StepPlan(1, tuple(admissions), tuple(chunks), num_decodes=0)


def scoring(plan: StepPlan) -> StepPlan:
    """A plan of `probe_plan` whose prompts are scored: it may run in parts, unlike the other."""
    chunks = tuple(chunk._replace(targets=chunk.token_ids[1:]) for chunk in plan.chunks)
    return replace(plan, chunks=chunks)


def num_blocks_of(plan: StepPlan) -> int:
    """Blocks that a cache must have to run a plan of `probe_plan`."""
    return max(block for chunk in plan.chunks for block in chunk.new_blocks)


def activation_bytes(
    execute: Callable[[StepPlan], object], plans: Sequence[StepPlan], device: torch.device
) -> int:
    """Most bytes that running the plans took beyond what was taken before; CUDA only, else 0."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for plan in plans:
        execute(plan)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _budget(geometry: KVGeometry, fraction: float, reserved_bytes: int) -> _Budget:
    """The blocks, without the scratch block, that this share of the free memory holds."""
    fraction = fraction or (GPU_FRACTION if geometry.device.type == "cuda" else CPU_FRACTION)
    free = max(0, free_bytes(geometry.device) - reserved_bytes)
    num_blocks = max(0, int(free * fraction) // geometry.block_bytes - 1)
    explanation = f"{100 * fraction:.3g}% of {free / _MIB:.0f} MiB of free memory"
    if reserved_bytes:
        explanation += f" beside {reserved_bytes / _MIB:.0f} MiB for the forward pass"
    return _Budget(num_blocks, explanation)


def _static_size(geometry: KVGeometry, config: WorkerConfig, budget: _Budget) -> CacheSize:
    num_sequences = config.continuous_batching_batch_size
    context = config.static_cache_decoder_max_length
    num_blocks = num_sequences * _num_blocks(context)
    if num_blocks > budget.num_blocks:
        raise _refusal(
            f"--static-cache: {num_sequences} sequences of {context} tokens need "
            f"{num_blocks * geometry.block_bytes / _MIB:.0f} MiB, and there is "
            f"{budget.explanation}: lower --continuous-batching-batch-size or "
            "--static-cache-decoder-max-length, or raise --kv-cache-memory-fraction"
        )
    reason = f"{_size(geometry, num_blocks)}, static for {num_sequences} sequences of {context}"
    return CacheSize(num_blocks, context, f"{reason} tokens")


def _check_context(context: int, asked: int, budget: _Budget) -> None:
    if context < max(asked, 1):
        raise _refusal(
            f"the KV cache fits {context} tokens of context ({budget.explanation}): free memory, "
            "lower --max-model-len or raise --kv-cache-memory-fraction"
        )


def _size(geometry: KVGeometry, num_blocks: int) -> str:
    mebibytes = num_blocks * geometry.block_bytes / _MIB
    return f"KV cache: {num_blocks} blocks of {BLOCK_SIZE} tokens, {mebibytes:.1f} MiB"


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


def _refusal(sentence: str) -> FatalError:
    return FatalError(sentence, EXIT_CONFIGURATION)
