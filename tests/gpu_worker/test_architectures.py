"""Every architecture that is served answers as `generate()` does, however its steps are cut.

One run has it all: prompts in chunks beside decoding rows, blocks that are shared, sequences that
lose theirs and are computed again; lengths lie around blocks, windows and attention chunks.
"""

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from gpu_worker import probe
from gpu_worker.architectures import TESTED_MODEL_TYPES
from gpu_worker.paged_attention import ATTENTION, bind
from shared.config import WorkerConfig
from shared.sampling import SamplingParams
from tests.builders import make_model
from tests.gpu_worker.engine import (
    PLAIN_TORCH,
    SETTINGS,
    Request,
    assert_equal,
    generated,
    run,
)

WINDOW = 12
PROMPT_LENGTHS = (60, 1, 15, 40, 12, 17, 33, 13, 48, 25)
ANSWER_LENGTHS = (3, 40, 36, 4, 40, 17, 5, 21, 3, 1)
SHARED = (0, 3, 6, 8)  # these prompts begin alike
NUM_SHARED_TOKENS = 33
NUM_BLOCKS = 9  # too few for six rows
# Random models like to repeat themselves; so they do not, and every token counts.
VARIED = SamplingParams(seed=0, temperature=0.0, repetition_penalty=3.0)

HEADS_OF_16 = {"head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
}
WINDOWS = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
GEMMA = {**HEADS_OF_16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
GEMMA3: dict[str, Any] = {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}
LLAMA4 = {
    **HEADS_OF_16,
    "num_local_experts": 2,
    "intermediate_size_mlp": 96,
    "attention_chunk_size": 20,
    "no_rope_layers": [1, 0, 1, 0],
    "floor_scale": 8,  # so that queries of short sequences are tempered too
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cohere": {},
    "deepseek_v3": {
        **LATENT,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "gemma": HEADS_OF_16,
    "gemma2": {**GEMMA, "attn_logit_softcapping": 0.5},
    "gemma3": {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma3_text": GEMMA3,
    "glm4": HEADS_OF_16,
    "gpt2": {},
    "gpt2, scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {},
    "gpt_oss": {**HEADS_OF_16, **EXPERTS, "sliding_window": WINDOW},
    "granite": {},
    "llama": {"tie_word_embeddings": True},
    "llama4": {"text_config": LLAMA4, "vision_config": {**VISION, "vision_output_dim": 32}},
    "llama4_text": LLAMA4,
    "minimax_m2": {**HEADS_OF_16, **EXPERTS},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": EXPERTS,
    "nemotron": HEADS_OF_16,
    "olmo2": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen2, windows in some layers": WINDOWS,
    "qwen3": HEADS_OF_16,
    "qwen3, windows in some layers": {**HEADS_OF_16, **WINDOWS},
    "qwen3_moe": {
        **HEADS_OF_16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
}


def model_of(name: str) -> PreTrainedModel:
    """A random model of `ARCHITECTURES`; no token ends its answers, so that all runs are alike."""
    model = make_model(name.split(",")[0], **ARCHITECTURES[name])
    assert model.generation_config is not None
    model.generation_config.eos_token_id = []
    return model


def requests() -> list[Request]:
    """Ten requests; some prompts begin alike."""
    numbers = random.Random(5)
    prompts = [numbers.choices(range(3, 200), k=length) for length in PROMPT_LENGTHS]
    for n in SHARED[1:]:
        prompts[n][:NUM_SHARED_TOKENS] = prompts[SHARED[0]][:NUM_SHARED_TOKENS]
    pairs = zip(prompts, ANSWER_LENGTHS, strict=True)
    return [Request(tuple(prompt), max_tokens, VARIED) for prompt, max_tokens in pairs]


def test_every_type_that_is_called_tested_is_tested() -> None:
    assert {name.split(",")[0] for name in ARCHITECTURES} == TESTED_MODEL_TYPES


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that was made."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return made


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_step_makes_a_mask_of_all_tokens_by_all(name: str) -> None:
    model: Any = model_of(name)
    num_tokens = 1000
    recorder = probe.Recorder()
    model.set_attn_implementation(ATTENTION)
    bind(model, recorder)
    row = torch.arange(num_tokens)[None] % 200
    with torch.inference_mode(), Largest() as largest:  # type: ignore[no-untyped-call]
        model(
            input_ids=row,
            position_ids=row,
            use_cache=False,
            logits_to_keep=torch.tensor([0]),
            backend=recorder,
        )
    assert len(recorder.calls) == 4
    assert 0 < largest.num_elements < num_tokens**2


def assert_answers_as_generated(name: str, settings: WorkerConfig) -> None:
    """Serves all requests with too few blocks for them, and compares each."""
    model, wanted = model_of(name), requests()
    done = run(model, wanted, num_blocks=NUM_BLOCKS, prefix_caching=True, settings=settings)
    for request, answer in zip(wanted, done.answers, strict=True):
        assert_equal(answer, generated(model, request))
    assert any(plan.is_mixed for plan in done.plans)
    assert any(not chunk.samples for plan in done.plans for chunk in plan.chunks)
    assert done.counters.num_preemptions > 0
    assert done.counters.num_cached_tokens > 0
    assert len({token_id for answer in done.answers for token_id in answer}) > 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_equal_generate(name: str) -> None:
    assert_answers_as_generated(name, SETTINGS)


# Between them they have windows, chunks, softcaps, sinks and value heads of another size.
@pytest.mark.parametrize("name", ["deepseek_v3", "gemma2", "gpt_oss", "llama4_text", "mistral"])
def test_answers_in_plain_torch_equal_generate(name: str) -> None:
    assert_answers_as_generated(name, PLAIN_TORCH)
