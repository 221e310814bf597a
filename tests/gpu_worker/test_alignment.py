"""Where tokens were heard, as transformers' own Whisper tells it, from random weights."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.whisper import generation_whisper
from transformers.models.whisper.generation_whisper import (
    WhisperGenerationMixin,
    _dynamic_time_warping,
)

from gpu_worker.alignment import AttentionWatch, Span, alignment_heads
from gpu_worker.families.encoder_decoder import EncoderDecoder
from gpu_worker.hearing import WindowSequence
from scheduler.plan import EncoderInput, StepPlan
from scheduler.scheduler import Scheduler
from shared.sampling import SamplingParams, TranscriptRules
from tests.gpu_worker.test_whisper import (
    END,
    NUM_MELS,
    NUM_POSITIONS,
    START,
    make_whisper,
    served,
)

HEADS = [[0, 1], [1, 0], [1, 3]]
# No token is suppressed and none marks a time, so that generate() says the same by itself.
RULES = TranscriptRules(heads=(), end_token_id=END)
SOUNDS = [(n, 4 + 3 * n) for n in range(9)]  # positions of the sound itself grow


def model(*, has_heads: bool = True) -> PreTrainedModel:
    made = make_whisper("turbo")
    settings: Any = made.generation_config
    settings.alignment_heads = HEADS if has_heads else None
    return made


def features(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(NUM_MELS, 2 * NUM_POSITIONS, generator=generator)


def window(number: int, num_aligned: int) -> WindowSequence:
    return WindowSequence(
        str(number),
        (START, *range(10, 10 + number % 4)),
        5 + 4 * (number // 2),
        SamplingParams(seed=0, temperature=0.0),
        EncoderInput(NUM_POSITIONS, features=features(number).numpy().tobytes()),
        rules=RULES,
        temperatures=(0.0,),
        num_aligned=num_aligned,
        text_of=lambda _: "",
    )


def serve_all(
    runner: EncoderDecoder, scheduler: Scheduler, windows: list[WindowSequence]
) -> list[StepPlan]:
    """Serves them, of which two arrive with each step."""
    arriving, plans = list(windows), list[StepPlan]()
    while arriving or not scheduler.is_idle:
        for sequence in arriving[:2]:
            scheduler.add(sequence)
        arriving = arriving[2:]
        plans.append(scheduler.schedule())
        scheduler.apply(plans[-1], runner.execute(plans[-1]))
        scheduler.check()
    return plans


def warped_by_transformers(stock: Any, sequence: WindowSequence, num_aligned: int) -> Any:
    """The matrix out of which transformers makes the tokens' times, [T, E]."""
    num_prompt = sequence.num_prompt_tokens
    generated: Any = GenerationMixin.generate(
        stock,
        features(int(sequence.request_id))[None],
        decoder_input_ids=torch.tensor([sequence.token_ids[:num_prompt]]),
        max_new_tokens=sequence.max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
    )
    assert generated.sequences[0].tolist() == sequence.token_ids
    seen: list[Any] = []

    def warp(matrix: Any) -> Any:
        seen.append(-matrix)
        return _dynamic_time_warping(matrix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_whisper, "_dynamic_time_warping", warp)
        WhisperGenerationMixin._extract_token_timestamps(
            stock, generated, HEADS, num_frames=2 * num_aligned, num_input_ids=num_prompt
        )
    return seen[0]


def test_tokens_are_heard_where_transformers_hears_them() -> None:
    runner, scheduler = served(model())
    windows = [window(number, num_aligned) for number, num_aligned in SOUNDS]
    plans = serve_all(runner, scheduler, windows)
    assert any(len([c for c in plan.chunks if c.num_aligned]) > 1 for plan in plans), "together"
    assert any({bool(c.num_aligned) for c in plan.chunks} == {True, False} for plan in plans)
    stock = model()
    stock.set_attn_implementation("eager")
    for sequence, (_, num_aligned) in zip(windows, SOUNDS, strict=True):
        expected = warped_by_transformers(stock, sequence, num_aligned)
        matrix = np.frombuffer(sequence.alignment, "<f4").reshape(sequence.alignment_shape)
        assert matrix.shape == expected.shape
        assert np.abs(matrix - expected).max() < 1e-3 * np.abs(expected).max()
        path = _dynamic_time_warping(-matrix.astype(np.float64))
        assert np.array_equal(path, _dynamic_time_warping(-expected))


def test_a_position_that_all_tokens_pass_over_alike_says_nothing() -> None:
    """Stock code divides by that there: all tokens are at once where nobody looks."""
    attention = SimpleNamespace(is_causal=False, is_decoder=True, layer_idx=0)
    watch = AttentionWatch([(0, 0)], 3, [Span(0, 4, 9)])
    key = torch.full((1, 1, 9, 4), -300.0)
    for token in range(4):
        key[0, 0, 2 * token + 1, token] = 0.0
    watch.look(attention, torch.eye(4)[None, None] * 3, key)
    (matrix,) = watch.matrices()
    assert matrix.shape == (4, 9)
    assert torch.isfinite(matrix).all()
    assert matrix.abs().max() > 0


def test_heads_are_those_of_the_checkpoint_or_the_upper_half() -> None:
    assert alignment_heads(model()) == tuple((layer, head) for layer, head in HEADS)
    cut = model()
    settings: Any = cut.generation_config
    settings.alignment_heads = [[1, 2], [2, 0], [0, 4]]
    assert alignment_heads(cut) == ((1, 2),)
    settings.alignment_heads = [[7, 0]]
    assert alignment_heads(cut) == alignment_heads(model(has_heads=False))
    assert alignment_heads(model(has_heads=False)) == tuple((1, head) for head in range(4))
