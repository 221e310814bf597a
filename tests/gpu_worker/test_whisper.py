"""Whisper over slots: windows that join and leave at any time get `generate()`'s tokens."""

from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel, WhisperConfig
from transformers import WhisperForConditionalGeneration as Stock

from gpu_worker.families import whisper
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.families.whisper import Whisper
from gpu_worker.slot_cache import SlotCache
from scheduler.plan import EncoderInput
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from tests.builders import GREEDY
from tests.gpu_worker.encoder_decoders import compared, serve_all

NUM_ROWS = 5
NUM_POSITIONS, NUM_MELS, DECODER_LEN = 30, 16, 40
START, END = 2, 1
SHAPES: dict[str, dict[str, Any]] = {
    "as many layers": {"encoder_layers": 3, "decoder_layers": 3},
    "turbo": {"encoder_layers": 4, "decoder_layers": 2},
}


def make_whisper(shape: str) -> PreTrainedModel:
    """A model of random weights whose answers depend on positions and sound."""
    torch.manual_seed(7)
    config = WhisperConfig(
        vocab_size=90,
        num_mel_bins=NUM_MELS,
        d_model=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=NUM_POSITIONS,
        max_target_positions=DECODER_LEN,
        pad_token_id=0,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **SHAPES[shape],
    )
    model: PreTrainedModel = Stock(config).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name:
            parameter.data.normal_(0, 1.0 if "embed_positions" in name else 0.25)
    return model


def served(model: PreTrainedModel) -> tuple[EncoderDecoder, Scheduler]:
    """The model's runner, and a scheduler for its slots."""
    cache = SlotCache(whisper.geometry(model), NUM_ROWS)
    scheduler = Scheduler(
        num_blocks=NUM_ROWS,
        block_size=DECODER_LEN,
        max_sequences=NUM_ROWS,
        max_tokens_per_step=2 * NUM_POSITIONS + 10,
        prefix_caching=False,
        rows_are_slots=True,
    )
    return EncoderDecoder(Whisper(model, cache), cache, NUM_ROWS), scheduler


def windows(count: int) -> list[Sequence]:
    """Windows of noise, with prompts and answers of mixed lengths."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        features = torch.randn(NUM_MELS, 2 * NUM_POSITIONS, generator=generator)
        prompt = (START, *range(10, 10 + number % 7))
        max_tokens = 3 + 5 * number % 29
        sound = EncoderInput(NUM_POSITIONS, features=features.numpy().tobytes())
        made.append(
            Sequence(str(number), prompt, max_tokens, frozenset({END}), GREEDY, encoder_input=sound)
        )
    return made


def difference(model: Any, sequence: Sequence) -> str:
    """Where the answer is not the stock one, up to a near tie of its two best tokens; "" if not."""
    sound = torch.frombuffer(bytearray(sequence.encoder_input.features), dtype=torch.float32)
    generated: Any = GenerationMixin.generate(
        model,
        sound.view(1, NUM_MELS, -1),
        decoder_input_ids=torch.tensor([sequence.token_ids[: sequence.num_prompt_tokens]]),
        max_new_tokens=sequence.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return compared(generated, sequence)


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_that_come_and_go_are_answered_as_alone(shape: str) -> None:
    sequences = windows(16)
    runner, scheduler = served(make_whisper(shape))
    assert serve_all(runner, scheduler, sequences) > 0
    reference = make_whisper(shape)
    assert [found for s in sequences if (found := difference(reference, s))] == []
    assert len({token for s in sequences for token in s.token_ids[s.num_prompt_tokens :]}) > 10


def test_the_comparison_sees_another_sound() -> None:
    sequences = windows(4)
    runner, scheduler = served(make_whisper("turbo"))
    serve_all(runner, scheduler, sequences)
    first, second = sequences[0], sequences[1]
    first.encoder_input = second.encoder_input
    assert difference(make_whisper("turbo"), first) != ""
