"""Encoder-decoders of random weights over slots, and `generate()` to compare with."""

from typing import Any

import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from gpu_worker.families import t5
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.families.t5 import T5
from gpu_worker.slot_cache import SlotCache
from scheduler.plan import EncoderInput
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from tests.builders import GREEDY

NEAR_TIE = 1e-4
NUM_ROWS = 6
DECODER_LEN, ENCODER_LEN = 24, 70
START, END = 0, 1
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,  # as many as the decoder's, or generate() sizes its own cache wrongly
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "dropout_rate": 0.0,
}
MODELS = {
    "t5": (T5Config, T5ForConditionalGeneration, {}),
    "gated t5": (
        T5Config,
        T5ForConditionalGeneration,
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {}),
}


def make_t5(name: str, **sizes: Any) -> PreTrainedModel:
    """A model of random weights whose answers depend on positions and inputs."""
    config_class, model_class, own = MODELS[name]
    torch.manual_seed(5)
    model: PreTrainedModel = model_class(config_class(**{**SIZES, **own, **sizes})).eval()
    for parameter_name, parameter in model.named_parameters():
        spread = 3.0 if "relative_attention_bias" in parameter_name else 0.3
        parameter.data.normal_(0, spread)
    return model


def served(model: PreTrainedModel) -> tuple[EncoderDecoder, Scheduler]:
    """The model's runner, and a scheduler for its slots."""
    size = t5.geometry(model, max_decoder_len=DECODER_LEN, max_encoder_len=ENCODER_LEN)
    cache = SlotCache(size, NUM_ROWS)
    scheduler = Scheduler(
        num_blocks=NUM_ROWS,
        block_size=DECODER_LEN,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=90,
        prefix_caching=False,
        rows_are_slots=True,
    )
    return EncoderDecoder(T5(model, cache), cache, NUM_ROWS), scheduler


def requests(count: int, longest_start: int = 1) -> list[Sequence]:
    """Inputs and answers of mixed lengths, and what the answers begin with."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        length = int(torch.randint(1, ENCODER_LEN, (1,), generator=generator))
        max_tokens = int(torch.randint(1, DECODER_LEN - longest_start, (1,), generator=generator))
        start = (START, *range(5, 5 + number % longest_start))
        ids = torch.randint(2, 120, (length,), generator=generator).tolist()
        made.append(
            Sequence(
                str(number), start, max_tokens, frozenset({END}), GREEDY,
                encoder_input=EncoderInput.text(tuple(ids)),
            )
        )  # fmt: skip
    return made


def serve_all(runner: EncoderDecoder, scheduler: Scheduler, sequences: list[Sequence]) -> int:
    """Serves them, of which two arrive with each step; how often one was moved."""
    arriving, num_moves = list(sequences), 0
    while arriving or not scheduler.is_idle:
        for sequence in arriving[:2]:
            scheduler.add(sequence)
        arriving = arriving[2:]
        plan = scheduler.schedule()
        num_moves += len(plan.moves)
        scheduler.apply(plan, runner.execute(plan))
        scheduler.check()
    return num_moves


def difference(model: Any, sequence: Sequence) -> str:
    """Where the answer is not the stock one, up to a near tie of its two best tokens; "" if not."""
    generated = model.generate(
        torch.tensor([sequence.encoder_input.token_ids], device=model.device),
        decoder_input_ids=torch.tensor(
            [sequence.token_ids[: sequence.num_prompt_tokens]], device=model.device
        ),
        max_new_tokens=sequence.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return compared(generated, sequence)


def compared(generated: Any, sequence: Sequence) -> str:
    """Where the answer is not the generated one; see `difference`."""
    expected = generated.sequences[0, sequence.num_prompt_tokens :].tolist()
    answer = sequence.token_ids[sequence.num_prompt_tokens :]
    for place, (token_id, wanted) in enumerate(zip(answer, expected, strict=True)):
        if token_id != wanted:
            best, second = generated.logits[place][0].topk(2).values.tolist()
            is_tie = best - second < NEAR_TIE
            return "" if is_tie else f"token {place} of request {sequence.request_id}"
    return ""
