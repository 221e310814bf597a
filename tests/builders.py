"""One-line set-up for tests: schedulers, sequences, small random models."""

from typing import TYPE_CHECKING, Any

from scheduler.outcome import SampledToken
from scheduler.plan import Admission, StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from shared.parts import Route
from shared.sampling import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GREEDY = SamplingParams(seed=0, temperature=0.0)
ROUTE = Route(frontend_id=0, frontend_epoch=1, detokenizer_epoch=1)
END_TOKEN = 1


def make_scheduler(*, prefix_caching: bool = False, **overrides: int) -> Scheduler:
    """A small scheduler: 64 blocks of 4 tokens, 4 rows, 16 tokens a step."""
    sizes: dict[str, Any] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_sequences": 4,
        "max_tokens_per_step": 16,
    }
    return Scheduler(prefix_caching=prefix_caching, **{**sizes, **overrides})


def make_sequence(
    request_id: str,
    num_prompt_tokens: int = 5,
    max_tokens: int = 3,
    sampling: SamplingParams = GREEDY,
) -> Sequence:
    """A sequence whose prompt is 10, 11, 12, …"""
    prompt = tuple(range(10, 10 + num_prompt_tokens))
    return Sequence(request_id, prompt, max_tokens, frozenset({END_TOKEN}), sampling)


def make_admission(row: int = 0, sampling: SamplingParams = GREEDY, **overrides: Any) -> Admission:
    """A row for a new sequence whose prompt is token 10."""
    rest: dict[str, Any] = {
        "token_ids": (10,),
        "num_prompt_tokens": 1,
        "end_token_ids": frozenset({END_TOKEN}),
        "cached_blocks": (),
    }
    return Admission(row=row, sampling=sampling, **{**rest, **overrides})


def run_step(scheduler: Scheduler, token_id: int = 7) -> tuple[StepPlan, list[SampledToken]]:
    """Plans a step and applies it with the same token for everybody."""
    plan = scheduler.schedule()
    num_sampled = sum(chunk.samples for chunk in plan.chunks)
    outputs = scheduler.apply(plan, StepResult((token_id,) * num_sampled))
    scheduler.check()
    return plan, outputs


RANDOM_MODEL = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": END_TOKEN,
    "bos_token_id": 2,
}


def make_model(model_type: str, seed: int = 0, **overrides: Any) -> "PreTrainedModel":
    """A random float32 model whose weights are tripled, so that the best token is clear."""
    import torch  # here, so that tests of pure rooms do not wait for it
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    if "text_config" in overrides:  # a model that sees too: the sizes are its decoder's
        overrides["text_config"] = {**RANDOM_MODEL, **overrides["text_config"]}
        config = AutoConfig.for_model(model_type, **overrides)
    else:
        config = AutoConfig.for_model(model_type, **{**RANDOM_MODEL, **overrides})
    auto_model: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
    model: PreTrainedModel = auto_model.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model
