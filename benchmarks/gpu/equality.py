"""Answers on the device equal `generate()`'s, token for token, in twelve architectures.

In float32 without TF32, batched, chunked and staggered. Where the reference's two best logits are
closer than `NEAR_TIE`, sums in another order may decide otherwise; there the comparison ends.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.engine import Engine, random_prompt
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.record import Row, Stage, Values, Wrong
from gpu_worker.paged_attention import ATTENTION
from tests.builders import make_model
from tests.gpu_worker.encoder_decoders import (
    MODELS,
    difference,
    make_t5,
    requests,
    serve_all,
    served,
)

NEAR_TIE = 1e-4
NUM_ROWS = 5
TOKENS_PER_STEP = 40  # prompts are cut at other places than blocks
PROMPT_LENGTHS = (1, 100, 15, 16, 17, 33, 64, 5)
ANSWER_TOKENS = 24
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3, heads of 32": ("qwen3", {"head_dim": 32}),
    "mistral, sliding window": ("mistral", {"sliding_window": 24}),
    "gemma2, window and softcap": ("gemma2", {"head_dim": 16, "sliding_window": 24}),
    "phi3, one matrix for q, k and v": ("phi3", {}),
    "gpt2, learnt positions": ("gpt2", {"n_embd": 64, "n_layer": 4, "n_head": 4}),
    "gpt_oss, sinks and experts": (
        "gpt_oss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    "deepseek_v3, other value heads": (
        "deepseek_v3",
        {
            **_MOE,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}


def stage(machine: Machine) -> Stage:
    """One row an architecture."""
    return Stage("equality", 120.0, partial(_rows, machine))


def _rows(machine: Machine) -> Sequence[Row]:
    decoders = [Row(name, partial(compare, machine, name)) for name in ARCHITECTURES]
    others = [Row(f"{name} over slots", partial(compare_slots, machine, name)) for name in MODELS]
    return [*decoders, *others]


def compare(
    machine: Machine, name: str, *, torch_compile: bool = False, overlaps: bool = False
) -> Values:
    """Serves eight requests and compares each answer; raises Wrong at the first difference."""
    machine.require()
    torch.set_float32_matmul_precision("highest")
    model_type, overrides = ARCHITECTURES[name]
    model: Any = make_model(model_type, **overrides)
    model.set_attn_implementation(
        "eager"
    )  # the reference; others know neither softcaps nor float32
    model = model.to(machine.device)
    vocab_size = model.config.vocab_size
    prompts = [random_prompt(n, length, vocab_size) for n, length in enumerate(PROMPT_LENGTHS)]
    answers = _serve(model, prompts, torch_compile=torch_compile, overlaps=overlaps)
    same = [
        _num_equal(model, prompt, answer, f"{name}, prompt of {len(prompt)} tokens")
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return {"equal_tokens": sum(same), "of": len(prompts) * ANSWER_TOKENS}


def compare_slots(machine: Machine, name: str) -> Values:
    """The same for an encoder-decoder and 24 requests, of which two arrive with every step."""
    machine.require()
    torch.set_float32_matmul_precision("highest")
    sequences = requests(24)
    model: Any = make_t5(name)
    runner, scheduler = served(model.to(machine.device))
    num_moves = serve_all(runner, scheduler, sequences)
    reference: Any = make_t5(name)
    reference = reference.to(machine.device)
    for sequence in sequences:
        if found := difference(reference, sequence):
            raise Wrong(f"{name}, {found}")
    return {"equal_answers": len(sequences), "moves": num_moves}


def _serve(
    model: PreTrainedModel,
    prompts: list[tuple[int, ...]],
    *,
    torch_compile: bool,
    overlaps: bool,
) -> list[list[int]]:
    """The answers; a request arrives with every step while the others run.

    With `overlaps` the steps after the last arrival are launched ahead.
    """
    served = copy.deepcopy(model)
    served.set_attn_implementation(ATTENTION)
    engine = Engine(
        served,
        num_rows=NUM_ROWS,
        max_model_len=200,
        max_tokens_per_step=TOKENS_PER_STEP,
        torch_compile=torch_compile,
    )
    for number, prompt in enumerate(prompts):
        engine.add(str(number), prompt, ANSWER_TOKENS)
        engine.step()
    if overlaps and not engine.run_ahead():
        raise Wrong("no step was launched ahead")
    engine.run()
    return [engine.timelines[str(number)].token_ids for number in range(len(prompts))]


def _num_equal(
    model: PreTrainedModel, prompt: tuple[int, ...], answer: list[int], title: str
) -> int:
    """Tokens that equal the reference's, up to a near tie."""
    row = torch.tensor([prompt], device=model.device)
    generate: Any = model.generate
    generated = generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=ANSWER_TOKENS,
        min_new_tokens=ANSWER_TOKENS,
        eos_token_id=None,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    expected = generated.sequences[0, len(prompt) :].tolist()
    for position, (token_id, wanted) in enumerate(zip(answer, expected, strict=True)):
        if token_id != wanted:
            best, second = generated.logits[position][0].topk(2).values.tolist()
            if best - second >= NEAR_TIE:
                raise Wrong(f"{title}: token {position} is {token_id}, not {wanted}")
            return position
    return len(answer)
